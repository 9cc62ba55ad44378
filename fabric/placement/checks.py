"""Questions that change nothing: can a request ever run, what is free, and does the state contradict itself."""

from collections.abc import Sequence

import msgspec

from fabric.placement import mixture
from fabric.placement.cluster import Cluster
from fabric.placement.fitting import Group, Shape, name_of
from fabric.placement.jobs import Request, Unplaceable
from fabric.placement.quotas import POOLS
from fabric.placement.state import PlacementState
from fabric.units import AccountId, Fraction, JobId, NodeId, format_fraction


class NodeFree(msgspec.Struct, frozen=True):
    """A node as people see it."""

    node_id: NodeId
    accelerator: str
    pool: str
    devices: int
    free: int
    status: str
    """up | draining | down"""
    dedicated_to: AccountId | None
    jobs: tuple[JobId, ...]
    units: int = 1
    """A device of it may be had in so many equal units; 1 = only whole."""
    fraction: Fraction | None = None
    """What is counted as its devices are such parts of devices."""
    free_units: tuple[int, ...] = ()
    """Of each device that is divided now, how many units are free."""
    division: str = ""
    """How its devices are divided, as people call it."""


def view_nodes(state: PlacementState, cluster: Cluster) -> tuple[NodeFree, ...]:
    return tuple(
        NodeFree(
            node_id=at.node.node_id,
            accelerator=at.node.accelerator,
            pool=at.node.pool,
            devices=at.node.devices,
            free=0 if at.status == "down" else at.free,
            status=at.status,
            dedicated_to=at.node.dedicated_to,
            jobs=cluster.divided.jobs_of(at.shares),
            units=at.node.units,
            division=at.node.division,
            fraction=at.node.fraction,
            free_units=tuple(each.free for each in at.divided.values()) if at.status != "down" else (),
        )
        for at in state.nodes.values()
    )


def check(request: Request, state: PlacementState, cluster: Cluster) -> Unplaceable | None:
    """Why the request can never run here as it is written; nodes that are down count, they may come back."""
    each = request.devices_per_node
    uneven = each is not None and (each < 1 or request.devices % each or request.least % each)
    if not 1 <= request.least <= request.devices or uneven:
        return Unplaceable("uneven_gang", {"devices": request.devices, "devices_per_node": each or 0})
    for accelerator in request.accelerators:
        if accelerator not in state.accelerators:
            return Unplaceable("unknown_accelerator", {"given": accelerator, "known": ", ".join(state.accelerators)})
    if amiss := _parts_amiss(request, cluster):
        return amiss
    impossible = _nowhere(request, state, cluster)
    if impossible is None or not barred(request, state, cluster):
        return impossible
    for longest_us in sorted({*state.policy.graces_us, 0}, reverse=True):
        shorter = msgspec.structs.replace(request, grace_us=min(longest_us, request.grace_us))
        impossible = _nowhere(shorter, state, cluster)
        if impossible is None:
            return Unplaceable("grace_too_long", {"grace_us": request.grace_us, "longest_us": longest_us})
    return impossible


def beyond_quotas(request: Request, cluster: Cluster) -> Unplaceable | None:
    """Whether the account could never have so many devices, whatever it gives up, because no quota lets it; None if it could."""
    if not cluster.guarantees.types or request.mixtures:
        return None
    found: tuple[int, str] | None = None
    for group in cluster.groups_for(request, preemptible=request.preemptible):
        most = (
            None
            if group.owner == request.account_id
            else cluster.guarantees.most(group.accelerator, request.account_id)
        )
        if most is None or most >= request.least:
            return None
        found = max(found or (most, group.accelerator), (most, group.accelerator))
    if found is None:
        return None
    return Unplaceable("over_quota", {"devices": request.least, "most": found[0], "accelerator": found[1]})


