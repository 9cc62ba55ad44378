"""Any command, preemptible: its folder is committed when it is quiet, when it is asked for, and when it says 75."""

import json
import shutil
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from fabric import context
from fabric.checkpoints import Checkpoints, store_of
from fabric.gate.events import JobKind, LeaseOutcome
from fabric.storage.archive import DirectoryArchive
from fabric.system.processes import kill, tree_of
from fabric.worker import execution
from fabric.worker.checkpoint_folder import step_in
from fabric.worker.execution import perform
from fabric.worker.stage import Stage
from tests.worker.leases import lease_of

COUNTER = """
    import os, signal, sys, time
    folder = os.environ["FABRIC_CHECKPOINT_DIR"]
    path = os.path.join(folder, "step")
    at = int(open(path).read()) if os.path.exists(path) else 0
    def save(*_):
        with open(path + ".new", "w") as file:
            file.write(str(at))
        os.replace(path + ".new", path)
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    print("from", at, flush=True)
    while at < int(sys.argv[1]):
        time.sleep(0.02)
        at += 1
    print("done", at)
"""


class Job:
    """Attempts of one job on one machine, without Ray."""

    def __init__(self, tmp_path):
        self.tmp_path, self.epoch = tmp_path, 0
        self.archive = DirectoryArchive(tmp_path / "archive")
        self.saves = []

    def checkpoints(self, epoch=None):
        return Checkpoints(store_of(self.archive), prefix="jobs/acme/j/checkpoint", epoch=epoch or self.epoch)

    def stage(self, *command, env=None):
        self.epoch += 1
        payload = {"entrypoint": list(command), "env": {"FABRIC_CHECKPOINT_QUIET_S": "0.3", **(env or {})}}
        lease = lease_of("j", epoch=self.epoch, kind=JobKind.SCRIPT, payload=json.dumps(payload))
        folder = self.tmp_path / str(self.epoch)
        here = context.Context(
            context.Place(job_id="j", attempt=self.epoch),
            checkpoints=self.checkpoints(),
            on_saved=lambda step, *_: self.saves.append(step),
        )
        return Stage(
            lease=lease, folder=folder, log_file=folder / "log", archive=self.archive, context=here,
            master=("127.0.0.1", 1),
        )  # fmt: skip

    def run(self, *command, stop_after_s=None, reason="evicted", save=True, when=None, **more):
        stage = self.stage(*command, **more)

        def stop():
            """So long after the command has begun to say something: a busy machine takes its time to start one."""
            wait_until(lambda: stage.log_file.exists() and stage.log_file.stat().st_size)
            time.sleep(stop_after_s)
            stage.ask_to_stop(reason, seconds_left=10, save=save)

        if stop_after_s is not None:
            threading.Thread(target=stop, daemon=True).start()
        if when is not None:
            threading.Thread(target=when, args=(stage,), daemon=True).start()
        end = perform(stage)
        return end, stage.log_file.read_text()


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


@pytest.fixture
def counter(tmp_path):
    script = tmp_path / "counter"
    script.write_text(textwrap.dedent(COUNTER))
    return sys.executable, str(script)


def wait_until(found, within_s=20):
    deadline = time.monotonic() + within_s
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_command_that_says_75_goes_on_where_it_was_on_another_machine(job, counter):
    end, _ = job.run(*counter, "10000", stop_after_s=0.3)
    assert (end.outcome, end.again) == (LeaseOutcome.SAVED, False)
    (step,) = job.saves
    assert step > 0
    shutil.rmtree(job.tmp_path / "1")
    end, log = job.run(*counter, str(step + 3))
    assert end.outcome is LeaseOutcome.SUCCEEDED
    assert log == f"from {step}\ndone {step + 3}\n"


def test_75_without_being_asked_means_queue_me_again(job):
    code = "import os, sys; open(os.environ['FABRIC_CHECKPOINT_DIR'] + '/step', 'w').write('7'); sys.exit(75)"
    end, _ = job.run(sys.executable, "-c", code)
    assert (end.outcome, end.again) == (LeaseOutcome.SAVED, True)
    assert job.saves == [7]


def test_a_quiet_folder_is_committed_while_the_command_runs_on(job):
    code = "import os, time; open(os.environ['FABRIC_CHECKPOINT_DIR'] + '/step', 'w').write('3'); time.sleep(60)"
    ended = []
    stage = job.stage(sys.executable, "-c", code)
    runner = threading.Thread(target=lambda: ended.append(perform(stage)))
    runner.start()
    wait_until(lambda: job.saves == [3])
    kill(stage.program.pid)
    runner.join()
    assert ended[0].outcome is LeaseOutcome.FAILED
    _, log = job.run(sys.executable, "-c", "import os; print(os.listdir(os.environ['FABRIC_CHECKPOINT_DIR']))")
    assert log == "['step']\n"


