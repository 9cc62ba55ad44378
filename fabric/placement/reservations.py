"""Bounded waiting: a job that has waited long enough is pinned and owns the one reservation of its group.

The pinned job waits for a set of nodes. Others may use them meanwhile, but only preemptibly; when evicting those
*backfillers* would complete the set, they are evicted. So a gang is not starved by small jobs, devices don't idle while it
collects its nodes, and nobody has to guess how long a job runs. A node outside the set that gets more room than the
fullest one in it takes its place, so the set is complete as soon as enough nodes have come free anywhere in the group.
"""

from collections.abc import Iterable

from fabric.placement.cluster import Cluster
from fabric.placement.fitting import Group, Shape
from fabric.placement.state import NodeState, Pin, PlacementState, Queued
from fabric.units import JobId


class Reservations:
    """The pins of all groups."""

    def __init__(self, state: PlacementState, cluster: Cluster) -> None:
        self._state = state
        self._cluster = cluster

    def holds(self, job_id: JobId) -> bool:
        return any(pin.job_id == job_id for pin in self._state.pins.values())

    def pin(self, queued: Queued, groups: Iterable[Group]) -> bool:
        """Reserve nodes in the first group that has no reservation and could take the gang."""
        shape = Shape.of(queued.request)
        for group in groups:
            if group.name in self._state.pins or (group.pool == "reserved" and queued.request.service != "inference"):
                continue
            nodes = self._best_nodes(group, shape)
            if nodes is not None:
                pin = Pin(job_id=queued.request.job_id, nodes=[node.node.node_id for node in nodes])
                self._state.pins[group.name] = pin
                self._cluster.mark(group.name, pin.nodes)
                return True
        return False

    def unpin(self, job_id: JobId) -> bool:
        """Give the job's reservation up, if it has one."""
        names = [name for name, pin in self._state.pins.items() if pin.job_id == job_id]
        for name in names:
            del self._state.pins[name]
            self._cluster.mark(name, [])
        return bool(names)

    def consider(self, group: Group, node: NodeState) -> None:
        """The node got room: does it serve the pinned job better than one that is reserved for it?"""
        pin = self._state.pins[group.name]
        node_id = node.node.node_id
        if node.status != "up" or node_id in pin.nodes:
            return
        each = Shape.of(self._state.queue[pin.job_id].request).each or node.node.devices
        if node.node.devices < each:
            return
        rooms = [(min(self.room(self._state.nodes[reserved], pin), each), at) for at, reserved in enumerate(pin.nodes)]
        worst, at = min(rooms)
        if (
            min(self.room(node, pin), each) > worst
            and node.node.devices >= self._state.nodes[pin.nodes[at]].node.devices
        ):
            pin.nodes[at] = node_id
            self._cluster.mark(group.name, pin.nodes)

    def room(self, node: NodeState, pin: Pin) -> int:
        """What the node would have for the pinned job without its backfillers."""
        running = self._state.running
        backfill = sum(
            devices
            for job_id, devices in node.shares.items()
            if running[job_id].backfills == pin.job_id and not running[job_id].evicting
        )
        return self._cluster.room(node) + backfill

    def _best_nodes(self, group: Group, shape: Shape) -> list[NodeState] | None:
        """The fullest-free nodes that could take a share, as few as make the gang."""
        least = group.least(shape)
        chosen: list[NodeState] = []
        room = 0
        for node in (node for bits in reversed(group.fit) for node in group.nodes_of(bits)):
            if room >= shape.devices:
                break
            if node.node.devices >= least:
                chosen.append(node)
                room += shape.each or node.node.devices
        return chosen if room >= shape.devices else None
