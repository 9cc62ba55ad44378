"""Programs that write into the folder that is kept of them, and what was committed of it."""

import textwrap

from fabric.checkpoints import restore_directory
from fabric.worker.checkpoint_folder import EVERY_VARIABLE, QUIET_VARIABLE

SOON = {EVERY_VARIABLE: "0.5", QUIET_VARIABLE: "60"}
NEVER = {EVERY_VARIABLE: "1000", QUIET_VARIABLE: "1000"}
HEAD = """
import itertools, json, mmap, os, signal, struct, subprocess, sys, threading, time
FOLDER = os.environ["FABRIC_CHECKPOINT_DIR"]
def write(name, text, part=200, pause_s=0.002):
    with open(os.path.join(FOLDER, name), "w") as file:
        for at in range(0, len(text), part):
            file.write(text[at:at + part]); file.flush(); time.sleep(pause_s)
"""


def begin(machine, code, *, command=("python", "x.py"), env=SOON):
    return machine.begin(*command, files={"x.py": HEAD + textwrap.dedent(code)}, env=env)


def committed(attempt, to):
    """What was committed last, as a new folder; None if nothing was."""
    return None if restore_directory(attempt.stage.context.checkpoints, to) is None else to
