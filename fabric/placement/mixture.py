"""A gang of several types, or of several pools: what a job that may mix gets where no pool's type alone has room for it.

A gang of one type is always better, so this comes last, and only from what is free: nobody is evicted for a mixture and
nothing is reserved for one. Its parts follow the job's order of types, each as large as there is room, so that they are few.
Knows nothing of what the job does with unequal devices.
"""

from collections.abc import Sequence

from fabric.placement.cluster import Cluster
from fabric.placement.fitting import Group, Picks, Shape
from fabric.placement.jobs import Request
from fabric.placement.state import Queued

Parts = list[tuple[Group, Picks]]


def find(cluster: Cluster, groups: Sequence[Group], queued: Queued) -> Parts | None:
    """Room for the job over several types, the most that there is of what it asks for; None if that isn't enough."""
    for types in queued.request.mixtures:
        parts = _of(cluster, [group for group in groups if group.accelerator in types], queued)
        if parts is not None:
            return parts
    return None


def largest(groups: Sequence[Group], request: Request) -> int:
    """The largest mixture that these groups could take if they were empty."""
    shape = Shape.of(request)
    return max(
        (sum(group.largest(shape) for group in groups if group.accelerator in types) for types in request.mixtures),
        default=0,
    )


def _of(cluster: Cluster, groups: Sequence[Group], queued: Queued) -> Parts | None:
    request, parts = queued.request, []
    left = request.devices
    for group in groups:
        if left and (part := _most(cluster, group, queued, left)) is not None:
            parts.append((group, part))
            left -= sum(devices for _, devices in part)
    if request.devices - left < request.least or len(parts) < 2:  # noqa: PLR2004  # of one part is no mixture
        return None
    return parts if _is_within_quotas(cluster, parts, queued) else None


def _is_within_quotas(cluster: Cluster, parts: Parts, queued: Queued) -> bool:
    """Whether the parts of one type may be had together."""
    devices: dict[str, int] = {}
    for group, picks in parts if cluster.guarantees.types else ():
        devices[group.accelerator] = devices.get(group.accelerator, 0) + sum([count for _, count in picks])
        if not cluster.guarantees.allows(group, queued, devices[group.accelerator]):
            return False
    return True


def _most(cluster: Cluster, group: Group, queued: Queued, most: int) -> Picks | None:
    """The largest part of the job that fits here. What fits with more devices fits with fewer, so halving finds it."""
    each = queued.request.devices_per_node
    step = each or 1
    low, high, found = 0, min(most, group.free) // step, None
    while low < high:
        middle = (low + high + 1) // 2
        devices = middle * step
        room = cluster.find(group, Shape(devices, middle if each else 1, each or 0), queued)
        if room is None:
            high = middle - 1
        else:
            low, found = middle, room
    return found
