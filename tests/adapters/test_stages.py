"""However a job's code ends, its end is told."""

import base64

import cloudpickle
import msgspec
import pytest

from fabric import context
from fabric.adapters.archive import DirectoryArchive
from fabric.adapters.stages import Stage, perform
from fabric.adapters.testimony import end_of
from fabric.gate.events import JobKind, LeaseOutcome
from fabric.gate.instructions import Lease


@pytest.fixture
def run(tmp_path):
    def run(function, **payload):
        inline = base64.b64encode(cloudpickle.dumps((function, (), {}))).decode()
        lease = Lease(
            lease_id="job-1.1", job_id="job-1", account_id="acme", name="n", kind=JobKind.FUNCTION, epoch=1,
            accelerator="H100", shares=(), payload=msgspec.json.encode({"inline": inline, **payload}).decode(),
        )  # fmt: skip
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
