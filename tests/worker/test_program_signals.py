"""Programs that know signals alone are asked to save by one, and nothing that they need dies of it meanwhile."""

import shutil
import signal
import subprocess
import sys

import pytest

from fabric.gate.events import LeaseOutcome

SAVED = LeaseOutcome.SAVED


BY_SIGNAL = """
import os, signal, sys, time
def save(number, _):
    open(os.environ["FABRIC_CHECKPOINT_DIR"] + "/step", "w").write("5"); print("saved for", number); sys.exit(75)
signal.signal(signal.SIG{name}, save)
print("up", flush=True)
time.sleep(100)
"""


LINES = "python x.py\necho more\n"
SHELLS = {
    "script": ["python", "x.py"],
    "shell": ["bash", "-c", "python x.py; echo more"],
    "strict shell": ["bash", "-e", "-u", "-c", "python x.py; echo more", "name"],
    "shells below each other": ["sh", "-c", "bash x.sh; echo more"],
    "shell's script": ["bash", "x.sh"],
}


@pytest.mark.parametrize("name", ["TERM", "INT", "USR1", "USR2"])
@pytest.mark.parametrize("command", SHELLS.values(), ids=SHELLS)
def test_the_notice_is_the_signal_that_was_asked_for(executing, name, command):
    env = {"FABRIC_STOP_SIGNAL": name} if name != "TERM" else {}
    files = {"x.py": BY_SIGNAL.format(name=name), "x.sh": LINES}
    attempt = executing.begin(*command, files=files, env=env)
    attempt.until("up")
    end, log = attempt.stop()
    assert (end.outcome, [facts[0] for facts in executing.saves]) == (SAVED, [5]), log
    assert "more" not in log


@pytest.fixture
def as_rays():
    """Ray blocks this one in all that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


COMMANDS = [["python", "x.py"], ["bash", "-c", "python x.py; echo more"]]


@pytest.mark.parametrize("command", COMMANDS, ids=["script", "shell"])
def test_no_signal_is_blocked_in_a_program_that_a_process_of_rays_has_started(executing, as_rays, command):
    text = "import signal; print(*signal.pthread_sigmask(signal.SIG_BLOCK, ()), 'blocked')"
    end, log = executing.run(*command, files={"x.py": text})
    assert (end.outcome, log.split("\n")[0]) == (LeaseOutcome.SUCCEEDED, "blocked")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGINT}


def test_an_interrupt_is_a_notice_there_too(executing, as_rays):
    attempt = executing.begin(
        "python", "x.py", files={"x.py": BY_SIGNAL.format(name="INT")}, env={"FABRIC_STOP_SIGNAL": "INT"}
    )
    attempt.until("up")
    end, log = attempt.stop(seconds_left=20)
    assert (end.outcome, [facts[0] for facts in executing.saves]) == (SAVED, [5]), log


CHILDREN = """
import multiprocessing, os, signal, sys, time
from fabric.worker.job_signals import own_in_children
own_in_children()
signal.signal(signal.SIGTERM, lambda *_: print("inherited", flush=True))
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
def tell(_):
    return signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
def sets_its_own():
    def own(*_):
        os._exit(7)
    signal.signal(signal.SIGTERM, own)
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        os._exit(1)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(tell, range(4)) == [(True, 0)] * 4, pool.map(tell, range(4))
if (pid := os.fork()) == 0:
    sets_its_own()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
for _ in range(200):
    if (pid := os.fork()) == 0:
        time.sleep(30)
        os._exit(0)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGINT}
assert callable(signal.getsignal(signal.SIGTERM))
print("all is well")
"""


def test_a_forked_child_has_signals_of_its_own_and_hands_on_what_it_sets():
    done = subprocess.run([sys.executable, "-c", CHILDREN], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "all is well\n", done.stderr


READERS = """
import os, signal, sys, time
import torch
from torch.utils.data import DataLoader
wanted = False
def note(*_):
    global wanted
    wanted = True
