"""Bounded waiting: who has waited long enough is pinned, and may take the place of whoever started past it since.

Nothing stands idle for a pinned gang, and nobody has to guess how long a job runs: others go on starting wherever there is
room, but those of its class that do may be evicted for it, as may worse ones at any time. So it starts as soon as what
leaves by itself would have been enough had nobody passed it, which is what a reservation with perfect estimates gives. Each
pin has its moment, and only who started after it gives way: what was pinned earlier takes from what was pinned later, never
the other way round, and no class from a better one. Jobs that can't be evicted keep off the nodes that its set names.
"""

from fabric.placement.cluster import Cluster
from fabric.placement.divided import could_take
from fabric.placement.fitting import Group, Shape
from fabric.placement.state import NodeState, Pin, PlacementState, Queued
from fabric.units import INT64_MAX, JobId


class Reservations:
    """The pins of all groups."""

    def __init__(self, state: PlacementState, cluster: Cluster) -> None:
        self._state = state
        self._cluster = cluster

    @property
    def version(self) -> int:
        """Grows whenever `room` may be another, but for another policy."""
        return self._cluster.pins_version

    def pin(self, queued: Queued, group: Group, *, now_us: int) -> bool:
        """Reserve in the group, if its nodes could take the gang, and the class has not as much of it pinned as it may."""
        if self.is_full(group, queued.rank, queued.request.least):
            return False
        nodes = self._best_nodes(group, Shape.of(queued.request), could_take(group, queued.request))
        if nodes is None:
            return False
        pin = Pin(group=group.name, nodes=[node.node.node_id for node in nodes], at_us=now_us)
        self._state.pins[queued.request.job_id] = pin
        self._cluster.mark(group)
        return True

    def unpin(self, job_id: JobId) -> bool:
        """Give the job's reservation up, if it has one."""
        pin = self._state.pins.pop(job_id, None)
        if pin is None:
            return False
        self._cluster.mark(self._cluster.groups[pin.group])
        return True

    def is_full(self, group: Group, rank: int, devices: int) -> bool:
        """Whether as many are pinned of the class, and of better ones, as may be at a time, with so many devices more."""
        return devices > self.room(group, rank)

    def room(self, group: Group, rank: int) -> int:
        """How many devices more may be pinned of the class; one job's, however many, where there is none of it and of better ones."""
        pins, pinned = group.reservations[rank]
        if not pins:
            return INT64_MAX
        policy = self._state.policy
        if pins >= policy.pins_max:
            return 0
        all_devices = sum([size * count for size, count in group.standing.items()])
        return all_devices * policy.reserved_percent // 100 - pinned

    def consider(self, group: Group, node: NodeState) -> None:
        """The node got room: does it serve a pinned job better than one that is reserved for it?"""
        node_id = node.node.node_id
        pins = [(job_id, pin) for job_id, pin in self._state.pins.items() if pin.group == group.name]
        if node.status != "up" or any(node_id in pin.nodes for _, pin in pins):
            return
        for job_id, pin in pins:
            request = self._state.queue[job_id].request
            each = Shape.of(request).each or node.node.devices
            if node.node.devices < each or not group.bits[node.slot] & could_take(group, request):
                continue
            room = self._cluster.room
            rooms = [(min(room(self._state.nodes[reserved]), each), at) for at, reserved in enumerate(pin.nodes)]
            worst, at = min(rooms)
            if min(room(node), each) > worst and node.node.devices >= self._state.nodes[pin.nodes[at]].node.devices:
                pin.nodes[at] = node_id
                self._cluster.mark(group)
                return

    def _best_nodes(self, group: Group, shape: Shape, among: int) -> list[NodeState] | None:
        """The fullest-free nodes that could take a share, as few as make the gang; those of nobody else's first."""
        least = group.least(shape)
        chosen: list[NodeState] = []
        room = 0
        taken = group.pinned[-1]
        for mask in (among & ~taken, among & taken):
            for node in (node for bits in reversed(group.fit) for node in group.nodes_of(bits & mask)):
                if room >= shape.devices:
                    break
                if node.node.devices >= least:
                    chosen.append(node)
                    room += shape.each or node.node.devices
        return chosen if room >= shape.devices else None
