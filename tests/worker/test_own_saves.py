"""A job whose own code saves, and which draws or logs in its folder: what it saves counts, and what it drew is in nobody's way."""

import pytest

from fabric.checkpoints import is_of_folder
from fabric.gate.events import LeaseOutcome
from fabric.worker.checkpoint_folder import EVERY_VARIABLE, QUIET_VARIABLE

BUSY = {EVERY_VARIABLE: "0.5", QUIET_VARIABLE: "60"}
QUIET = {EVERY_VARIABLE: "60", QUIET_VARIABLE: "0.2"}
HEAD = """
import itertools, os, sys, threading, time
from fabric import context
FOLDER = os.environ["FABRIC_CHECKPOINT_DIR"]
job = context.current()
def draw(pause_s):
    for at in itertools.count():
        open(FOLDER + "/events", "a").write("x" * 10)
        time.sleep(pause_s)
"""


def begin(machine, code, env):
    return machine.begin("python", "x.py", files={"x.py": HEAD + code}, env=env)


SAVES = """
threading.Thread(target=draw, args=(float(os.environ["PAUSE_S"]),), daemon=True).start()
if os.environ.get("FIRST") == "folder":
    time.sleep(2)
for step in range(1, 9):
    job.save(str(step).encode(), step=step)
    print("saved", step, flush=True)
    time.sleep(0.5)
sys.exit(75)
"""


@pytest.mark.parametrize("first", ["job", "folder"])
@pytest.mark.parametrize("env", [{**BUSY, "PAUSE_S": "0.01"}, {**QUIET, "PAUSE_S": "0.7"}], ids=["busy", "quiet"])
def test_a_job_that_saves_by_itself_is_not_fenced_by_its_folder(machine, env, first):
    attempt = begin(machine, SAVES, {**env, "FIRST": first})
    end, log = attempt.ended()
    assert end.outcome is LeaseOutcome.SAVED, (end, log)
    assert log.count("saved") == 8
    assert [facts[0] for facts in machine.saves if facts[0]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [(found.step, is_of_folder(found)) for found in attempt.stage.context.checkpoints.ls()] == [
        (8, False),
        (7, False),
    ]


def test_what_a_job_saved_by_itself_outlives_what_it_draws_before_it_loads(machine):
    assert begin(machine, "job.save(b'mine', step=5); sys.exit(75)", BUSY).ended()[0].outcome is LeaseOutcome.SAVED
    code = "threading.Thread(target=draw, args=(0.01,), daemon=True).start(); time.sleep(3); print(job.load())"
    end, log = begin(machine, code, BUSY).ended()
    assert (end.outcome, log) == (LeaseOutcome.SUCCEEDED, "b'mine'\n"), end


def test_a_job_that_opens_its_checkpoints_has_them_to_itself(machine):
    """Before its first save, too: what it drew until then would be what it resumes from."""
    code = "assert job.load() is None; print('up', flush=True); draw(0.01)"
    attempt = begin(machine, code, BUSY)
    attempt.until("up")
    attempt.until(lambda: (attempt.stage.folder / "checkpoint" / "events").stat().st_size > 2_000)
    assert machine.saves == []
