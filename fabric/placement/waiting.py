"""Lanes that don't fit: when they are looked at again, who of them has been passed over, and who is pinned for it."""

from fabric.placement.cluster import Cluster
from fabric.placement.jobs import INFERENCE
from fabric.placement.queue import Lane, Queue
from fabric.placement.reservations import Reservations
from fabric.placement.state import Blocked, PlacementState, Queued
from fabric.units import JobId


class Waiting:
    """Parks and wakes the lanes of the queue."""

    __slots__ = ("_cluster", "_state", "pins", "queue")

    def __init__(self, state: PlacementState, cluster: Cluster, queue: Queue, pins: Reservations) -> None:
        self._state = state
        self._cluster = cluster
        self.queue = queue
        self.pins = pins

    def leave(self, lane: Lane, job_id: JobId, *, placed: bool) -> None:
        """The job waits no longer, and what was reserved for it is free. Placed, it was not passed over: its lane isn't
        blocked, or, where others of it stay parked, has been passed over by nobody since. Withdrawn, it changes nothing for
        those.
        """
        state = self._state
        del state.queue[job_id]
        if state.pins:
            self.pins.unpin(job_id)
        if state.blocked and (blocked := state.blocked.get(lane.name)) is not None:
            if not (lane.parked and len(lane.jobs) > 1):
                blocked.passed_from = None
            elif placed:
                blocked.passed_from = self._placed(lane)
        self.queue.remove(lane, job_id)

    def wake(self, rank: int, *, now_us: int) -> None:
        """Look again at lanes whose first job may fit by now, or may look for victims again."""
        version = self._cluster.version
        for lane in list(self.queue.parked[rank].values()):
            if (
                rank == INFERENCE
                or lane.seen != version
                or any(group.touched and (lane.mixes or group.free >= lane.shape.devices) for group in lane.groups)
                or self._state.blocked[lane.name].retry_at_us <= now_us
            ):
                self.queue.wake(lane)

    def park(self, lane: Lane, *, now_us: int, until_us: int | None = None) -> None:
        """The lane's first job doesn't fit and nobody gives way for it; or it waits, until then, for a warmer node."""
        self.queue.park(lane)
        blocked = self._state.blocked.get(lane.name)
        if blocked is None:
            self._forget(now_us)
            blocked = self._state.blocked[lane.name] = Blocked()
        if blocked.passed_from is None:
            blocked.passed_from = self._placed(lane)
        if until_us is not None:
            blocked.retry_at_us = until_us
        elif blocked.retry_at_us <= now_us:
            blocked.retry_at_us = now_us + self._state.policy.retry_us

    def park_again(self) -> None:
        """After the lanes were made anew: those that the state says are blocked are out of sight, as they were.

        So a planner that is rebuilt from its state looks at no lane that the one it was rebuilt from would not look at.
        """
        for lane in self.queue.named.values():
            blocked = self._state.blocked.get(lane.name)
            if blocked is None or blocked.passed_from is None or (first := self.queue.first(lane)) is None:
                continue
            self.find_groups(lane, first)
            self.queue.park(lane)

    def find_groups(self, lane: Lane, queued: Queued) -> None:
        """Where the lane's jobs may go, if that has changed since it was asked last."""
        if lane.seen != self._cluster.version:
            lane.groups = self._cluster.groups_for(queued.request, preemptible=queued.preemptible)
            lane.seen = self._cluster.version

    def may_preempt(self, lane: Lane, *, now_us: int) -> bool:
        """Whether it is time to look for victims; inference always may."""
        if lane.rank == INFERENCE:
            return True
        blocked = self._state.blocked.get(lane.name)
        return blocked is None or blocked.retry_at_us <= now_us

    def pin_overdue(self, *, now_us: int) -> None:
        """Give every free reservation to whoever has waited longest of those that have waited too long."""
        policy = self._state.policy
        pinned = {pin.job_id: None for pin in self._state.pins.values()}
        overdue: list[tuple[int, int, Lane, Queued]] = []
        for parked in self.queue.parked:
            for lane in parked.values():
                if all(group.pinned for group in lane.groups):
                    continue
                oldest = self._oldest(lane)
                if oldest is None or oldest.request.job_id in pinned:
                    continue
                passed = self._placed(lane) - (self._state.blocked[lane.name].passed_from or 0)
                if now_us - oldest.queued_at_us >= policy.waits_us[lane.rank] or passed >= policy.bypasses_max:
                    overdue.append((oldest.queued_at_us, oldest.seq, lane, oldest))
        for _, _, lane, oldest in sorted(overdue, key=lambda entry: entry[:2]):
            self.pins.pin(oldest, lane.groups)

    def dues(self) -> list[int]:
        """When lanes look for victims again, and when their oldest jobs have waited too long."""
        dues: list[int] = []
        for name, blocked in self._state.blocked.items():
            lane = None if blocked.passed_from is None else self.queue.named.get(name)
            oldest = None if lane is None else self._oldest(lane)
            if oldest is not None:
                dues.append(oldest.queued_at_us + self._state.policy.waits_us[oldest.rank])
                dues.append(blocked.retry_at_us)
        return dues

    def _forget(self, now_us: int) -> None:
        blocked, named = self._state.blocked, self.queue.named
        over = [
            name
            for name, at in blocked.items()
            if (lane := named.get(name)) is None or (at.passed_from is None and not lane.parked)
        ]
        for name in over:
            if blocked[name].retry_at_us <= now_us:
                del blocked[name]

    def _placed(self, lane: Lane) -> int:
        """How many jobs of this class or a worse one its groups have placed."""
        return sum(sum(self._state.groups[group.name].placed[lane.rank :]) for group in lane.groups)

    def _oldest(self, lane: Lane) -> Queued | None:
        return next((queued for job_id, queued in lane.jobs.items() if job_id not in self._state.claims), None)
