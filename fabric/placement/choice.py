"""Which of the places a job could have now is the best for it: the type, how many devices, and which nodes.

A gang of one size takes the first type in its order that has room. An *elastic* one (`devices_least`) takes what gets most
done: devices × speed, the types' order deciding between equals. Within a type the nodes that a job prefers win, because
its last checkpoint or its data lie there, as long as the whole gang fits on them. Knows nothing of who waits or gives way.
"""

from collections.abc import Callable, Sequence

from fabric.placement.cluster import Cluster
from fabric.placement.divided import find_fraction, is_divided
from fabric.placement.fitting import Group, Picks, Shape
from fabric.placement.jobs import Request
from fabric.placement.state import Queued
from fabric.units import PPM

Found = tuple[Group, Picks]


def _nobody(group: Group) -> int:
    del group
    return 0


def best(
    cluster: Cluster, groups: Sequence[Group], queued: Queued, least: Shape, *, others: Callable[[Group], int] = _nobody
) -> Found | None:
    """The best of what is free; None if the job fits nowhere as it must, which is `least`. An elastic gang leaves room for
    `others`, as far as it needs it no less.
    """
    request = queued.request
    # What lies there is worth a wait, so it is worth another type, too.
    if request.patience_us and (warm := _warmest(cluster, groups, queued)):
        return warm
    if request.devices_least is None:
        for group in groups:
            found = cluster.find(group, least, queued)
            if found is not None:
                return group, (_preferred(cluster, group, least, queued) if request.prefers else None) or found
        return None
    return _best_size(cluster, groups, queued, others)


def _warmest(cluster: Cluster, groups: Sequence[Group], queued: Queued) -> Found | None:
    """The first type of which preferred nodes have room."""
    least = Shape.of(queued.request)
    for group in groups:
        if cluster.find(group, least, queued) and (warm := _preferred(cluster, group, least, queued)):
            return group, warm
    return None


def _best_size(
    cluster: Cluster, groups: Sequence[Group], queued: Queued, others: Callable[[Group], int]
) -> Found | None:
    """Of an elastic gang: the type and count that get most done."""
    speeds = dict(queued.request.speeds)
    chosen: tuple[int, Group, Shape, Picks] | None = None
    for group in groups:
        most = _most(cluster, group, queued, others(group))
        if most is None:
            continue
        shape, found = most
        gets = shape.devices * speeds.get(group.accelerator, PPM)
        if chosen is None or gets > chosen[0]:
            chosen = gets, group, shape, found
    if chosen is None:
        return None
    _, group, shape, found = chosen
    return group, _preferred(cluster, group, shape, queued) or found


def _most(cluster: Cluster, group: Group, queued: Queued, others: int) -> tuple[Shape, Picks] | None:
    """The largest gang of the job that fits here now. What fits with more devices fits with fewer, so halving finds it."""
    request = queued.request
    found = cluster.find(group, Shape.of(request), queued)
    if found is None:
        return None
    step = request.devices_per_node or 1
    low, high = request.least // step, min(request.devices, group.free - others) // step
    while low < high:
        middle = (low + high + 1) // 2
        tried = cluster.find(group, _shape(request, middle * step), queued)
        if tried is None:
            high = middle - 1
        else:
            low, found = middle, tried
    return _shape(request, low * step), found


def _shape(request: Request, devices: int) -> Shape:
    each = request.devices_per_node
    return Shape(devices, devices // each, each) if each else Shape(devices, 1, 0)


def _preferred(cluster: Cluster, group: Group, shape: Shape, queued: Queued) -> Picks | None:
    """The same gang on nodes that the job prefers; never on those of somebody's reservation."""
    wanted = 0
    for node_id in queued.request.prefers:
        wanted |= cluster.bit_of(group, node_id)
    if not wanted:
        return None
    if is_divided(group, queued.request):
        return find_fraction(group, queued.request, avoid=~wanted | group.pinned[queued.rank])
    return group.find(shape, avoid=~wanted | group.pinned[queued.rank], strewn=queued.request.may_be_strewn)
