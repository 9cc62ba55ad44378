"""What other programs of the cluster take without a lease is found and ended, whatever it is and whatever goes wrong."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytest_asyncio

from fabric.cluster.ray_cluster import RayCluster
from fabric.cluster.settings import ClusterSettings
from fabric.gate.events import LeaseFinished, LeaseOutcome, LeaseStarted
from fabric.inventory.ray_tables import RayTables
from tests.cluster.ray_cluster.squatters import WAYS

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

SHORT = {
    "restartable actor",
    "detached actor of another namespace",
    "task with retries",
    "task that stands still",
    "detached placement group",
    "placement groups in a loop",
}
"""Ways of the normal run: one for each thing that Ray would bring back."""
DEADLINE_S = 30
QUIET_S = 4
"""Longer than a retry, or a restart, takes to come back."""


def held(world):
    """How many devices are held outside of what is ours, by the name Ray gives them."""
    tables, ours = RayTables.here(), world.cluster._groups.ours()
    free = tables.free()
    found = {}
    for node in world.cluster._nodes.values():
        mine = sum(
            bundle.get(node.resource, 0)
            for row in tables.groups()
            if row.id in ours
            for node_id, bundle in row.bundles
            if node_id == node.ray_id
        )
        left = free.get(node.ray_id, {})
        found[node.node_id] = max(node.devices - left.get(name, 0) - mine for name in node.held(1))
    return {node_id: count for node_id, count in found.items() if count > 0}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(world):
    """The same cluster as a gate watches it: all the time."""
    watching = RayCluster(
        report=world.report,
        archive=world.archive,
        settings=ClusterSettings(**{**vars_of(world.settings), "reconcile_s": 0.5, "metrics": False}),
    )
    before, world.cluster = world.cluster, watching
    await before.close()
    await watching.start()
    await watching.reconcile([])
    yield world


def vars_of(settings):
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


def says_that_it_holds(process):
    """Waits for it; False = it has ended without."""
    return b"holds\n" in iter(process.stdout.readline, b"")


@pytest_asyncio.fixture(loop_scope="module")
async def squat(watched, tmp_path):
    """Starts a program that takes a device in some way; returns when it has it."""
    started = []

    async def begin(way):
        removed = watched.cluster._reconciler.health.removed
        process = await asyncio.to_thread(
            subprocess.Popen,
            [
                sys.executable,
                str(Path(__file__).with_name("squatters.py")),
                watched.local.address,
                way,
                str(tmp_path / "told"),
            ],
            stdout=subprocess.PIPE,
        )
        started.append(process)
        # Before it says so, it may have been told already that it was ended, or have been ended as a whole, or again and again.
        said = asyncio.ensure_future(asyncio.to_thread(says_that_it_holds, process))
        while not (await asyncio.wait({said}, timeout=0.2))[0]:
            if watched.cluster._reconciler.health.removed > removed:
                return process
        is_silent = not [task for task in watched.cluster._tasks if not task.done()]
        assert said.result() or is_silent or watched.cluster._reconciler.health.removed > removed, (
            "it has ended, and held nothing"
        )
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


async def until_nothing_is_held(world):
    deadline = time.monotonic() + DEADLINE_S
    quiet_since = None
    while quiet_since is None or time.monotonic() < quiet_since + QUIET_S:
        found = await asyncio.to_thread(held, world)
        quiet_since = None if found else quiet_since or time.monotonic()
        assert time.monotonic() < deadline, f"held without a lease: {found}"
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("way", [way if way in SHORT else pytest.param(way, marks=pytest.mark.soak) for way in WAYS])
async def test_what_another_program_takes_without_a_lease_is_ended_for_good(watched, squat, way):
    await squat(way)
    await until_nothing_is_held(watched)


async def test_a_failure_with_one_item_keeps_nothing_from_the_rest(watched, squat, monkeypatch):
    """Ending actors fails; what else is held is ended all the same, and the failure is counted."""

    def fail(*_):
        raise ValueError("something that nobody thought of")

    with monkeypatch.context() as patch:
        patch.setattr(RayTables, "kill_actor", fail)
        await squat("task with retries")
        await squat("placement group")
        await until_nothing_is_held(watched)
        await squat("detached actor of another namespace")
        await asyncio.sleep(1)
        assert watched.cluster._reconciler.health.failures > 0
    await until_nothing_is_held(watched)


async def test_a_leased_job_goes_on_while_others_are_ended(watched, squat):
    lease = watched.lease(watched.call(time.sleep, 6))
    await watched.start(lease)
    await watched.wait(LeaseStarted, lease.lease_id)
    await squat("restartable actor")
    await squat("task in a placement group")
    await until_nothing_is_held(watched)
    finished = await watched.wait(LeaseFinished, lease.lease_id)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    await watched.remove(lease.lease_id)


@pytest_asyncio.fixture(loop_scope="module")
async def silent(watched):
    """Its gate is gone, as if killed: nothing that it did is done any more. Another one comes afterwards."""
    killed = watched.cluster
    await asyncio.sleep(1.5)  # it was heard
    for task in list(killed._tasks):
        task.cancel()
    yield watched
    watched.cluster = RayCluster(report=watched.report, archive=watched.archive, settings=killed._settings)
    await watched.cluster.start()
    await watched.cluster.reconcile([])
    await killed.close()


@pytest.mark.parametrize(
    "way",
    [
        "detached actor of another namespace",
        pytest.param("task with retries", marks=pytest.mark.soak),
        "task in a placement group",
    ],
)
async def test_what_is_taken_while_the_gate_is_dead_is_ended_too(silent, squat, way):
    await squat(way)
    await until_nothing_is_held(silent)


async def test_a_leased_job_goes_on_while_the_gate_is_dead_and_others_are_ended(watched, squat):
    lease = watched.lease(watched.call(time.sleep, 12))
    await watched.start(lease)
    await watched.wait(LeaseStarted, lease.lease_id)
    runners = {row.id for row in RayTables.here().actors() if row.group_id in watched.cluster._groups.used()}
    await asyncio.sleep(1.5)
    watching = [task for task in watched.cluster._tasks if "_every" in repr(task.get_coro())]
    for task in watching:
        task.cancel()
    await squat("restartable actor")
    await until_nothing_is_held(watched)
    assert runners
    assert runners <= {row.id for row in RayTables.here().actors()}
    finished = await watched.wait(LeaseFinished, lease.lease_id)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    await watched.remove(lease.lease_id)
