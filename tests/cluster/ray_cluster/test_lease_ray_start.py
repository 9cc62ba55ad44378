"""A program's own Ray starts, however busy the machine is, and whatever ends a part of it meanwhile."""

import pytest

from fabric.gate.events import LeaseOutcome

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


STARTS = """
import threading, time
import psutil, ray

def watch():
    while True:
        for process in psutil.Process().children():
            if process.name() == "raylet":
                {what}
                return
        time.sleep(0.005)

threading.Thread(target=watch, daemon=True).start()
ray.init()
print("up with", ray.cluster_resources()["GPU"])
"""
HELD = 'process.suspend(); print("it stands still", flush=True); time.sleep(40); process.resume()'
KILLED = 'process.kill(); print("it is killed", flush=True)'


@pytest.mark.parametrize(
    ("what", "said"),
    [
        pytest.param(HELD, "it stands still", marks=pytest.mark.soak, id="slow"),
        pytest.param(KILLED, "it is killed", id="killed"),
    ],
)
def test_a_program_whose_raylet_is_slow_or_ends_as_it_starts_runs(machine, what, said):
    """Slow is longer than Ray waits by itself: 30 s."""
    attempt = machine.begin("python", "x.py", files={"x.py": STARTS.format(what=what)})
    end, log = attempt.ended()
    assert (end.outcome, said in log, "up with 2" in log) == (LeaseOutcome.SUCCEEDED, True, True), (end.error, log)


BREAKS = """
import sys, time
import psutil, ray

ray.init()
raylet = next(process for process in psutil.Process().children() if process.name() == "raylet")
{how}
try:
    for _ in range(600):
        ray.get(ray.remote(lambda: 1).options(max_retries=0).remote())
        time.sleep(0.1)
finally:
    {then}
"""
AGENT = """
while not (agents := [each for each in raylet.children(recursive=True) if "agent" in " ".join(each.cmdline())]):
    time.sleep(0.1)
agents[0].kill()
"""
STORE = """
next(process for process in psutil.Process().children() if process.name() == "gcs_server").kill()
"""


@pytest.mark.parametrize(
    ("how", "then"),
    [
        pytest.param(AGENT, "pass", id="its agent, and the program fails"),
        pytest.param(
            "raylet.kill()", "sys.exit(7)", marks=pytest.mark.soak, id="its raylet, and it ends in its own way"
        ),
        pytest.param("raylet.kill()", "ray.shutdown()", marks=pytest.mark.soak, id="its raylet, and it ends its Ray"),
        pytest.param(STORE, "pass", marks=pytest.mark.soak, id="its control store"),
    ],
)
def test_a_program_whose_ray_is_killed_in_the_middle_is_interrupted_and_has_not_failed(machine, how, then):
    """A raylet ends with its agent."""
    attempt = machine.begin("python", "x.py", files={"x.py": BREAKS.format(how=how, then=then)})
    end, log = attempt.ended()
    assert (end.outcome, "ray_ended: its " in end.error) == (LeaseOutcome.INTERRUPTED, True), (end.error, log)


FAILS = """
import sys
import ray

ray.init()
print("squares", ray.get(ray.remote(lambda number: number * number).remote(7)))
{then}
"""


@pytest.mark.parametrize("then", ["sys.exit(3)", pytest.param("ray.shutdown(); sys.exit(3)", marks=pytest.mark.soak)])
def test_a_program_that_fails_while_its_ray_runs_has_failed(machine, then):
    end, log = machine.begin("python", "x.py", files={"x.py": FAILS.format(then=then)}).ended()
    assert (end.outcome, "ray_" in end.error.partition("\n")[0]) == (LeaseOutcome.FAILED, False), (end.error, log)
    assert "squares 49" in log
