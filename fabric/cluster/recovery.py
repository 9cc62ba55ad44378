"""What outlived the gate's process: runners, which know their orders, and the groups of bare leases."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import ray
import structlog
from ray.util import list_named_actors
from ray.util.placement_group import placement_group_table

from fabric.cluster.attempts import Attempt
from fabric.cluster.placement_groups import Group, Groups, Seated, group_of
from fabric.cluster.services import Services
from fabric.cluster.settings import ClusterSettings, LeaseInfo
from fabric.errors import NotFound, Unavailable
from fabric.gate.events import JobKind
from fabric.gate.instructions import Lease
from fabric.gate.views import LeaseView
from fabric.inventory.nodes import Node
from fabric.storage.layout import lease_info_key
from fabric.system.guarded import Admitted, Stranger, is_ours, secret_of
from fabric.system.unpickling import Refused
from fabric.units import AccountId, JobId, LeaseId, NodeId
from fabric.worker.runner import Described, Order

_ANSWER_WITHIN_S: Final = 15.0
"""A runner that is silent for longer counts as dead, and its job as lost: a busy machine must not get that far."""
_ARCHIVE_S: Final = 15.0
"""A start of the gate that needs the archive and doesn't hear from it fails, says so, and is tried again."""
_log = structlog.get_logger(__name__)


async def survivors(
    nodes: Mapping[NodeId, Node], groups: Groups, settings: ClusterSettings
) -> list[tuple[Lease, Group, list[Order]]]:
    """Leases whose runners all live, adopted; runners that never had work, or of a gang with dead ranks, are ended.

    A runner that was kept warm still has its last order: its lease is unknown to the gate by now, and is removed once
    more, which gives the runner back.
    """
    by_group: dict[str, list[tuple[Admitted, Described]]] = {}
    there, unknown = await _runners(settings)
    addresses = {node.address for node in nodes.values()}
    groups.end_unseated((name, address) for name in unknown for address in addresses)
    for actor, described in there:
        by_group.setdefault(described.placement_group_id, []).append((actor, described))
    found = []
    for group_id, members in by_group.items():
        members.sort(key=lambda member: member[1].bundle)
        orders = [described.order for _, described in members if described.order is not None]
        lease = _whole_lease(orders)
        if lease is None or any(share.node_id not in nodes for share in lease.shares):
            for actor, _ in members:
                await asyncio.to_thread(ray.kill, actor.actor, no_restart=True)
            continue
        group = group_of(group_id, lease.shares, lease.fraction)
        group.runners = [
            Seated(actor=actor, seat=described.seat, node=nodes[share.node_id], name=actor.name)
            for (actor, described), share in zip(members, lease.shares, strict=True)
        ]
        groups.adopt(group)
        found.append((lease, group, orders))
    return found


async def lease_of(view: LeaseView, around: Services) -> Attempt | None:
    """A bare lease whose placement group is still there, to be watched again; None if it is gone or had runners."""
    key = lease_info_key(AccountId(view.account_id), JobId(view.job_id))
    try:
        kept = await asyncio.wait_for(asyncio.to_thread(around.archive.get, key), _ARCHIVE_S)
        info = msgspec.json.decode(kept, type=LeaseInfo)
    except NotFound:
        return None
    except TimeoutError:
        raise Unavailable(f"the archive has not answered for {_ARCHIVE_S:g} s", code="archive_away") from None
    group = group_of(info.placement_group_id, view.shares, view.fraction)
    table = await asyncio.to_thread(placement_group_table, group.placed)
    if info.lease_id != view.lease_id or table.get("state") != "CREATED":
        return None
    around.groups.adopt(group)
    lease = Lease(
        lease_id=LeaseId(view.lease_id),
        job_id=JobId(view.job_id),
        account_id=AccountId(view.account_id),
        name="",
        kind=JobKind.LEASE,
        epoch=0,
        accelerator=view.accelerator,
        shares=view.shares,
        payload="",
        fraction=view.fraction,
    )
    attempt = Attempt(lease=lease, around=around, group=group, info=info)
    await attempt.watch_again()
    return attempt


def _whole_lease(orders: Sequence[Order]) -> Lease | None:
    """The lease that all its ranks have orders for; None if some never got them."""
    leases = {order.lease.lease_id: order.lease for order in orders}
    lease = next(iter(leases.values()), None)
    return lease if lease is not None and len(leases) == 1 and len(orders) == len(lease.shares) else None


async def _runners(settings: ClusterSettings) -> tuple[list[tuple[Admitted, Described]], list[str]]:
    """Those that say what they are, and the names of the others."""
    named = await asyncio.to_thread(list_named_actors, all_namespaces=True)
    names = [
        entry["name"]
        for entry in named
        if entry["namespace"] == settings.namespace and entry["name"].startswith("runner-")
    ]
    found = await asyncio.gather(*(_described(name, settings) for name in names))
    unknown = [name for name, runner in zip(names, found, strict=True) if runner is None]
    return [runner for runner in found if runner is not None], unknown


async def _described(name: str, settings: ClusterSettings) -> tuple[Admitted, Described] | None:
    """The runner and what it says; None for one that doesn't answer, or that isn't ours: a job's, with a name like ours."""
    try:
        found = await asyncio.to_thread(ray.get_actor, name, settings.namespace)
        actor = Admitted(found, secret_of(settings.key, name), name=name)
        if not await is_ours(actor, within_s=_ANSWER_WITHIN_S):
            _log.warning("runner_not_ours", name=name)
            return None
        return actor, await asyncio.wait_for(actor.describe.remote(), _ANSWER_WITHIN_S)
    except (ValueError, Stranger, Refused, TimeoutError, ray.exceptions.RayError) as error:
        _log.warning("runner_silent", name=name, why=str(error)[:200])
        return None
