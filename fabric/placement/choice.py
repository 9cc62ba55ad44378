"""Which of the places a job could have now is the best for it: the type, how many devices, and which nodes.

A gang of one size takes the first type in its order that has room. An *elastic* one (`devices_least`) takes what gets most
done: devices × speed, the types' order deciding between equals. Within a type the nodes that a job prefers win, because
its last checkpoint or its data lie there, as long as the whole gang fits on them. Knows nothing of who waits or gives way.
"""

from collections.abc import Callable, Sequence
from typing import Final

from fabric.placement.cluster import Cluster
from fabric.placement.divided import find_fraction, is_divided
from fabric.placement.fitting import Group, Picks, Shape
from fabric.placement.jobs import Request
from fabric.placement.score import Chosen, Percents, Score, reckon
from fabric.placement.state import Queued
from fabric.units import PPM

Found = tuple[Group, Picks]
_HOLDS_OUT: Final = 2
"""So many times what it would lose by a type a job with a wish waits for a better one. Chosen by hand, on two seeds of `bench_prefer`."""


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


def in_order(cluster: Cluster, groups: tuple[Group, ...], queued: Queued, percent: Percents) -> tuple[Group, ...]:
    """Where the job may go, best first: by its wish, the least score; its account's own cells before all, and last what is waited for
    by jobs that must have it.
    """
    if queued.request.wish is None or len(groups) < 2:  # noqa: PLR2004
        return groups if queued.request.wish is not None else cluster.by_need(groups, queued)

    def key(group: Group) -> tuple[bool, bool, int, str]:
        return group.owner is None, group.typed > 0, score_of(cluster, group, queued, percent).total, group.name

    return tuple(sorted(groups, key=key))


def score_of(cluster: Cluster, group: Group, queued: Queued, percent: Percents) -> Score:
    """What the job would come to there."""
    request = queued.request
    assert request.wish is not None
    shape = Shape.of(request)
    size = max(sum([each * count for each, count in group.standing.items()]), 1)
    return reckon(
        request.wish,
        pool=group.pool,
        accelerator=group.accelerator,
        devices=shape.devices,
        speed_ppm=dict(request.speeds).get(group.accelerator, PPM),
        warm=request.wish.cold_us == 0 or _preferred(cluster, group, shape, queued) is not None,
        used_ppm=max(size - group.free, 0) * PPM // size,
        percent=percent,
    )


def holds_out_us(cluster: Cluster, groups: Sequence[Group], queued: Queued, found: Group, percent: Percents) -> int:
    """How long a job with a wish rather waits for a better type than to take this one: twice what it would lose by it, a
    token-second being a second of one of its devices.
    """
    devices = queued.request.least
    able = [group for group in groups if group.largest(Shape.of(queued.request)) >= devices]
    least = min((score_of(cluster, group, queued, percent).total for group in able), default=0)
    return max(score_of(cluster, found, queued, percent).total - least, 0) * _HOLDS_OUT // devices


def because(cluster: Cluster, groups: Sequence[Group], queued: Queued, found: Found, percent: Percents) -> Chosen:
    """Why a job with a wish is placed there, told before it is."""
    shape = Shape.of(queued.request)
    others = [group for group in groups if group is not found[0] and cluster.find(group, shape, queued) is not None]
    other = min(others, key=lambda group: (score_of(cluster, group, queued, percent).total, group.name), default=None)
    return Chosen(
        group=found[0].name,
        score=score_of(cluster, found[0], queued, percent),
        other="" if other is None else other.name,
        other_score=None if other is None else score_of(cluster, other, queued, percent),
    )


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
    avoid = ~wanted | group.pinned[queued.rank] | group.kept_from(queued)
    if is_divided(group, queued.request):
        return find_fraction(group, queued.request, avoid=avoid)
    return group.find(shape, avoid=avoid, strewn=queued.request.may_be_strewn)
