"""Which groups of nodes a request may go to, and which of them come first."""

from collections.abc import Iterable, Mapping, Sequence

from fabric.placement.divided import is_divided
from fabric.placement.fitting import Group, group_name
from fabric.placement.jobs import INFERENCE, Request
from fabric.placement.state import PlacementState, Queued
from fabric.units import PPM, AccountId, Fraction, NodeId

Groups = Mapping[str, Group]
Place = tuple[str, str, AccountId | None]
"""A pool, a type, and whose."""


def groups_for(
    state: PlacementState, groups: Groups, request: Request, *, preemptible: bool, guests: bool
) -> tuple[Group, ...]:
    """Where a request may go, best first: its own cells; for inference reserved nodes, then idle spot ones; for the rest spot,
    and what is lent (the cells of others only to `guests`). Who names no type gets them pool by pool, in no order that the
    nodes came in. A part of a device is had where devices are divided so for good, or can be.
    """
    types = request.accelerators or tuple(sorted(state.accelerators))
    places: list[Place] = [("dedicated", kind, request.account_id) for kind in types]
    if request.service == "inference":
        places += [(pool, kind, None) for pool in ("reserved", "spot") for kind in types]
    else:
        pools = ("spot", "reserved") if preemptible else ("spot",)
        pairs = [(kind, pool) for kind in types for pool in pools]
        if not request.accelerators:
            pairs.sort(key=lambda pair: pools.index(pair[1]))
        places += [(pool, kind, None) for kind, pool in pairs]
    found = _at(groups, places, request.fraction)
    if guests and preemptible and request.service != "inference" and state.policy.lend_dedicated:
        found += _cells_of_others(groups, request, types)
    if barred := state.policy.barred(request.grace_us) if request.is_movable(preemptible) else ():
        found = [group for group in found if group.pool not in barred]
    return tuple(group for group in found if not request.notice_us or group.gives(request.notice_us))


def by_need(groups: Sequence[Group], queued: Queued) -> tuple[Group, ...]:
    """For who may have any type, the types that others need least first: pool by pool what is divided for good before what
    would have to be, those that nobody waits for who must have them, then by how fast they are for this job and how little is
    used by who must have them, then the emptiest.
    """
    request = queued.request
    speeds = dict(request.speeds)

    def key(group: Group) -> tuple[int, bool, bool, int, int, str]:
        at_home = group.is_home_of(request.account_id, queued.rank)
        pool = (group.owner is None) + (not at_home) * 2 + (queued.rank == INFERENCE and group.pool == "spot")
        size = max(sum([each * count for each, count in group.standing.items()]), 1)
        speed = speeds.get(group.accelerator, PPM) * max(size - group.typed_devices, 0) // size
        return pool, is_divided(group, request), group.typed > 0, -speed, -group.free, group.name

    return tuple(sorted(groups, key=key))


def _at(groups: Groups, places: list[Place], fraction: Fraction | None) -> list[Group]:
    if fraction is None:
        names = [group_name(*place) for place in places]
        return [groups[name] for name in names if name in groups]
    names = [group_name(*place, divided) for place in places for divided in (fraction, None)]
    return [groups[name] for name in names if name in groups and groups[name].takes(fraction)]


def _cells_of_others(groups: Groups, request: Request, types: tuple[str, ...]) -> list[Group]:
    cells = [group for group in groups.values() if group.owner not in (None, request.account_id)]
    lent = [group for group in cells if group.accelerator in types and _suits(group, request.fraction)]
    return sorted(lent, key=lambda group: (types.index(group.accelerator), group.name))


def _suits(group: Group, fraction: Fraction | None) -> bool:
    return group.fraction is None if fraction is None else group.takes(fraction)


def may_be_strewn(state: PlacementState, queued: Queued) -> bool:
    """Whether it takes devices of several nodes though one could have them all: what takes what it gets, and what has waited
    long, as larger gangs take any and leave it no whole node. A model never does: its devices talk at each token.
    """
    if queued.request.may_be_strewn or queued.rank == INFERENCE:
        return queued.request.may_be_strewn
    waited_us = state.planned_at_us - queued.queued_at_us
    return waited_us >= state.policy.whole_node_waits * state.policy.waits_us[queued.rank]


def least_notice_us(state: PlacementState, groups: Groups, nodes: Iterable[NodeId] | None = None) -> int | None:
    """The least notice that any of these nodes (None = of all that are up) gives; None = all give enough."""
    if nodes is None:
        told = [group.notice_us for group in groups.values()]
    else:
        among = [state.nodes[node_id] for node_id in nodes if node_id in state.nodes]
        told = [node.node.notice_us for node in among if node.status != "down"]
    return min((notice_us for notice_us in told if notice_us is not None), default=None)
