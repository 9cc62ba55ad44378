"""Devices that Ray has lost come back: of placement groups that it has removed, and whose raylets never heard of it."""

import asyncio
import secrets
import time

import pytest
import pytest_asyncio
import ray
from ray.core.generated import common_pb2, node_manager_pb2
from ray.util.placement_group import placement_group, remove_placement_group

from fabric.enforcement import leaks
from fabric.gate.events import LeaseFinished, LeaseOutcome, NodeDrain
from fabric.inventory.ray_tables import RayTables
from tests.cluster.ray_cluster.test_ray_squatters import held, watched

__all__ = ["watched"]
pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

BUNDLE = {"CPU": 1.0, "GPU": 1.0, "H100": 1.0}
DEADLINE_S = 40


def prepared(node, group_id, *, is_committed):
    """Have a raylet hold a bundle for a group, as it does when Ray's control store has forgotten to tell it of the group's end."""
    tables = RayTables.here()
    identifier = common_pb2.Bundle.BundleIdentifier(placement_group_id=bytes.fromhex(group_id), bundle_index=0)
    bundle = common_pb2.Bundle(bundle_id=identifier, unit_resources=BUNDLE, node_id=bytes.fromhex(node.ray_id))
    raylet = tables._raylet(node.address, node.port)
    assert raylet.PrepareBundleResources(
        node_manager_pb2.PrepareBundleResourcesRequest(bundle_specs=[bundle]), timeout=5
    ).success
    if is_committed:
        raylet.CommitBundleResources(node_manager_pb2.CommitBundleResourcesRequest(bundle_specs=[bundle]), timeout=5)


def removed_group():
    """One that was there, and that Ray has removed."""
    made = placement_group([BUNDLE], lifetime="detached", name="fabric/gone")
    ray.get(made.ready(), timeout=30)
    remove_placement_group(made)
    return made.id.hex()


@pytest_asyncio.fixture(loop_scope="module")
async def h100(watched):
    """The node, with nothing kept warm on it."""
    await until(watched, {})
    return watched.cluster._nodes["h1"]


async def until(world, wanted, *, within_s=DEADLINE_S):
    deadline = time.monotonic() + within_s
    while (found := await asyncio.to_thread(held, world)) != wanted:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("is_committed", [True, False], ids=["committed", "only prepared"])
async def test_a_device_of_a_group_that_ray_has_removed_comes_back(watched, h100, is_committed):
    group_id = await asyncio.to_thread(removed_group)
    await until(watched, {})
    await asyncio.to_thread(prepared, h100, group_id, is_committed=is_committed)
    await until(watched, {"h1": 1})
    await until(watched, {})


async def test_a_device_of_a_group_that_ray_knows_nothing_of_comes_back(watched, h100):
    await asyncio.to_thread(prepared, h100, secrets.token_bytes(18).hex(), is_committed=True)
    await until(watched, {"h1": 1})
    await until(watched, {})


async def test_leases_that_live_keep_their_devices_meanwhile(watched, h100):
    lease = watched.lease(watched.call(_sleeper, leaks.RETURN_S * 2))
    await watched.start(lease)
    group_id = await asyncio.to_thread(removed_group)
    await asyncio.to_thread(prepared, h100, group_id, is_committed=False)
    finished = await watched.wait(LeaseFinished, lease.lease_id, within_s=60)
    assert finished.outcome is LeaseOutcome.SUCCEEDED
    await watched.remove(lease.lease_id)
    await until(watched, {})


def _sleeper(seconds):
    import time

    time.sleep(seconds)


async def test_a_device_that_does_not_come_back_is_not_sold_and_told(watched, h100, monkeypatch):
    """Nobody knows of which group it is."""
    monkeypatch.setattr(leaks, "STUCK_S", 3.0)
    lost = secrets.token_bytes(18).hex()
    before = len(watched.events)
    await asyncio.to_thread(prepared, h100, lost, is_committed=False)
    deadline = time.monotonic() + DEADLINE_S
    while not any(isinstance(e, NodeDrain) and e.node_id == "h1" and e.cordon for e in watched.events[before:]):
        assert time.monotonic() < deadline, watched.events[before:]
        await asyncio.sleep(0.2)
    assert dict(watched.cluster._reconciler.stuck) == {"h1": 1}
    await asyncio.to_thread(prepared, h100, lost, is_committed=True)  # by its name it can be given back
    await until(watched, {})
    deadline = time.monotonic() + DEADLINE_S
    while watched.cluster._reconciler.stuck:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def test_a_node_of_the_fabrics_own_is_started_anew_and_has_all_its_devices(watched, monkeypatch):
    """The last one on this node: as `fabric up --local` looks after its nodes."""
    monkeypatch.setattr(leaks, "STUCK_S", 1.0)
    monkeypatch.setattr(leaks, "RESTART_S", 3.0)
    await until(watched, {})
    node, found = watched.cluster._nodes["a1"], leaks.Leaks(restarts=True)
    bundle = {**BUNDLE, "A100": BUNDLE["H100"]}
    del bundle["H100"]
    monkeypatch.setattr(f"{__name__}.BUNDLE", bundle)
    await asyncio.to_thread(prepared, node, secrets.token_bytes(18).hex(), is_committed=False)
    deadline, told = time.monotonic() + DEADLINE_S, []
    while not told:
        assert time.monotonic() < deadline, found.stuck
        found.see({node.ray_id: 1.0}, unknown=(), at=time.monotonic())
        await asyncio.to_thread(found.mend, RayTables.here(), [node], at=time.monotonic())
        await asyncio.sleep(0.3)
        told = watched.local.mend()
    assert "node a1 had ended" in told[0]
    while watched.local.away:
        assert time.monotonic() < deadline
        watched.local.return_nodes([each["NodeID"] for each in ray.nodes() if each["Alive"]])
        await asyncio.sleep(0.3)
    while (new := watched.cluster._nodes.get("a1")) is None or new.ray_id == node.ray_id:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.3)
    assert new.devices == node.devices
    await until(watched, {})
