"""Who may be evicted for whom, and making the evictions one decision with the claim on what they free.

A better class may evict a worse one; reserved inference takes back what was lent; a pinned job may evict what backfilled
its nodes. Nobody is evicted within the minimum run time (but by reserved inference), nor for its equals when it was itself
placed from a reservation: so every eviction puts a better class, or a job that waited longer than it may, in the place of
its victims, and no two jobs can evict each other in turn. Who was evicted too often within a day is left alone by its
equals, and gives way to a better class only where nobody else would do: a budget of a lower class is no wall to a higher.
"""

from collections.abc import Mapping
from itertools import islice

from fabric.placement.cluster import Cluster
from fabric.placement.divided import could_take
from fabric.placement.fitting import Group, Shape
from fabric.placement.guarantees import BORROWED
from fabric.placement.jobs import ENTERPRISE, INFERENCE, Evict, Shares
from fabric.placement.quotas import EvictionBudget
from fabric.placement.state import NodeState, Pin, PlacementState, Queued, Running
from fabric.placement.victims import Selection, losses
from fabric.units import JobId

_SEARCH_COSTS = 128
_EVICTION_COSTS = 32
_CANDIDATES = 512
_CANDIDATES_PER_DEVICE = 8
"""Enough jobs to choose victims from: looking at all of a hundred thousand would change little and cost a second."""


