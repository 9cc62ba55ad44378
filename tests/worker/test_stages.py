"""However a job's code ends, its end is told."""

import base64
import io
import json
import os
import sys
import threading
import zipfile

import cloudpickle
import msgspec
import pytest
from ray.exceptions import ActorDiedError

from fabric import context
from fabric.cluster.validation import end_of
from fabric.errors import Unavailable
from fabric.gate.events import LeaseOutcome
from fabric.gate.instructions import Share
from fabric.sdk.packing import pack_files
from fabric.storage.archive import DirectoryArchive
from fabric.worker import execution
from fabric.worker.execution import perform
from fabric.worker.runner import Order, accelerator_of, ranks_of
from fabric.worker.stage import Stage
from tests.worker.leases import lease_of


@pytest.fixture
def run(tmp_path):
    def run(function=None, *, loss_every_us=None, **payload):
        inline = {"inline": base64.b64encode(cloudpickle.dumps((function, (), {}))).decode()} if function else {}
        told = msgspec.json.encode(inline | payload).decode()
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


class MyOwn(Unavailable):
    """An error of ours that a job made its own."""


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("the archive is away", code="archive_failed"),
        MyOwn("the archive is away"),
        ActorDiedError(),
        OSError(28, "No space left on device"),
        MemoryError(),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_job_raises_is_its_own_failure(run, error):
    def job():
        context.current().publish(b"a day's work")
        raise error

    assert run(job)[0].outcome is LeaseOutcome.FAILED


def test_a_result_that_no_storage_takes_is_tried_again_and_is_nobodys_fault(run, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "KEEP_TRYING_S", 0.0)
    (tmp_path / "archive").write_text("not a folder")
    end, _ = run(lambda: bytes(5_000))
    assert end.outcome is LeaseOutcome.INTERRUPTED
    assert "archive_failed" in end.error


def test_a_result_waits_for_a_storage_that_comes_back(run, tmp_path):
    (tmp_path / "archive").write_text("not a folder")
    threading.Timer(0.3, (tmp_path / "archive").unlink).start()
    end, _ = run(lambda: bytes(5_000))
    assert end.outcome is LeaseOutcome.SUCCEEDED


LOOK = (
    "import json, os, tempfile; os.mkdir('mine'); print(json.dumps({'cwd': os.getcwd(), 'home':"
    " os.path.expanduser('~'), 'tmp': os.path.realpath(tempfile.gettempdir()), 'short': len(tempfile.gettempdir()), 'env': dict(os.environ), 'mode': os.stat('.').st_mode & 0o777}))"
)


def look():
    exec(LOOK)


@pytest.mark.parametrize("kind", ["function", "command"])
def test_a_jobs_code_works_in_a_folder_of_its_own_and_finds_no_secret(run, tmp_path, monkeypatch, kind):
    """Whatever the process that starts it knows: where the fabric keeps its state, and whose keys."""
    for name in ("FABRIC_API_KEY", "FABRIC_STATE_DIR", "STRIPE_KEY", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "not yours")
    monkeypatch.chdir(tmp_path)
    env = {"WANDB_API_KEY": "my own"}
    end, log = run(look, env=env) if kind == "function" else run(entrypoint=[sys.executable, "-c", LOOK], env=env)
    assert end.outcome is LeaseOutcome.SUCCEEDED, end.error
    seen = json.loads(log)
    job = tmp_path / "job"
    assert (seen["cwd"], seen["home"], seen["tmp"]) == (str(job / "work"), str(job / "home"), str(job / "tmp"))
    assert seen["mode"] == 0o700
    assert seen["short"] <= 64, "programs make sockets there, whose paths may have 107 bytes"
    assert "not yours" not in seen["env"].values()
    assert seen["env"]["WANDB_API_KEY"] == "my own", "what its owner gave it is its own"
    assert not (tmp_path / "mine").exists()
    assert (os.getcwd(), os.environ["STRIPE_KEY"]) == (str(tmp_path), "not yours")  # noqa: PTH109


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


