"""What a lease has left is ended by a node agent that is younger than the lease, and what a lease has goes on. On Ray."""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import ray

from fabric.gate.events import JobKind, LeaseFinished, LeaseOutcome
from fabric.results import read_parcel
from fabric.storage.results import read_result
from fabric.system.processes import FABRIC_VARIABLE, LEASE_VARIABLE, seen_of

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]


def result_of(world, finished):
    return read_parcel(read_result(world.archive, finished.result_ref)).value()


async def with_another_agent(world):
    """As when the node of the machine's agent has died, or itself."""
    agents = world.cluster._agents
    ((address, before),) = agents._actors.items()
    ray.kill(before.actor, no_restart=True)
    async with asyncio.timeout(60):
        while agents._actors.get(address, before) is before:
            await world.cluster._end_strays()
            await asyncio.sleep(0.1)


@contextmanager
def process_of(lease_id, fabric_id):
    environment = {**os.environ, LEASE_VARIABLE: lease_id, FABRIC_VARIABLE: fabric_id}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment) as process:
        yield process
        process.kill()


async def ended(world, process):
    async with asyncio.timeout(60):
        while process.poll() is None:
            await world.cluster._end_strays()
            await asyncio.sleep(0.1)


async def test_a_process_that_comes_to_life_with_the_mark_of_a_lease_that_has_ended_is_ended(world):
    ours = world.settings.fabric_id
    lease = world.lease(world.call(time.sleep, 0), kind=JobKind.PROGRAM)
    await world.run(lease)
    await with_another_agent(world)
    with process_of(lease.lease_id, ours) as left, process_of(lease.lease_id, "another's") as other:
        await ended(world, left)
        await world.cluster._end_strays()
        assert other.poll() is None


def crowd(told):
    """A job with a child of its own, one in a session of its own, one that knows nothing of the lease; waits for a word."""
    import subprocess
    import sys
    import time
    from pathlib import Path

    words = [sys.executable, "-c", "import time; time.sleep(600)"]
    children = [
        subprocess.Popen(words),
        subprocess.Popen(words, start_new_session=True),
        subprocess.Popen(words, start_new_session=True, env={}),
    ]
    Path(told).write_text("up")
    while Path(told).exists():
        time.sleep(0.05)
    alive = [child.poll() is None for child in children]
    for child in children:
        child.kill()
        child.wait()
    return alive


@pytest.mark.parametrize("kind", [JobKind.FUNCTION, JobKind.PROGRAM])
async def test_what_a_lease_has_goes_on_when_another_agent_comes(world, tmp_path, kind):
    told = tmp_path / "told"
    lease = world.lease(world.call(crowd, str(told)), kind=kind)
    await world.start(lease)
    async with asyncio.timeout(60):
        while not told.exists():
            await world.cluster._end_strays()
    for _ in range(2):
        await with_another_agent(world)
        for _ in range(10):
            await world.cluster._end_strays()
    told.unlink()
    finished = await world.wait(LeaseFinished, lease.lease_id)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    await world.remove(lease.lease_id)
    assert result_of(world, finished) == [True] * 3


async def test_a_runner_that_is_kept_for_the_next_lease_goes_on_when_another_agent_comes(world):
    for _ in range(2):
        finished, _ = await world.run(world.lease(world.call(os.getpid)))
        pids = [pid for group in world.cluster._groups._kept for pid in [runner.seat.pid for runner in group.runners]]
        assert result_of(world, finished) in pids
        await with_another_agent(world)
        for _ in range(10):
            await world.cluster._end_strays()
        assert [result_of(world, finished)] == [pid for pid in pids if seen_of(pid)]
