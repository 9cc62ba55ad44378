"""However far a replica's process has come, and however it ends: when its lease is removed its devices are back, and its node
lives. Also where the gate is another one by then, and where Ray drains the node.
"""

import asyncio
import os
import time
from contextlib import suppress
from itertools import product

import psutil
import pytest
import ray

from fabric.cluster.ray_cluster import RayCluster
from fabric.gate.events import JobKind, LeaseStarted
from fabric.inventory.ray_tables import RayTables
from serving.host.serve_site import options_in
from tests.cluster.ray_cluster.test_ray_drained import drain

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

STARTS_S = 100
"""In which a process is there: for one that it has started and that is dead, a raylet waits a minute, and starts few at once."""
DEADLINE_S = 30
QUIET_S = 3
"""Longer than what Ray says of its resources is old, and than a raylet needs to die of them."""
MARK = "STEPS_OF_A_REPLICA"
STEPS = ("asked for", "its process is there", "it is being made", "it answers")
ENDS = ("not at all", "by itself", "by Serve")
GATES = ("the same", "another", "one that knows nothing of it")
SHORT = {
    ("asked for", "by Serve", GATES[2]),
    ("its process is there", "not at all", GATES[2]),
    ("its process is there", "by itself", "another"),
    ("it answers", "not at all", "the same"),
}
"""Cases of the normal run."""


@ray.remote
class Replica:
    def __init__(self):
        time.sleep(1.5)

    def here(self):
        return os.getpid()


def processes(mark):
    """Of the replica: its own variable marks what Ray starts for it alone."""
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.environ().get(MARK) == mark:
                found.append(each)
    return found


async def at(step, replica, mark):
    """Wait until it is there."""
    if step == "it answers":
        await replica.here.remote()
    deadline = time.monotonic() + STARTS_S
    while step != "asked for":
        there = await asyncio.to_thread(processes, mark)
        if step != "it is being made" and there:
            return
        if any(b"Replica" in bytes(each.name() + " ".join(each.cmdline()), "utf-8") for each in there):
            return
        assert time.monotonic() < deadline, f"{step}: {[each.cmdline() for each in there]}"
        await asyncio.sleep(0.01)


async def end(how, replica, mark):
    if how == "by Serve":
        await asyncio.to_thread(ray.kill, replica, no_restart=True)
    for each in await asyncio.to_thread(processes, mark) if how == "by itself" else ():
        with suppress(psutil.Error):
            each.kill()


async def another_gate(world, leases):
    """The one before ends in the middle of whatever it did. This one knows of these leases."""
    before = world.cluster
    for task in before._tasks:
        task.cancel()
    world.cluster = RayCluster(report=world.report, archive=world.archive, settings=world.settings)
    await world.cluster.start()
    await world.cluster.reconcile([world.view(lease) for lease in leases])


async def is_whole(world, name, *, may_leave=False):
    """The node's raylet lives, all devices are back, and nothing is known of a group there; for a while. Or it has left in order,
    as one that Ray drains does when nothing is on it any more.
    """
    (raylet,), nodes = world.local._raylets[name].all_processes["raylet"], dict(world.cluster._nodes)
    deadline, quiet_since = time.monotonic() + DEADLINE_S, None
    while quiet_since is None or time.monotonic() - quiet_since < QUIET_S:
        await world.cluster._unleased.end_all()
        ended = raylet.process.poll()
        if may_leave and ended == 0:
            return
        assert ended is None, "its raylet has died"
        tables, node = RayTables.here(), nodes[name]
        free = (await asyncio.to_thread(tables.free)).get(node.ray_id, {})
        whole = (await asyncio.to_thread(tables.whole)).get(node.ray_id, {})
        held = {key: amount for key, amount in whole.items() if free.get(key, 0.0) < amount or "_group_" in key}
        held = {key: amount for key, amount in held.items() if key in node.held(1) or "_group_" in key}
        quiet_since = None if held or not whole else quiet_since or time.monotonic()
        assert time.monotonic() < deadline, held
        await asyncio.sleep(0.2)


async def lived_and_ended(world, node, step, how, *, gate, drained=False):
    name, accelerator = node
    lease = world.lease({}, kind=JobKind.LEASE, shares=((name, 1),), accelerator=accelerator)
    await world.start(lease)
    await world.wait(LeaseStarted, lease.lease_id)
    info = world.cluster.lease_info(lease.lease_id)
    bundles = [{"resources": dict(each.resources)} for each in info.bundles]
    options = options_in({"placement_group_id": info.placement_group_id, "bundles": bundles, "env_vars": info.env_vars})
    options["runtime_env"]["env_vars"][MARK] = mark = f"{lease.lease_id}-{step}-{how}"
    replica = Replica.options(**options, max_restarts=0).remote()
    await at(step, replica, mark)
    if drained:
        drain(world.cluster._nodes[name].ray_id, within_s=600)
    await end(how, replica, mark)
    if gate != "the same":
        await another_gate(world, [lease] if gate == "another" else [])
    if gate != "one that knows nothing of it":
        await world.remove(lease.lease_id)
    await is_whole(world, name, may_leave=drained)
    deadline = time.monotonic() + DEADLINE_S
    while left := await asyncio.to_thread(processes, mark):
        assert time.monotonic() < deadline, left
        await world.cluster._end_strays()  # what was only being started has the mark of no lease that lives
        await asyncio.sleep(0.2)


@pytest.mark.parametrize(
    ("step", "how", "gate"),
    [case if case in SHORT else pytest.param(*case, marks=pytest.mark.soak) for case in product(STEPS, ENDS, GATES)],
)
async def test_a_lease_gives_its_devices_back_wherever_its_replica_has_come(world, step, how, gate):
    node = ("n1", "910B") if how == "by itself" else ("a1", "A100")
    await lived_and_ended(world, node, step, how, gate=gate)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("node", "step"), [(("a1", "A100"), STEPS[1]), (("h1", "H100"), STEPS[2]), (("n1", "910B"), STEPS[3])]
)
async def test_so_it_is_on_a_node_that_ray_drains(world, node, step, comes_back):
    comes_back(node[0])
    await lived_and_ended(world, node, step, "by itself", gate="another", drained=True)
