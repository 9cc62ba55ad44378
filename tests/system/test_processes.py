"""What a lease started ends with it, however it tries to stay."""

import os
import subprocess
import sys
import time

from fabric.system.processes import end_all, tree_of
from fabric.worker.zygote import environment_of

RUNNER = """
import os, subprocess, sys, time
from fabric.system.processes import adopt_orphans
adopt_orphans()
daemon = "import os, sys, time; os.setsid(); pid = os.fork(); pid and os._exit(0); os.write(1, b'%d\\\\n' % os.getpid()); time.sleep(300)"
subprocess.run([sys.executable, "-c", daemon], env={})
os.write(1, b"started\\n")  # in one piece: the daemon writes there, too
time.sleep(300)
"""
RESTARTS = """
import subprocess, sys
print("started", flush=True)
while True:
    subprocess.run([sys.executable, "-c", "import time; time.sleep(300)"])
"""


def started(code, *arguments, lines=1):
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    said = [process.stdout.readline().strip() for _ in range(lines)]
    return process, [int(line) for line in said if line != "started"]


def finish(process):
    process.kill()
    process.wait()
    process.stdout.close()


WILL_CARRY = """
import sys, time
from fabric.worker.zygote import carry_mark
print("started", flush=True)
sys.stdin.readline()
carry_mark("late.1")
print("started", flush=True)
time.sleep(300)
"""


def test_a_process_that_was_looked_at_before_it_carried_its_leases_id_is_found_by_it():
    environment = environment_of(dict(os.environ))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", WILL_CARRY], env=environment, **pipes)
    try:
        process.stdout.readline()
        assert tree_of((), lease_id="late.1") == []
        process.stdin.write("now\n")
        process.stdin.flush()
        process.stdout.readline()
        assert tree_of((), lease_id="late.1") == [process.pid]
        assert end_all((), lease_id="late.1")
    finally:
        process.stdin.close()
        finish(process)


def test_a_daemon_that_forgot_whose_it_is_stays_below_its_runner_and_ends_with_it():
    runner, [daemon] = started(RUNNER, lines=2)
    try:
        assert daemon in tree_of([runner.pid], lease_id="job-1.1")
        assert end_all([runner.pid], lease_id="job-1.1")
        assert tree_of([daemon], lease_id="job-1.1") == []
        assert runner.wait(10) < 0
    finally:
        finish(runner)


def test_what_is_started_again_whenever_it_is_killed_ends_too():
    runner, _ = started(RESTARTS)
    try:
        while len(tree_of([runner.pid], lease_id="job-1.1")) == 1:
            time.sleep(0.01)
        assert end_all([runner.pid], lease_id="job-1.1", timeout_s=30)
        assert runner.wait(10) < 0
    finally:
        finish(runner)
