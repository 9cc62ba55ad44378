"""Scripts of strangers that something else launches, as jobs of a machine: plain by themselves, or evicted as a lease ends."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from fabric.gate.events import LeaseOutcome
from tests.strangers.launch import LOOPS, changed
from tests.worker.programs import Machine

WITHIN_S = 280
BIN = Path(sys.executable).parent
PLAIN_TRIES = 3
TORCHS_OWN = "terminate called without an active exception"
"""So a rank of torch's ends now and then on a busy machine: a thread of torch's that nobody joins is still there when its process group
is taken down. It was seen where nothing of ours runs. A plain run, which only says what the right end is, is made again then, and only
that: a run of ours that ends so has failed.
"""
TRAIN = """cd "$(dirname "$0")"
echo begin
python train.py
cp final.pt "$OUT/"
echo end
"""
COMMANDS = {
    "torchrun": (["torchrun", "--nproc-per-node", "2", "train.py"], "parallel", {}),
    "shell": (["bash", "train.sh"], "nanogpt", {"train.sh": TRAIN}),
}
"""name -> (what is run, whose loop is `train.py`, other files)"""
ON_RAY = {"ray train": (["python", "train.py"], "ray_train", {})}
"""Those that start a Ray of their own."""
ALL = COMMANDS | ON_RAY
AT_ONCE = {"RAY_DEDUP_LOGS": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
"""Ray takes lines that differ by a number for the same one; Ray Train looks every 2 s whether there is a report, and prints twice."""


def files_of(name, *, is_changed):
    _, loop, more = ALL[name]
    text = (LOOPS / f"{loop}.py").read_text()
    return {"train.py": changed(text)[0] if is_changed else text, **more}


def lines_changed(name):
    return changed((LOOPS / f"{ALL[name][1]}.py").read_text())[1]


def steps_of(log):
    """Its lines of steps; what Ray passes on of a worker's begins with whose it is."""
    return re.findall(r"^(?:\S*\(\w+ [^)]*\)\S* )?((?:step|iter) \d+.*)$", log, re.MULTILINE)


def plain(name, folder):
    """Where its result is, and what it said of its steps."""
    folder.mkdir()
    for file, text in files_of(name, is_changed=False).items():
        (folder / file).write_text(text)
    command = [part.replace("--nproc", "--standalone --nproc") for part in ALL[name][0]]
    words = [word for part in command for word in part.split()]
    env = {**os.environ, "OUT": str(folder), "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    for _ in range(PLAIN_TRIES):
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=WITHIN_S)
        if done.returncode == 0 or TORCHS_OWN not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3_000:]
    return folder / "final.pt", steps_of(done.stdout)


def evicted(name, folder, *, evictions, steps, dice):
    """Asked to leave so often at random instants, each time again on a machine that has only what was committed.

    Where its result is, what it said of its steps, and how often it was evicted.
    """
    folder.mkdir()
    machine, lines, count = Machine(folder), [], 0
    env = {**AT_ONCE, "OUT": str(folder), "OMP_NUM_THREADS": "1"}
    try:
        while True:
            attempt = machine.begin(*ALL[name][0], files=files_of(name, is_changed=True), env=env)
            wanted = dice.randint(1, max(1, 2 * steps // (evictions + 1) - 1)) if count < evictions else None
            until = time.monotonic() + WITHIN_S
            while attempt.end is None and (wanted is None or len(steps_of(attempt.log)) < wanted):
                assert time.monotonic() < until, attempt.log[-3_000:]
                time.sleep(0.005)
            if attempt.end is None:
                time.sleep(dice.uniform(0, 0.03))
                attempt.ask_to_stop()
            end, log = attempt.ended()
            lines += steps_of(log)
            if end.outcome is LeaseOutcome.SUCCEEDED:
                return folder / "final.pt", lines, count
            assert end.outcome is LeaseOutcome.SAVED, (end, log[-3_000:])
            count += 1
    finally:
        machine.close()
