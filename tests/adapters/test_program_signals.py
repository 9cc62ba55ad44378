"""Programs that know signals alone are asked to save by one, and nothing that they need dies of it meanwhile."""

import shutil

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


@pytest.mark.parametrize("name", ["TERM", "USR1", "USR2"])
@pytest.mark.parametrize(
    "command", [["python", "x.py"], ["bash", "-c", "python x.py; echo more"]], ids=["script", "shell"]
)
def test_the_notice_is_the_signal_that_was_asked_for(executing, name, command):
    env = {"FABRIC_STOP_SIGNAL": name} if name != "TERM" else {}
    attempt = executing.begin(*command, files={"x.py": BY_SIGNAL.format(name=name)}, env=env)
    attempt.until("up")
    end, log = attempt.stop()
    assert (end.outcome, [facts[0] for facts in executing.saves]) == (SAVED, [5]), log
    assert "more" not in log


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


def test_a_shells_own_trap_runs_when_its_command_has_ended(executing):
    trap = "trap 'echo 9 > $FABRIC_CHECKPOINT_DIR/step; exit 75' TERM; echo up; sleep 100; echo more"
    attempt = executing.begin("bash", "-c", trap)
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