def barred(request: Request, state: PlacementState, cluster: Cluster) -> tuple[tuple[str, int], ...]:
    """Pools that would take the request if its grace weren't longer than theirs, and what the longest is there."""
    if not request.is_movable(request.preemptible) or not (pools := state.policy.barred(request.grace_us)):
        return ()
    would = cluster.groups_for(msgspec.structs.replace(request, grace_us=0), preemptible=True)
    longest = dict(zip(POOLS, state.policy.graces_us, strict=True))
    return tuple((pool, longest[pool]) for pool in dict.fromkeys(group.pool for group in would) if pool in pools)


def _parts_amiss(request: Request, cluster: Cluster) -> Unplaceable | None:
    """Whether it asks for parts that there are none of, or for whole devices of types that are had only in parts."""
    if request.fraction is None:
        offered = _only_parts(request, cluster)
        return Unplaceable("only_parts", {"offered": offered}) if offered else None
    if any(group.takes(request.fraction) for group in cluster.groups.values()):
        return None
    return Unplaceable(
        "no_such_fraction", {"fraction": format_fraction(request.fraction), "offered": _offered(cluster)}
    )


def _only_parts(request: Request, cluster: Cluster) -> str:
    """What can be had of the types that the request names, where that is instances alone, of devices divided for good; else ""."""
    named = [group for group in cluster.groups.values() if group.accelerator in request.accelerators]
    if not named or any(group.fraction is None for group in named):
        return ""
    return _offered(cluster, request.accelerators)


def _offered(cluster: Cluster, types: Sequence[str] = ()) -> str:
    """What parts of devices can be had: "1/7 of H100, 1/4 to 3/4 of A100"."""
    found: dict[str, None] = {}
    for group in sorted(cluster.groups.values(), key=lambda group: group.name):
        if types and group.accelerator not in types:
            continue
        if group.fraction is not None:
            found[f"{format_fraction(group.fraction)} of {group.accelerator}"] = None
        for units in sorted(group.units.nodes):
            most = "" if units == 2 else f" to {units - 1}/{units}"  # noqa: PLR2004
            found[f"1/{units}{most} of {group.accelerator}"] = None
    return ", ".join(found)


def _nowhere(request: Request, state: PlacementState, cluster: Cluster) -> Unplaceable | None:
    groups = cluster.groups_for(request, preemptible=request.preemptible, guests=False)
    if not request.accelerators:  # what is said names the type that was there first, if several are as large
        groups = tuple(sorted(groups, key=lambda group: state.accelerators.index(group.accelerator)))
    if request.mixtures and mixture.largest(groups, request) >= request.least:
        return None
    return _too_large(request, state, groups)


def _too_large(request: Request, state: PlacementState, groups: Sequence[Group]) -> Unplaceable | None:
    """Whether all of these groups are too small for the gang; None if one isn't."""
    shape = Shape.of(request)
    best = None
    largest = -1
    for group in groups:
        if not any(group.sizes.values()):
            continue
        size = group.largest(shape)
        if group.pool == "reserved" and request.service != "inference":
            size -= state.policy.headroom_devices
        if size >= request.least:
            return None
        if size > largest:
            best, largest = group, size
    if best is None:
        pools = dict.fromkeys(node.node.pool for node in state.nodes.values())
        facts: dict[str, str | int] = {
            "service": request.service,
            "preemptible": int(request.preemptible),
            "pools": ", ".join(pools),
        }
        return Unplaceable("no_pool_for", facts)
    sizes: dict[str, str | int] = {
        "devices": request.least,
        "largest": max(largest, 0),
        "accelerator": best.accelerator,
    }
    on_a_node = max((size for group in groups for size, count in group.sizes.items() if count), default=0)
    if request.devices_per_node is not None and on_a_node < request.devices_per_node:
        sizes |= {"devices_per_node": request.devices_per_node, "on_a_node": on_a_node}
    return Unplaceable("gang_too_large", sizes)


