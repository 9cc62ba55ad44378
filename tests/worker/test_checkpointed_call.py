"""A function in a process of its own has a folder that outlives its attempts, as a command has."""

import os
import time

import pytest

from fabric.gate.events import LeaseOutcome
from tests.worker.call_attempts import Calls


@pytest.fixture(params=["started", "forked"])
def begin(request, tmp_path):
    zygote = request.getfixturevalue("zygotes").socket() if request.param == "forked" else ""
    calls = Calls(tmp_path, zygote=zygote, FABRIC_CHECKPOINT_QUIET_S="0.3", FABRIC_CHECKPOINT_EVERY_S="600")
    yield calls.begin
    calls.close()


def files():
    folder = os.environ["FABRIC_CHECKPOINT_DIR"]
    return {name: open(os.path.join(folder, name)).read() for name in os.listdir(folder)}  # noqa: PTH118, PTH123, PTH208


def writes(step):
    def write():
        with open(os.environ["FABRIC_CHECKPOINT_DIR"] + "/step", "w") as file:  # noqa: PTH123
            file.write(str(step))

    return write


def writes_and_stays():
    writes(3)()
    time.sleep(600)


def writes_all_the_time():
    path = os.environ["FABRIC_CHECKPOINT_DIR"] + "/step"
    at = int(open(path).read()) if os.path.exists(path) else 0  # noqa: PTH110, PTH123, SIM115
    while True:
        at += 1
        with open(path + ".new", "w") as file:  # noqa: PTH123
            file.write(str(at))
        os.replace(path + ".new", path)  # noqa: PTH105
        time.sleep(0.05)


def saves_by_the_context():
    from fabric import context

    job = context.current()
    writes(9)()
    seen = job.load()
    job.save(b"own", step=5)
    time.sleep(1.0)
    job.save(b"own", step=6)
    return seen


def test_what_a_function_leaves_in_its_folder_is_there_for_its_next_attempt(begin):
    first = begin(writes(7))
    assert first.ended().outcome is LeaseOutcome.SUCCEEDED, first.end.error
    assert first.saves == [7]
    assert begin(files).value() == {"step": "7"}


def test_a_quiet_folder_is_committed_while_the_function_goes_on(begin):
    first = begin(writes_and_stays)
    first.until(lambda: first.saves == [3])
    assert first.kill().outcome is LeaseOutcome.FAILED
    second = begin(writes_and_stays)
    second.until(lambda: second.stage.fork is not None and second.stage.fork.processes())
    second.kill()
    assert begin(files).value() == {"step": "3"}


def test_a_function_that_writes_all_the_time_is_committed_before_its_end(begin):
    first = begin(writes_all_the_time)
    step = first.stage.folder / "checkpoint" / "step"
    first.until(lambda: step.exists() and int(step.read_text() or 0) > 20)
    assert first.saves == []
    first.stage.ask_to_stop("evicted", seconds_left=6, save=True)
    first.until(lambda: first.saves)
    first.kill()
    kept = first.saves[-1]
    assert kept > 20
    assert begin(files).value() == {"step": str(kept)}


def test_a_checkpoint_of_it_is_made_when_one_is_asked_for(begin):
    first = begin(writes_all_the_time)
    step = first.stage.folder / "checkpoint" / "step"
    first.until(step.exists)
    first.stage.ask_to_save()
    first.until(lambda: first.saves)
    first.kill()


def test_a_function_that_saves_by_itself_is_not_kept_from_it_by_its_folder(begin):
    first = begin(saves_by_the_context)
    assert first.value() is None
    second = begin(saves_by_the_context)
    assert second.value() == b"own"
    assert (first.saves, second.saves) == ([5, 6], [5, 6])


def test_what_a_job_says_of_its_ray_is_heard_as_that_is_imported(tmp_path):
    def look():
        from ray._private import ray_constants

        return ray_constants.RAY_DEDUP_LOGS

    calls = Calls(tmp_path, RAY_DEDUP_LOGS="0")
    try:
        assert calls.begin(look).value() is False
    finally:
        calls.close()


def test_what_a_function_was_writing_when_it_was_killed_is_not_committed(begin):
    """It had the file open: half of something."""

    def writes_half():
        writes(1)()
        time.sleep(1.5)
        file = open(os.environ["FABRIC_CHECKPOINT_DIR"] + "/step", "w")  # noqa: PTH123, SIM115
        file.write("9")
        file.flush()
        print("half", flush=True)
        time.sleep(600)

    first = begin(writes_half)
    first.until(lambda: "half" in first.log)
    first.kill()
    assert first.saves == [1]
    assert begin(files).value() == {"step": "1"}


def test_a_function_that_fails_commits_nothing_of_its_last_moment(begin):
    def fails():
        writes(9)()
        raise ValueError("no")

    first = begin(fails)
    assert first.ended().outcome is LeaseOutcome.FAILED
    assert first.saves == []