class Preemption:
    """Searches for victims, once per group and moment for all jobs of a class."""

    def __init__(self, state: PlacementState, cluster: Cluster) -> None:
        self._state = state
        self._cluster = cluster
        self._budget = EvictionBudget(state.evictions)
        self.spent = 0
        """What searches have cost: a node or a job that is looked at counts 1, and a search and an eviction what they take in these."""

    def is_spent(self, job_id: JobId, *, now_us: int) -> bool:
        """Whether the job was evicted as often within a day as it may be; of a divided device, whether one on it was."""
        running = self._state.running.get(job_id)
        if running is not None and running.is_divided:
            return any(self.is_spent(one, now_us=now_us) for one in self._cluster.divided.jobs_of((job_id,)))
        return self._budget.is_spent(job_id, evictions_max=self._state.policy.evictions_max, now_us=now_us)

    def make_room(self, queued: Queued, group: Group, *, now_us: int) -> list[Evict] | None:
        """Evict worse classes (or borrowers) for this job and claim what they free; None if that is not enough."""
        guarantees, first = self._cluster.guarantees, queued.rank + 1
        if guarantees.types:
            if not guarantees.allows(group, queued, queued.request.least):
                return None
            first = first if guarantees.level(group, queued) == BORROWED else INFERENCE
        on_offer = sum(group.loose_devices[first:]) + group.leaving_devices
        if not on_offer or on_offer + group.free < queued.request.least:
            return None
        evictable: list[Running] = []
        most = max(_CANDIDATES, _CANDIDATES_PER_DEVICE * queued.request.least)
        for loose in reversed(group.loose[first:]):
            may_go = (
                running
                for running in loose.values()
                if self._may_evict(group, running, queued, now_us)
                and (
                    running.rank > queued.rank
                    or group.is_guest(running)
                    or guarantees.may_evict(group, running, queued)
                )
            )
            evictable += islice(may_go, most - len(evictable))
            if len(evictable) >= most:
                break
        return self._choose(
            queued,
            group,
            self._nodes_of(queued, group, evictable),
            evictable,
            reason="outranked",
            now_us=now_us,
        )

    def take_over(self, queued: Queued, group: Group, *, now_us: int) -> bool:
        """Claim what those give back who are leaving by themselves; False if that, and what is free, is not enough."""
        if not group.leaving_devices or group.leaving_devices + group.free < queued.request.least:
            return False
        nodes = self._nodes_of(queued, group, [])
        return self._choose(queued, group, nodes, [], reason="", now_us=now_us) is not None

    def complete(self, queued: Queued, group: Group, pin: Pin, *, now_us: int) -> list[Evict] | None:
        """Evict who started past a pinned job since it was pinned, and worse classes; None if that is not enough, or too dear.

        Asked again before `pin.retry_at_us` only once `pin.enough` devices are free: then what was lacking may be there.
        """
        least, at_hand = queued.request.least, group.leaving_devices + group.free
        if not self._cluster.guarantees.allows(group, queued, least):
            return None
        pin.retry_at_us = now_us + self._state.policy.retry_us
        evictable: list[Running] = []
        for loose in group.loose[queued.rank + 1 :]:
            evictable += [running for running in loose.values() if self._may_evict(group, running, queued, now_us)]
        for running in group.loose[queued.rank].values():
            passed = running.passed_us >= pin.at_us or _spares(running) >= least
            if passed and self._may_evict(group, running, queued, now_us):
                evictable.append(running)
        self.spent += sum([len(loose) for loose in group.loose[queued.rank :]])
        lacking = least - at_hand - sum([sum([devices for _, devices in each.shares]) for each in evictable])
        pin.enough = at_hand + max(lacking, 1)
        if lacking > 0:
            return None
        nodes = self._nodes_of(queued, group, evictable)
        return self._choose(queued, group, nodes, evictable, reason="backfill", now_us=now_us)

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
        rooms = self._cluster.rooms(group, nodes)
        if kept := self._cluster.guarantees.kept(group, queued.request.account_id):
            _withhold(rooms, nodes, kept - group.free + sum([node.free for node in nodes.values()]))
        ids = {node.node.node_id for node in nodes.values()}
        gain = sum(devices for job in evictable for node_id, devices in job.shares if node_id in ids)
        if sum(rooms.values()) + gain < queued.request.least:
            return None
        lost = self._losses(evictable, group, now_us)
        shape, lasting, chosen = Shape.of(queued.request), group.pool == "reserved", None
        if spent := self._spent(evictable, now_us):
            spared = {job_id: loss for job_id, loss in lost.items() if job_id not in spent}
            chosen = Selection(rooms, nodes, spared).choose(shape, self._state.running, lasting=lasting)
        chosen = chosen or Selection(rooms, nodes, lost).choose(shape, self._state.running, lasting=lasting)
        if chosen is None or self._is_too_dear(queued, group, sum([lost[job_id] for job_id in chosen[0]]), now_us):
            return None
        return self._carry_out(queued, group, chosen, reason, now_us=now_us, lost=lost)

    def _losses(self, evictable: list[Running], group: Group, now_us: int) -> dict[JobId, int]:
        """What evicting each would lose; a divided device loses what all that are on it do, each for its part of it."""
        reporters, divided = list(group.reporters.values()), [each for each in evictable if each.is_divided]
        lost = losses(evictable, reporters=reporters, now_us=now_us)
        for device in divided:
            name, node = device.request.job_id, self._cluster.divided.node_of(device)
            each = losses(self._cluster.divided.members(name), reporters=reporters, now_us=now_us)
            units = node.divided[name].jobs
            lost[name] = sum([loss * units[job_id] // node.node.units for job_id, loss in each.items()])
        return lost

    def _is_too_dear(self, queued: Queued, group: Group, loss: int, now_us: int) -> bool:
        """Whether it is worth waiting until somebody has saved: while more is lost than the policy allows for such a waiting.

        Nobody waits so where none saves; nor do reserved inference and Enterprise.
        """
        if (
            queued.rank <= ENTERPRISE
            or not group.reporters
            or self._cluster.guarantees.level(group, queued) != BORROWED
        ):
            return False
        pin = self._state.pins.get(queued.request.job_id)
        if pin is not None:
            most_us = (now_us - pin.at_us) * self._state.policy.loss_percent // 100
        else:
            policy = self._state.policy
            most_us = policy.cheap_us + (now_us - queued.queued_at_us) // policy.patience
        return loss > queued.request.least * most_us

    def _spent(self, jobs: list[Running], now_us: int) -> set[JobId]:
        if not self._state.evictions:
            return set()
        return {job.request.job_id for job in jobs if self.is_spent(job.request.job_id, now_us=now_us)}

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
        running, evictions = self._state.running, []
        why = {victim: self._why(group, running[victim], queued, reason) for victim in chosen[0]}
        for victim in chosen[0]:
            for one in self._cluster.divided.jobs_of((victim,)):
                if not running[one].evicting:
                    self._budget.count(one, now_us=now_us)
                    evictions.append(Evict(one, job_id, why[victim], queued.rank, lost[victim], len(lost)))
            self._cluster.evict(running[victim])
        self.spent += _EVICTION_COSTS * len(chosen[0])
        self._cluster.claim(job_id, group, chosen[1])
        return evictions

    def _why(self, group: Group, running: Running, queued: Queued, reason: str) -> str:
        if group.is_guest(running):
            return "reclaimed"
        return "quota" if self._cluster.guarantees.may_evict(group, running, queued) else reason

    def _may_evict(self, group: Group, running: Running, queued: Queued, now_us: int) -> bool:
        if running.evicting or not running.preemptible:
            return False
        if self._cluster.guarantees.types:
            said = self._cluster.guarantees.may_evict(group, running, queued)
            if said is not None:
                return said
        if (
            running.rank <= queued.rank
            and not group.is_guest(running)
            and self.is_spent(running.request.job_id, now_us=now_us)
        ):
            return False
        if queued.rank == INFERENCE or group.is_guest(running):
            return True
        return now_us - running.since_us >= self._state.policy.run_us_min

    def _nodes_of(self, queued: Queued, group: Group, evictable: list[Running]) -> dict[int, NodeState]:
        """Nodes with enough devices free to be of use, or with somebody who may give way or is leaving."""
        least, bits = group.least(Shape.of(queued.request)), 0
        for free in group.fit[least:]:
            bits |= free
        for running in (*evictable, *group.leaving.values()):
            for node_id, _ in running.shares:
                if running.groups:
                    bits |= self._cluster.bit_of(group, node_id)
                else:
                    bits |= group.bits[self._state.nodes[node_id].slot]
        bits &= could_take(group, queued.request)
        nodes = {node.slot: node for node in group.nodes_of(bits) if node.status == "up"}
        self.spent += _SEARCH_COSTS + len(nodes) + len(evictable)
        return nodes


def _withhold(rooms: dict[int, int], nodes: Mapping[int, NodeState], devices: int) -> None:
    """Take so many devices that are free, or are being left, out of the rooms, those of the emptiest nodes first."""
    for slot in sorted(rooms, key=lambda slot: (-nodes[slot].free, slot)):
        taken = max(min(devices, rooms[slot]), 0)
        rooms[slot] -= taken
        devices -= taken


def _spares(running: Running) -> int:
    """How many devices an elastic gang has beyond the fewest it runs on."""
    if running.request.devices_least is None:
        return 0
    return sum([devices for _, devices in running.shares]) - running.request.least