def assert_consistent(state: PlacementState, cluster: Cluster) -> None:
    """Every device has one owner, claim or nobody; gangs are of one type, or mixtures; indexes say what the records say."""
    _assert_nodes(state, cluster)
    _assert_divided(state)
    _assert_claims(state)
    _assert_running(state)
    _assert_indexes(state, cluster)


def _assert_nodes(state: PlacementState, cluster: Cluster) -> None:
    for node_id, at in state.nodes.items():
        assert at.free >= 0
        assert at.held >= 0
        assert at.free + at.held + sum(at.shares.values()) == at.node.devices, at
        assert cluster.room(at) >= 0, f"{node_id} owes more than it will have"
        for job_id, devices in at.shares.items():
            assert (node_id, devices) in state.running[job_id].shares


def _assert_divided(state: PlacementState) -> None:
    """No unit twice: what is free of a divided device and what is had of it is all of it."""
    within: dict[JobId, JobId] = {}
    for node_id, at in state.nodes.items():
        for name, divided in at.divided.items():
            device = state.running[name]
            assert device.is_divided
            assert divided.jobs, f"{name} is divided for nobody"
            assert device.shares == ((node_id, 1),)
            assert at.shares[name] == 1
            assert divided.free >= 0
            assert min(divided.jobs.values()) > 0
            assert divided.free + sum(divided.jobs.values()) == at.node.units, (name, divided)
            assert divided.closed == device.evicting
            within |= dict.fromkeys(divided.jobs, name)
            for job_id, units in divided.jobs.items():
                fraction = state.running[job_id].request.fraction
                assert fraction is not None
                assert units * fraction[1] == fraction[0] * at.node.units
    for job_id, running in state.running.items():
        if not running.is_divided:
            assert running.within == within.get(job_id), job_id


def _assert_claims(state: PlacementState) -> None:
    owed = dict.fromkeys(state.claims, 0)
    held = dict.fromkeys(state.nodes, 0)
    for at in state.nodes.values():
        for job_id, devices in at.owed.items():
            owed[job_id] += devices
    for job_id, claim in state.claims.items():
        assert job_id in state.queue
        assert claim.owed == owed[job_id]
        for node_id, devices in claim.shares:
            assert state.nodes[node_id].status == "up"
            held[node_id] += devices - state.nodes[node_id].owed.get(job_id, 0)
    assert all(state.nodes[node_id].held == devices for node_id, devices in held.items())


def _assert_running(state: PlacementState) -> None:
    for job_id, running in state.running.items():
        assert job_id not in state.queue
        for node_id, devices in running.shares:
            at = state.nodes[node_id].node
            assert state.nodes[node_id].shares[running.within or job_id] == devices
            assert name_of(at) in (running.groups or (running.group,))
            assert running.request.fraction in (None, at.fraction) or running.within is not None
            assert at.dedicated_to in (None, running.request.account_id) or running.request.preemptible
            assert at.pool != "reserved" or running.request.service == "inference" or running.request.preemptible


def _assert_indexes(state: PlacementState, cluster: Cluster) -> None:
    for name, group in cluster.groups.items():
        seen = [0] * len(group.fit)
        for at in group.nodes:
            if at is not None and at.status == "up":
                seen[at.free] |= group.bits[at.slot]
        assert seen == group.fit, name
        assert group.free == sum(free * bits.bit_count() for free, bits in enumerate(seen))
        opened: dict[tuple[int, int], int] = {}
        for at in group.nodes:
            if at is not None and at.status == "up":
                for free in dict.fromkeys(each.free for each in at.divided.values() if each.free and not each.closed):
                    key = at.node.units, free
                    opened[key] = opened.get(key, 0) | group.bits[at.slot]
        kept = {(units, free): bits for units, frees in group.units.opened.items() for free, bits in frees.items()}
        assert opened == kept, name
    for job_id in state.pins:
        assert job_id in state.queue, job_id
        assert job_id not in state.claims
