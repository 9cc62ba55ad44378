"""A notice that comes when those that would hear it have just ended by themselves, and what stands above them has not yet.

A launcher looks now and then whether its ranks live, a shell has a line more: they are let go on for a moment, to end as
they would. What their ranks have saved counts, whatever they end with.
"""

import pytest

from fabric.gate.events import LeaseOutcome
from fabric.worker.stop_notice import notice_for
from tests.worker.folder_programs import committed
from tests.worker.test_programs import tree

SUCCEEDED, SAVED, INTERRUPTED = LeaseOutcome.SUCCEEDED, LeaseOutcome.SAVED, LeaseOutcome.INTERRUPTED

LAUNCH = """
import os, signal, subprocess, sys, time
def end(number, _):
    for rank in ranks:
        rank.terminate()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
ranks = [subprocess.Popen([sys.executable, "x.py"], env={**os.environ, "RANK": str(rank)}) for rank in range(2)]
codes = [rank.wait() for rank in ranks]
print("all have ended", flush=True)
time.sleep(float(sys.argv[1]))  # until it looks
sys.exit(max(codes))
"""
TRAINS = """
import os, sys, time
from fabric import context
job = context.current()
job.stop_requested
job.save(b"all of it", step=9)
print("done\\n", end="", flush=True)
time.sleep(float(os.environ.get("WRITES_S", "0")))  # it writes its results, and looks for no notice any more
"""
FILES = {"launch.py": LAUNCH, "torchrun": LAUNCH, "x.py": TRAINS}
SHELL = "python x.py; echo all have ended; sleep 1; touch result; echo more"


def nobody_listens(attempt):
    return attempt.stage.host is not None and not attempt.stage.host.listening()


@pytest.mark.parametrize(
    "command",
    [
        ("python", "launch.py", "1"),
        ("python", "torchrun", "1"),
        ("bash", "-c", "python launch.py 1 && echo more"),
        ("bash", "-c", SHELL),
        ("bash", "-c", f"trap 'exit 1' TERM; {SHELL}"),
        ("python", "-c", f"import subprocess, sys; sys.exit(subprocess.call(['bash', '-c', {SHELL!r}]))"),
    ],
    ids=["a launcher", "one that is known", "a shell above", "a shell", "a shell with a trap", "python above a shell"],
)
def test_what_stands_above_ranks_that_have_just_ended_is_let_end_by_itself(executing, command):
    attempt = executing.begin(*command, files=FILES)
    attempt.until("all have ended")
    attempt.until(lambda: nobody_listens(attempt))
    end, log = attempt.stop(seconds_left=60)
    assert end.outcome is SUCCEEDED, (end, log)
    assert ("more" in log) == ("bash" in " ".join(command))


@pytest.mark.parametrize("command", [("python", "launch.py", "0.5"), ("bash", "-c", "python launch.py 0.5; echo more")])
def test_a_launcher_whose_ranks_end_by_themselves_after_the_notice_gets_no_signal(executing, command):
    attempt = executing.begin(*command, files=FILES, env={"WRITES_S": "1"})
    attempt.until(lambda: attempt.log.count("done") == 2)
    end, log = attempt.stop(seconds_left=60)
    assert end.outcome is SUCCEEDED, (end, log)


@pytest.mark.parametrize("writes_s", ["0", "1"], ids=["ranks that have ended", "ranks that end after it"])
def test_what_ranks_saved_before_they_ended_counts_although_their_launcher_must_be_ended(executing, writes_s):
    attempt = executing.begin("python", "launch.py", "1000", files=FILES, env={"WRITES_S": writes_s})
    attempt.until(lambda: attempt.log.count("done") == 2)
    if writes_s == "0":
        attempt.until(lambda: nobody_listens(attempt))
    end, log = attempt.stop(seconds_left=8)
    assert end.outcome is SAVED, (end, log)


WRITES = """
import os
open(os.environ["FABRIC_CHECKPOINT_DIR"] + "/state" + os.environ["RANK"], "w").write("all of it")
"""


def test_the_folder_of_a_launcher_that_ends_with_1_at_the_notice_is_committed(executing, tmp_path):
    """Its ranks are gone, and saved into the folder: nobody of it was writing any more."""
    attempt = executing.begin("python", "torchrun", "1000", files={**FILES, "x.py": WRITES})
    attempt.until("all have ended")
    end, log = attempt.stop(seconds_left=8)
    assert (end.outcome, "committed" in end.error) == (INTERRUPTED, True), (end, log)
    assert (committed(attempt, tmp_path / "found") / "state1").read_text() == "all of it"


NEXT = """
import time
from fabric import context
job = context.current()
print("next", flush=True)
while not job.wait_for_stop(0.01):
    pass
job.save(b"half", step=10)
job.park()
"""


def test_a_shells_next_program_saves_and_the_shell_goes_no_further(executing):
    """The one before ended by itself after the notice: its shell went on with the next, and with what follows that."""
    command = ("bash", "-c", "python x.py; python next.py; echo over")
    attempt = executing.begin(*command, files={**FILES, "next.py": NEXT}, env={"WRITES_S": "1"})
    attempt.until("done")
    end, log = attempt.stop(seconds_left=60)
    assert (end.outcome, executing.saves[-1][0]) == (SAVED, 10), (end, log)
    assert "over" not in log


EXITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("up", flush=True)
while True:
    time.sleep(0.01)
"""


def test_a_shell_does_not_go_on_when_the_notice_has_ended_what_it_waited_for(executing):
    """It would come to its end, and the job would have succeeded."""
    attempt = executing.begin("bash", "-c", "python x.py; echo over", files={"x.py": EXITS})
    attempt.until("up")
    end, log = attempt.stop(seconds_left=60)
    assert end.outcome is INTERRUPTED, (end, log)
    assert "over" not in log


def test_a_launcher_that_has_not_started_its_ranks_yet_is_ended_when_they_come_and_can_not_save(executing):
    late = LAUNCH.replace("ranks = [", "print('up', flush=True); time.sleep(0.5)\nranks = [", 1)
    attempt = executing.begin(
        "python", "torchrun", "0", files={"torchrun": late, "x.py": "import time; time.sleep(1000)"}
    )
    attempt.until("up")
    end, log = attempt.stop(seconds_left=60)
    assert end.outcome is INTERRUPTED, (end, log)
    assert "all have ended" not in log


@pytest.mark.parametrize(
    ("given", "told", "halted"),
    [
        (["1 0 catches"], [], []),
        (["1 0 shell", "2 1 catches"], [], []),
        (["1 0 shell", "2 1 catches", "3 2 listens"], [3], [1, 2]),
        (["1 0 shell", "2 1 catches", "3 2 catches"], [3], [1, 2]),
    ],
)
def test_who_stood_above_those_that_have_ended_gets_no_notice_but_waits_for_others(given, told, halted):
    found = notice_for(tree(*given), root=1, wrappers=frozenset({1, 2}))
    assert (sorted(found.told), sorted(found.halted)) == (told, halted)
