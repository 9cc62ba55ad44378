"""What an engine has started ends with it, and nothing else of its process does."""

import subprocess
import sys
import time

import psutil

from serving.engines.parts.reaper import watch

PARENT = """
import subprocess, sys, time
sys.stdin.readline()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
print(child.pid, flush=True)
time.sleep(99)
"""


def python(code):
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def test_what_was_there_before_an_engine_goes_on_with_all_that_it_starts_meanwhile():
    before = python(PARENT)
    reaper = watch()
    engine = python(PARENT)
    for each in (before, engine):
        each.stdin.write("\n")
    others = psutil.Process(int(before.stdout.readline()))
    own = psutil.Process(int(engine.stdout.readline()))
    reaper.tell()
    reaper.close()
    try:
        assert engine.wait(10) == -9
        deadline = time.monotonic() + 10
        while own.is_running() and own.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert before.poll() is None
        assert others.is_running()
        assert others.status() != psutil.STATUS_ZOMBIE
    finally:
        others.kill()
        before.kill()
        for each in (before, engine):
            each.communicate()
