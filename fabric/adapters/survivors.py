"""What outlived the gate's process: runners, which know their orders, and the groups of bare leases."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
import ray
import structlog
from ray.util import list_named_actors
from ray.util.placement_group import placement_group_table

from fabric.adapters.cluster_settings import ClusterSettings, LeaseInfo, lease_info_key
from fabric.adapters.groups import Group, Groups, Seated, group_of
from fabric.adapters.leases import Attempt, Surroundings
from fabric.adapters.nodes import Node
from fabric.adapters.runner import Described, Order
from fabric.errors import NotFound
from fabric.gate.events import JobKind
from fabric.gate.instructions import Lease
from fabric.gate.views import LeaseView
from fabric.units import AccountId, JobId, LeaseId, NodeId

_ANSWER_WITHIN_S = 5.0
_log = structlog.get_logger(__name__)


async def survivors(
    nodes: Mapping[NodeId, Node], groups: Groups, settings: ClusterSettings
) -> list[tuple[Lease, Group, list[Order]]]:
    """Leases whose runners all live, adopted; runners without work, or of a gang with dead ranks, are ended."""
    by_group: dict[str, list[tuple[Any, Described]]] = {}
    for actor, described in await _runners(settings):
        by_group.setdefault(described.placement_group_id, []).append((actor, described))
    found = []
    for group_id, members in by_group.items():
        members.sort(key=lambda member: member[1].bundle)
        orders = [described.order for _, described in members if described.order is not None]
        lease = orders[0].lease if orders else None
        if lease is None or len(orders) < len(lease.shares) or any(s.node_id not in nodes for s in lease.shares):
            for actor, _ in members:
                await asyncio.to_thread(ray.kill, actor, no_restart=True)
            continue
        group = group_of(group_id, lease.shares)
        group.runners = [
            Seated(actor=actor, seat=described.seat, node=nodes[share.node_id])
            for (actor, described), share in zip(members, lease.shares, strict=True)
        ]
        groups.adopt(group)
        found.append((lease, group, orders))
    return found


async def lease_of(view: LeaseView, around: Surroundings) -> Attempt | None:
    """A bare lease whose placement group is still there, to be watched again; None if it is gone or had runners."""
    key = lease_info_key(AccountId(view.account_id), JobId(view.job_id))
    try:
        info = msgspec.json.decode(await asyncio.to_thread(around.archive.get, key), type=LeaseInfo)
    except NotFound:
        return None
    table = await asyncio.to_thread(placement_group_table)
    if info.lease_id != view.lease_id or table.get(info.placement_group_id, {}).get("state") != "CREATED":
        return None
    group = group_of(info.placement_group_id, view.shares)
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
    )
    attempt = Attempt(lease=lease, around=around, group=group, info=info)
    await attempt.watch_again()
    return attempt


async def _runners(settings: ClusterSettings) -> list[tuple[Any, Described]]:
    named = await asyncio.to_thread(list_named_actors, all_namespaces=True)
    names = [
        entry["name"]
        for entry in named
        if entry["namespace"] == settings.namespace and entry["name"].startswith("runner-")
    ]
    found = []
    for name in names:
        try:
            actor = await asyncio.to_thread(ray.get_actor, name, settings.namespace)
            found.append((actor, await asyncio.wait_for(actor.describe.remote(), _ANSWER_WITHIN_S)))
        except (ValueError, TimeoutError, ray.exceptions.RayError) as error:
            _log.warning("runner_silent", name=name, why=str(error)[:200])
    return found
