"""Room for a running elastic gang to become larger: devices of its group that are idle, and that nobody waits for."""

from fabric.placement.cluster import Cluster
from fabric.placement.queue import Queue
from fabric.placement.state import PlacementState, Queued, Running


def room(state: PlacementState, cluster: Cluster, queue: Queue, running: Running) -> int:
    """How many devices more it could have where it is. What is reserved, kept free or lent only while nobody asks is none."""
    group, request = cluster.groups[running.group], running.request
    has = sum([devices for _, devices in running.shares])
    if group.free <= 0 or any(group.pinned) or group.is_guest(running) or group.leaving:
        return 0
    if any(claim.group == group.name for claim in state.claims.values()):
        return 0
    lanes = [lane for lanes in (*queue.active, *queue.parked) for lane in lanes.values()]
    if any(group in lane.groups or lane.seen < 0 for lane in lanes):
        return 0
    each = request.devices_per_node
    idle = group.free
    if each is not None:
        idle = sum([bits.bit_count() * (free // each) * each for free, bits in enumerate(group.fit)])
    step = each or 1
    most = min(request.devices - has, idle) // step * step
    asked = Queued(request, running.seq, running.rank, state.planned_at_us, running.preemptible)
    let = (more for more in range(most, 0, -step) if cluster.guarantees.admits(group, asked, more))
    return next(let, 0)
