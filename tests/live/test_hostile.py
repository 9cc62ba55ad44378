"""Jobs that say what nobody should, and processes that die under them: the money comes out right, the gate comes up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fabric.errors import FabricError, JobFailed
from fabric.units import UHS_PER_CT
from tests.live.test_house import busy_for, gate_pid, settled, verified, wait_for_state


def restarted(running, acme):
    """The gate, killed and come again from its journal."""
    os.kill(gate_pid(running), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        try:
            return acme.balance()
        except FabricError:
            assert time.monotonic() < deadline, "the gate does not come up again"
            time.sleep(0.5)


def processes_of(running, title):
    found = psutil.Process(running.pid).children(recursive=True)
    return [process for process in found if process.is_running() and process.name().startswith(title)]


def test_what_a_job_says_never_keeps_the_gate_from_coming_up_again(acme, running):
    def unspeakable():
        raise ValueError("caf\udce9.txt \0 " + "x" * 100_000)

    def counts_in_fractions():
        from fabric import context

        context.current()._on_saved(1.5, "soon", 0)
        context.current()._on_saved(2**70, 1, 0)
        time.sleep(1)
        return "done"

    beside = acme.submit(busy_for, 3, tokens="0.1", accelerators="H100:1")
    failing = acme.submit(unspeakable, tokens="0.1", accelerators="A100:1")
    lying = acme.submit(counts_in_fractions, tokens="0.1", accelerators="A100:1")
    with pytest.raises(JobFailed):
        failing.result(timeout=90)
    with pytest.raises(JobFailed, match="makes no sense"):
        lying.result(timeout=90)
    assert beside.result(timeout=90) == "done"
    burned = sum(settled(job).burned_uhs for job in (beside, failing, lying))
    assert len(failing.info().error) < 10_000
    assert restarted(running, acme).free_uhs == 10 * UHS_PER_CT - burned
    verified(acme, running)


def test_a_runner_that_is_killed_costs_what_it_ran(acme, running):
    job = acme.submit(busy_for, 120, tokens="0.5", accelerators="H100:1")
    wait_for_state(job, "running")
    time.sleep(2)
    began = time.monotonic()
    for process in processes_of(running, "ray::Runner"):
        process.kill()
    with pytest.raises(JobFailed, match="worker_died"):
        job.result(timeout=90)
    assert time.monotonic() - began < 60
    cost = settled(job)
    (record,) = acme.usage(job_id=job.id)
    assert record.charged_uhs == cost.burned_uhs > 0
    assert acme.balance().free_uhs == 10 * UHS_PER_CT - cost.burned_uhs
    verified(acme, running)


def test_a_job_goes_on_and_is_metered_when_the_nodes_agent_is_killed(acme, running):
    job = acme.submit(busy_for, 8, tokens="0.1", accelerators="H100:1")
    wait_for_state(job, "running")
    time.sleep(2)
    agents = processes_of(running, "ray::NodeAgent")
    assert agents
    for process in agents:
        process.kill()
    assert job.result(timeout=90) == "done"
    cost = settled(job)
    (record,) = acme.usage(job_id=job.id)
    # All eight seconds of a busy H100 are paid, give or take what the last sample may miss, and none twice.
    assert 6_500_000 <= record.charged_uhs <= 14_000_000
    assert acme.balance().free_uhs == 10 * UHS_PER_CT - cost.burned_uhs
    verified(acme, running)


def test_a_job_of_a_customer_whose_own_machine_went_to_sleep_is_there_when_it_wakes(acme, running, tmp_path):
    job = acme.submit(busy_for, 3, tokens="0.1", accelerators="H100:1")
    watching = subprocess.Popen(
        [str(Path(sys.executable).with_name("fabric")), "logs", "--follow", job.id],
        env={
            **os.environ,
            "FABRIC_ADDRESS": running.address,
            "FABRIC_API_KEY": acme.client.profile.api_key,
            "FABRIC_CA": running.ca,
            "FABRIC_ACCOUNT": acme.client.profile.account,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    time.sleep(0.5)
    watching.send_signal(signal.SIGSTOP)
    assert job.result(timeout=90) == "done"
    watching.send_signal(signal.SIGCONT)
    assert watching.wait(60) == 0, watching.stderr.read()
    watching.stderr.close()
