"""How much of what is reserved for inference stays idle for it: it follows the demand, at once up and slowly down.

What inference leaves is not lent at once: whoever comes next may want it, and would have to evict whoever it had been lent to.
It stays idle for as long as an eviction loses of each device's work: whatever the demand does then, that costs at most twice what
it would have cost to know it (as whoever doesn't know how often he will ski rents until he could have bought). Jobs that save more
often lose less, and are lent to sooner. A pool whose inference doesn't go and come lends everything.
"""

from fabric.placement.cluster import Cluster
from fabric.placement.state import PlacementState, Running
from fabric.placement.victims import expected_us


class Lending:
    """What is kept of the pools of reserved nodes."""

    __slots__ = ("_cluster", "_state")

    def __init__(self, state: PlacementState, cluster: Cluster) -> None:
        self._state = state
        self._cluster = cluster

    def left(self, running: Running, *, now_us: int) -> None:
        """A job is off its devices: if it is whom they are reserved for, nothing of its nodes is lent for a while."""
        group = self._cluster.groups[running.group]
        if group.pool != "reserved" or group.is_guest(running):
            return
        stays_us = expected_us(list(group.reporters.values())) * self._state.policy.keep_percent // 100
        for node_id, _ in running.shares if stays_us else ():
            node = self._state.nodes[node_id]
            if node.status != "down" and self._cluster.bit_of(group, node_id):
                group.keep(node, now_us + stays_us)

    def lend_again(self, *, now_us: int) -> None:
        """What was kept until now is lent like the rest."""
        for group in self._cluster.groups.values():
            if group.kept:
                group.lend_again(now_us)

    def dues(self) -> list[int]:
        """When something is lent again."""
        return [until_us for group in self._cluster.groups.values() for until_us in group.kept.values()]
