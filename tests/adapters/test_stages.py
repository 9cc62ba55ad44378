"""However a job's code ends, its end is told."""

import base64

import cloudpickle
import msgspec
import pytest

from fabric import context
from fabric.adapters.archive import DirectoryArchive
from fabric.adapters.runner import Order, accelerator_of, ranks_of
from fabric.adapters.stages import Stage, perform
from fabric.adapters.testimony import end_of
from fabric.gate.events import LeaseOutcome
from fabric.gate.instructions import Share
from tests.adapters.leases import lease_of


@pytest.fixture
def run(tmp_path):
    def run(function, *, loss_every_us=None, **payload):
        inline = base64.b64encode(cloudpickle.dumps((function, (), {}))).decode()
        told = msgspec.json.encode({"inline": inline, **payload}).decode()
        lease = lease_of(payload=told, loss_every_us=loss_every_us)
        stage = Stage(
            lease=lease, folder=tmp_path / "job", log_file=tmp_path / "job" / "log",
            archive=DirectoryArchive(tmp_path / "archive"), context=context.Context(context.Place(job_id="job-1")),
            master=("127.0.0.1", 1),
        )  # fmt: skip
        return end_of(perform(stage), lease=lease), stage.log_file.read_bytes()

    return run


def test_what_has_no_encoding_is_printed_and_told_in_other_words(run):
    def job():
        print("caf\udce9", "汉")
        raise FileNotFoundError("caf\udce9.txt")

    end, log = run(job)
    assert end.outcome is LeaseOutcome.FAILED
    assert "FileNotFoundError: caf?.txt" in end.error
    assert "caf\\udce9 汉\n".encode() in log


@pytest.mark.parametrize("env", [{"A": "x\0y"}, {"": "x"}, {"A=B": "x"}])
def test_an_environment_that_cannot_be_set_fails_the_job(run, env):
    end, _ = run(lambda: "done", env=env)
    assert end.outcome is LeaseOutcome.FAILED


def test_a_jobs_code_is_told_what_it_may_mix(run):
    def job():
        import os

        print(os.environ["FABRIC_MIX"])

    end, log = run(job)
    assert end.outcome is LeaseOutcome.SUCCEEDED
    assert log == b"never\n"


@pytest.mark.parametrize(("env", "said"), [({}, b"5400\n"), ({"FABRIC_LOSS_EVERY_S": "60"}, b"60\n")])
def test_a_jobs_code_is_told_how_often_its_pool_takes_devices_away_unless_its_owner_knows_better(run, env, said):
    def job():
        import os

        print(os.environ["FABRIC_LOSS_EVERY_S"])

    assert run(job, loss_every_us=5_400_000_000, env=env)[1] == said


def test_a_rank_of_a_gang_of_several_types_knows_its_own():
    shares = (Share("h1", 2, "H100"), Share("a1", 1, "A100"))
    lease = lease_of(accelerator="H100+A100", shares=shares)
    order = Order(lease=lease, rank=0, master_addr="", master_port=1, work_dir="w")
    of_nodes = [msgspec.structs.replace(order, rank=at) for at in range(2)]
    assert [accelerator_of(each) for each in of_nodes] == ["H100", "A100"]
    of_devices = [rank for each in of_nodes for rank in ranks_of(msgspec.structs.replace(each, per_device=True))]
    assert [accelerator_of(each) for each in of_devices] == ["H100", "H100", "A100"]
    alike = msgspec.structs.replace(lease, accelerator="A100", shares=(Share("a1", 2),))
    assert accelerator_of(msgspec.structs.replace(order, lease=alike)) == "A100"