def test_a_checkpoint_is_made_when_it_is_asked_for(job):
    code = (
        "import itertools, os, time\n"
        "for at in itertools.count():\n"
        "    path = os.environ['FABRIC_CHECKPOINT_DIR'] + '/step'\n"
        "    open(path + '.new', 'w').write(str(at)); os.replace(path + '.new', path); time.sleep(0.15)\n"
    )
    stage = job.stage(sys.executable, "-c", code)
    runner = threading.Thread(target=perform, args=(stage,))
    runner.start()
    time.sleep(0.8)
    assert job.saves == [], "it is never quiet"
    stage.context.ask_to_save()
    wait_until(lambda: job.saves)
    assert not stage.context.save_requested
    kill(stage.program.pid)
    runner.join()


def test_a_command_that_ends_well_leaves_its_folder_for_others_to_have(job):
    code = "import os; open(os.environ['FABRIC_CHECKPOINT_DIR'] + '/model', 'w').write('weights')"
    end, _ = job.run(sys.executable, "-c", code)
    assert end.outcome is LeaseOutcome.SUCCEEDED
    assert job.saves == [0]
    assert [manifest.step for manifest in job.checkpoints().ls()] == [0]


def test_what_a_cancelled_job_leaves_is_not_kept_unless_that_is_wanted(job, counter):
    job.run(*counter, "10000", stop_after_s=0.3, reason="cancelled", save=False)
    assert job.saves == []
    job.run(*counter, "10000", stop_after_s=0.3, reason="cancelled", save=True)
    assert len(job.saves) == 1


def test_a_command_that_fails_commits_nothing_of_its_last_moment(job):
    code = "import os, sys; open(os.environ['FABRIC_CHECKPOINT_DIR'] + '/step', 'w').write('9'); sys.exit(3)"
    end, _ = job.run(sys.executable, "-c", code)
    assert end.outcome is LeaseOutcome.FAILED
    assert job.saves == []


def test_an_archive_that_refuses_loses_the_attempt_and_not_the_job(job, counter, monkeypatch):
    """Nobody but the job's own process saw it, so it is worth another try: whether a refund is not for it to say."""
    monkeypatch.setattr(execution, "KEEP_TRYING_S", 0.0)

    def refuse(stage):
        time.sleep(0.3)
        stage.context.checkpoints.store._root = Path("/proc/nowhere")

    job.run(*counter, "10000", stop_after_s=0.7)
    before = job.saves[:]
    end, _ = job.run(*counter, "10000", stop_after_s=0.7, when=refuse)
    assert end.outcome is LeaseOutcome.INTERRUPTED
    assert "could not be committed" in end.error
    assert job.saves == before
    _, log = job.run(*counter, str(before[-1]))
    assert log.startswith(f"from {before[-1]}\n")


@pytest.mark.parametrize("code", [0, 75])
def test_a_folder_that_can_not_be_committed_is_its_jobs_own_failure(job, code):
    """Something that the command left running goes on writing there: no work of the platform's was lost."""
    leave = (
        "cd $FABRIC_CHECKPOINT_DIR; head -c 100000000 /dev/zero > big;"
        f" (while :; do echo more >> big; done) & sleep 0.1; exit {code}"
    )
    try:
        end, _ = job.run("sh", "-c", leave)
    finally:
        for pid in tree_of((), lease_id=f"j.{job.epoch}"):
            kill(pid)
    assert end.outcome is LeaseOutcome.FAILED
    assert "written to while it was saved" in end.error


def test_an_attempt_that_has_been_superseded_commits_nothing(job, counter):
    """Two resumes race: the newer one counts."""

    def overtake(_):
        time.sleep(0.3)
        job.checkpoints(epoch=99).claim()

    job.run(*counter, "10000", stop_after_s=0.7)
    before = job.saves[:]
    end, _ = job.run(*counter, "10000", stop_after_s=1, when=overtake)
    assert end.outcome is LeaseOutcome.FAILED
    assert "can't save" in end.error
    assert job.saves == before


@pytest.mark.parametrize(
    ("said", "step"), [("140\n", 140), ("", 0), ("-1", 0), ("1e3", 0), ("9" * 30, 0), ("²", 0), (" 12 ", 12)]
)
def test_the_step_is_what_the_file_says_if_it_is_a_count(tmp_path, said, step):
    (tmp_path / "step").write_text(said)
    assert step_in(tmp_path) == step
    assert step_in(tmp_path / "nowhere") == 0