@pytest.fixture
def send(run, tmp_path, monkeypatch):
    """Pack a directory as a client does, and run a command in what the job finds of it."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")

    def send(*command, packed=None):
        packed = packed or pack_files((), working_dir=".")
        DirectoryArchive(tmp_path / "archive").put("blobs/acme/1", packed)
        return run(entrypoint=list(command), working_dir_blob="blobs/acme/1")

    return send


def test_an_executable_file_is_executable_in_the_job_too(send, tmp_path):
    (tmp_path / "mine" / "count.sh").write_text("#!/bin/sh\necho one two; touch data.txt\n")
    (tmp_path / "mine" / "count.sh").chmod(0o755)
    (tmp_path / "mine" / "data.txt").write_text("")
    (tmp_path / "mine" / "data.txt").chmod(0o444)
    end, log = send("./count.sh")
    assert (end.outcome, log) == (LeaseOutcome.SUCCEEDED, b"one two\n")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "job" / "work").iterdir()}
    assert modes == {"count.sh": 0o755, "data.txt": 0o644}


def test_a_zip_that_tells_no_modes_or_odd_ones_makes_nothing_that_is_more_than_a_file(send, tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("plain.txt"), "")
        odd = zipfile.ZipInfo("odd.sh")
        odd.external_attr = 0o106755 << 16
        archive.writestr(odd, "#!/bin/sh\n")
        link = zipfile.ZipInfo("../link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    end, _ = send("./odd.sh", packed=out.getvalue())
    assert end.outcome is LeaseOutcome.SUCCEEDED
    found = {path.name: path.lstat().st_mode for path in (tmp_path / "job" / "work").iterdir()}
    assert found["odd.sh"] == 0o100755
    assert found["link"] == 0o100777
    assert not found["plain.txt"] & 0o111


@pytest.mark.parametrize(
    ("command", "text", "mode", "code", "remedy"),
    [
        ("./count.sh", "#!/bin/sh\n", 0o644, "not_executable", "chmod +x count.sh"),
        ("./count.sh", "echo 1\n", 0o755, "not_executable", "#!/bin/sh"),
        ("count.sh", "#!/bin/sh\n", 0o755, "script_not_found", "write ./count.sh"),
        ("./other.sh", "#!/bin/sh\n", 0o755, "script_not_found", "send its folder with --working-dir"),
        ("./other.sh", "", 0o755, "script_not_found", "No such file"),
        ("nosuchcommand", "", 0o755, "script_not_found", "or name the package that has it with --pip"),
    ],
)
def test_what_can_not_be_run_says_what_would_help(send, tmp_path, command, text, mode, code, remedy):
    (tmp_path / "mine" / "count.sh").write_text(text)
    (tmp_path / "mine" / "count.sh").chmod(mode)
    end, _ = send(command)
    assert end.outcome is LeaseOutcome.FAILED
    assert code in end.error
    assert remedy in end.error


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("cat data/x.csv", "data/x.csv was not there"),
        ("python3 -c \"open('x.csv')\"", "x.csv was not there"),
        ("python3 -c \"import os; open(os.getcwd() + '/deep/x.csv')\"", "\ndeep/x.csv was not there"),
        ("cat /nowhere/of/the/node", None),
        ("exit 3", None),
    ],
)
def test_a_program_that_misses_a_file_is_told_what_is_sent(run, line, named):
    end, _ = run(entrypoint=["sh", "-c", line])
    assert end.outcome is LeaseOutcome.FAILED
    assert ("--working-dir" in end.error) == (named is not None), end.error
    assert named is None or named in end.error


def test_a_function_that_misses_a_file_is_told_what_is_sent(run):
    def reads():
        with open("rows.csv") as file:  # noqa: PTH123
            return file.read()

    end, _ = run(reads)
    assert "rows.csv was not there" in end.error
    assert "working_dir=" in end.error
