"""Who may be evicted for whom, and making the evictions one decision with the claim on what they free.

A better class may evict a worse one; reserved inference takes back what was lent; a pinned job may evict what backfilled
its nodes. Nobody is evicted within the minimum run time (but by reserved inference), nor while being left alone after
too many evictions, nor when it was itself placed from a reservation: so every eviction puts a better class, or a job that
waited longer than it may, in the place of its victims, and no two jobs can evict each other in turn.
"""

from itertools import islice

from fabric.placement.cluster import Cluster
from fabric.placement.fitting import Group, Shape
from fabric.placement.jobs import INFERENCE, Evict, Shares
from fabric.placement.quotas import EvictionBudget
from fabric.placement.state import NodeState, Pin, PlacementState, Queued, Running
from fabric.placement.victims import Selection, losses
from fabric.units import JobId

_CANDIDATES = 512
_CANDIDATES_PER_DEVICE = 8
"""Enough jobs to choose victims from: looking at all of a hundred thousand would change little and cost a second."""


class Preemption:
    """Searches for victims, once per group and moment for all jobs of a class."""

    def __init__(self, state: PlacementState, cluster: Cluster) -> None:
        self._state = state
        self._cluster = cluster
        self._budget = EvictionBudget(state.evictions)

    def is_left_alone(self, job_id: JobId, *, now_us: int) -> bool:
        return self._budget.is_spent(job_id, evictions_max=self._state.policy.evictions_max, now_us=now_us)

    def make_room(self, queued: Queued, group: Group, *, now_us: int) -> list[Evict] | None:
        """Evict worse classes (or borrowers) for this job and claim what they free; None if that is not enough."""
        on_offer = sum(group.loose_devices[queued.rank + 1 :]) + group.leaving_devices
        if not on_offer or on_offer + group.free < queued.request.least:
            return None
        evictable: list[Running] = []
        most = max(_CANDIDATES, _CANDIDATES_PER_DEVICE * queued.request.least)
        for loose in reversed(group.loose[queued.rank + 1 :]):
            may_go = (running for running in loose.values() if self._may_evict(running, queued, now_us))
            evictable += islice(may_go, most - len(evictable))
            if len(evictable) >= most:
                break
        reason = "reclaimed" if group.pool == "reserved" else "outranked"
        return self._choose(
            queued,
            group,
            self._nodes_of(group, evictable, group.least(Shape.of(queued.request))),
            evictable,
            reason=reason,
            now_us=now_us,
        )

    def take_over(self, queued: Queued, group: Group, *, now_us: int) -> bool:
        """Claim what those give back who are leaving by themselves; False if that, and what is free, is not enough."""
        if not group.leaving_devices or group.leaving_devices + group.free < queued.request.least:
            return False
        nodes = self._nodes_of(group, [], group.least(Shape.of(queued.request)))
        return self._choose(queued, group, nodes, [], reason="", now_us=now_us) is not None

    def complete(self, queued: Queued, group: Group, pin: Pin, *, now_us: int) -> list[Evict] | None:
        """Evict backfillers (and worse classes) on a pinned job's nodes, if that completes them."""
        nodes = [self._state.nodes[node_id] for node_id in pin.nodes]
        evictable: dict[JobId, Running] = {}
        for node in nodes:
            for job_id in node.shares:
                running = self._state.running[job_id]
                outranked = running.rank > queued.rank or running.backfills == queued.request.job_id
                if outranked and self._may_evict(running, queued, now_us):
                    evictable[job_id] = running
        by_slot = {node.slot: node for node in nodes}
        return self._choose(queued, group, by_slot, list(evictable.values()), reason="backfill", now_us=now_us)

    def dues(self, pin: Pin) -> list[int]:
        """When each backfiller of a pinned job has run for long enough to be evicted."""
        running = self._state.running
        jobs = [running[job_id] for node_id in pin.nodes for job_id in self._state.nodes[node_id].shares]
        return [_since_us(job) + self._state.policy.run_us_min for job in jobs if job.backfills == pin.job_id]

    def _choose(
        self,
        queued: Queued,
        group: Group,
        nodes: dict[int, NodeState],
        evictable: list[Running],
        *,
        reason: str,
        now_us: int,
    ) -> list[Evict] | None:
        rooms = {slot: self._cluster.room(node) for slot, node in nodes.items()}
        ids = {node.node.node_id for node in nodes.values()}
        gain = sum(devices for job in evictable for node_id, devices in job.shares if node_id in ids)
        if sum(rooms.values()) + gain < queued.request.least:
            return None
        lost = losses(evictable, reporters=list(group.reporters.values()), now_us=now_us)
        chosen = Selection(rooms, nodes, lost).choose(Shape.of(queued.request), self._state.running)
        return None if chosen is None else self._carry_out(queued, group, chosen, reason, now_us=now_us, lost=lost)

    def _carry_out(
        self,
        queued: Queued,
        group: Group,
        chosen: tuple[list[JobId], Shares],
        reason: str,
        *,
        now_us: int,
        lost: dict[JobId, int],
    ) -> list[Evict]:
        job_id = queued.request.job_id
        for victim in chosen[0]:
            self._cluster.evict(self._state.running[victim])
            self._budget.count(victim, now_us=now_us)
        self._cluster.claim(job_id, group, chosen[1])
        return [Evict(victim, job_id, reason, queued.rank, lost[victim], len(lost)) for victim in chosen[0]]

    def _may_evict(self, running: Running, queued: Queued, now_us: int) -> bool:
        if running.evicting or not running.preemptible:
            return False
        if queued.rank == INFERENCE:
            return True
        return now_us - _since_us(running) >= self._state.policy.run_us_min

    def _nodes_of(self, group: Group, evictable: list[Running], least: int) -> dict[int, NodeState]:
        """Nodes with `least` devices free, or with somebody who may give way or is leaving; never those of a pin."""
        bits = 0
        for free in group.fit[least:]:
            bits |= free
        for running in (*evictable, *group.leaving.values()):
            for node_id, _ in running.shares:
                if running.groups:
                    bits |= self._cluster.bit_of(group, node_id)
                else:
                    bits |= group.bits[self._state.nodes[node_id].slot]
        nodes = group.nodes_of(bits & ~group.pinned)
        return {node.slot: node for node in nodes if node.status == "up"}


def _since_us(running: Running) -> int:
    return running.placed_at_us if running.started_at_us is None else running.started_at_us
