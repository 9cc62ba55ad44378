"""The second promise on a real cluster: evicted by reserved demand, nothing lost, resumed on whatever there is."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.live.test_house import settled, wait_for_state

HERE = Path(__file__).parent
STEPS = 150


def digest_in(log):
    return re.search(r"digest (\w+)", log)[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The weights that the script ends with where nobody interrupts it."""
    command = [sys.executable, HERE / "train_small.py", str(STEPS), "0"]
    done = subprocess.run(
        command, cwd=tmp_path_factory.mktemp("plain"), capture_output=True, text=True, check=True, timeout=120
    )
    return digest_in(done.stdout)


def wait_until(job, what, within_s=90):
    deadline = time.monotonic() + within_s
    while not what(info := job.info()):
        assert time.monotonic() < deadline, (
            f"{job.id} is {info.state} ({info.reason}), step {info.step}: {info.timeline}"
        )
        time.sleep(0.1)
    return info


def hold(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        from fabric import context

        if context.current().wait_for_stop(0.1):
            return


def test_reserved_demand_evicts_training_which_resumes_on_another_type_and_count_with_the_same_weights(
    acme, uninterrupted
):
    others = [acme.submit(hold, 600, tokens="2", accelerators="H100:3", preemptible=False)]
    wait_for_state(others[0], "running")
    train = acme.submit(
        "train_small.py",
        STEPS,
        "0.05",
        working_dir=HERE,
        tokens="1",
        accelerators=["H100:2-4", "A100:2-4"],
    )
    info = wait_until(train, lambda info: info.step >= 20)
    assert (info.accelerator, info.devices, list(info.nodes)) == ("H100", 2, ["h100-reserved"])
    assert (info.steps_total, info.HasField("loss_micro")) == (STEPS, True)
    others.append(acme.submit(hold, 600, tokens="2", accelerators="H100:2", service="inference"))
    wait_for_state(others[1], "running")
    assert train.wait(timeout=120) == "succeeded"
    for other in others:
        other.cancel()
    assert digest_in("".join(train.logs())) == uninterrupted
    info = train.info()
    assert (info.attempts, info.accelerator, info.devices) == (2, "A100", 4)
    told = re.fullmatch(
        r"(?:WAITING \d+ s → )?RUNNING on 2 × H100 → EVICTED at step (\d+), durable in (\d+) m?s, 0 steps and"
        r" [\d.]+ CT lost → WAITING \d+ m?s → RESUMED on 4 × A100 → SUCCEEDED",
        info.timeline,
    )
    assert told, info.timeline
    assert info.saved_step >= int(told[1])
    assert info.grace_needed_us > 0
    assert settled(train).burned_uhs > 0