signal.signal(signal.SIGTERM, note)
for at, batch in enumerate(DataLoader(range(100_000), batch_size=2, num_workers=2)):
    time.sleep(0.02)
    print(at, flush=True)
    if wanted:
        time.sleep(0.5)  # a save, during which the readers must live
        open(os.environ["FABRIC_CHECKPOINT_DIR"] + "/step", "w").write(str(at))
        sys.exit(75)
"""


@pytest.mark.parametrize(
    "command",
    [
        ["python", "x.py"],
        ["torchrun", "--standalone", "--nproc-per-node", "1", "x.py"],
        ["bash", "-c", "python x.py; echo more"],
    ],
    ids=["script", "torchrun", "shell"],
)
def test_the_readers_of_a_script_that_saves_at_the_signal_are_left_alone(executing, command):
    attempt = executing.begin(*command, files={"x.py": READERS})
    attempt.until("\n5\n")
    end, log = attempt.stop()
    assert end.outcome is SAVED, (end, log)
    assert executing.saves[-1][0] >= 5
    assert "Traceback" not in log


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
@pytest.mark.parametrize("command", [["node", "x.js"], ["sh", "-c", "node x.js; echo more"]], ids=["node", "shell"])
def test_a_program_in_another_language_saves_at_the_signal(executing, command):
    code = (
        "process.on('SIGTERM', () => { require('fs').writeFileSync(process.env.FABRIC_CHECKPOINT_DIR + '/step', '7');"
        " process.exit(75) }); console.log('up'); setInterval(() => {}, 1000)"
    )
    attempt = executing.begin(*command, files={"x.js": code})
    attempt.until("up")
    end, log = attempt.stop()
    assert (end.outcome, executing.saves[-1][0], "more" in log) == (SAVED, 7, False)


@pytest.mark.parametrize("name", ["TERM", "INT"])
@pytest.mark.parametrize("shell", [["bash", "-c", "{}"], ["bash", "x.sh"], ["bash", "-c", ". ./x.sh"]], ids=" ".join)
def test_a_shells_own_trap_runs_when_its_command_has_ended(executing, name, shell):
    trap = f"trap 'echo 9 > $FABRIC_CHECKPOINT_DIR/step; exit 75' {name}; echo up; sleep 100; echo more"
    words = [word.format(trap) for word in shell]
    attempt = executing.begin(*words, files={"x.sh": trap}, env={"FABRIC_STOP_SIGNAL": name})
    attempt.until("up")
    end, log = attempt.stop()
    assert (end.outcome, "more" in log, executing.saves[-1][0]) == (SAVED, False, 9)


def test_what_the_notice_ends_is_interrupted_and_has_not_failed(executing):
    for command in (["sh", "-c", "echo up; sleep 100; echo more"], ["python", "x.py"]):
        code = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\nprint('up')\ntime.sleep(99)\n"
        attempt = executing.begin(*command, files={"x.py": code})
        attempt.until("up")
        end, log = attempt.stop()
        assert (end.outcome, "more" in log) == (LeaseOutcome.INTERRUPTED, False)


def test_a_program_that_ignores_its_context_is_ended_by_the_signal(executing):
    code = "import time\nfrom fabric import context\ncontext.current().report(step=1)\nprint('up')\ntime.sleep(99)\n"
    attempt = executing.begin("python", "x.py", files={"x.py": code})
    attempt.until("up")
    assert attempt.stop()[0].outcome is LeaseOutcome.INTERRUPTED


@pytest.mark.parametrize(
    ("then", "outcome"), [("", SAVED), ("job.listen_no_more()", LeaseOutcome.INTERRUPTED)], ids=["listens", "no more"]
)
def test_a_program_that_listens_no_more_is_ended_by_the_signal(executing, then, outcome):
    """What listened is over, as a run of a library's is, and the rest of the script would not hear the notice."""
    code = f"""
import os, threading, time
from fabric import context
job = context.current()
job.wait_for_stop(0)
{then}
print("up")
while not job._stop.is_set():
    time.sleep(0.05)
time.sleep(0.5)
os._exit(75)
"""
    attempt = executing.begin("python", "x.py", files={"x.py": code})
    attempt.until("up")
    assert attempt.stop()[0].outcome is outcome
