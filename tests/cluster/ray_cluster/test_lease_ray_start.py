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
