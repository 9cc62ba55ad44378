"""Lanes that don't fit: when they are looked at again, who of them has been passed over, and who is pinned for it."""

import heapq

from fabric.placement.alarms import Alarms
from fabric.placement.cluster import Cluster
from fabric.placement.fitting import Group
from fabric.placement.jobs import INFERENCE, RANKS
from fabric.placement.lane import Lane
from fabric.placement.queue import Queue
from fabric.placement.quotas import Fairness
from fabric.placement.reservations import Reservations
from fabric.placement.ripe import Ripe
from fabric.placement.state import Blocked, PlacementState, Queued, Running
from fabric.units import AccountId, JobId

SOON_US = 100_000
"""When those have their turn that a plan left for the next one."""
RETRIES_MAX = 64
"""So many lanes of a class may look for victims again in one plan because it is time."""
_FORGET_EVERY = 64
"""Where more lanes than that are blocked, so many more have to be before those that aren't any more are looked for."""
_SENIOR = 12
"""How many times the bound of its class a job waits before its age counts for more than its account's share."""


class Waiting:
    """Parks and wakes the lanes of the queue."""

    __slots__ = (
        "_cluster",
        "_fairness",
        "_noted",
        "_overdue",
        "_passings",
        "_retries",
        "_ripe",
        "_seen",
        "_starts",
        "_state",
        "pins",
        "queue",
    )

    def __init__(
        self, state: PlacementState, cluster: Cluster, queue: Queue, pins: Reservations, fairness: Fairness
    ) -> None:
        self._state = state
        self._cluster = cluster
        self._fairness = fairness
        self.queue = queue
        self.pins = pins
        self._retries = [Alarms() for _ in range(RANKS)]
        """By class and lane, when victims are looked for again, or a warmer node is no longer waited for."""
        self._overdue = Alarms()
        """By lane, when its oldest job will have waited too long."""
        self._passings: dict[tuple[str, int], list[tuple[int, str]]] = {}
        """By group and class, at how many starts there its lanes may have been passed too often: never later than they are."""
        self._ripe = Ripe(queue.named)
        self._starts = 0
        """How many starts were counted, and of how many each class has taken note."""
        self._noted = [0] * RANKS
        self._seen = [-1] * RANKS
        """By class, the version of the cluster's groups in which its lanes were looked at."""

    def count_start(self, running: Running, group: Group) -> None:
        """A job was placed there: whoever waits for that group, in its class or a better one, was passed, but by his own."""
        self._state.groups[group.name].placed[running.rank] += 1
        self._starts += 1
        payer = self._fairness.payer(running.request.account_id)
        own = self._state.starts.get(payer)
        if own is None:
            own = self._state.starts[payer] = {}
        counts = own.get(group.name)
        if counts is None:
            counts = own[group.name] = [0] * RANKS
        counts[running.rank] += 1

    def depart(self, account_id: AccountId) -> None:
        """One job fewer of the account is here; of a payer who has none nothing need be remembered."""
        if self._fairness.depart(account_id):
            self._state.starts.pop(self._fairness.payer(account_id), None)

    def forget_absent(self) -> None:
        """Of payers who have no jobs here, as accounts are shared now, nothing need be remembered."""
        here = {self._fairness.payer(account_id) for account_id in self._fairness.present}
        for payer in [payer for payer in self._state.starts if payer not in here]:
            del self._state.starts[payer]

    def leave(self, lane: Lane, job_id: JobId, *, placed: bool) -> None:
        """The job waits no longer, and what was reserved for it is free. Placed, it was not passed over: its lane isn't
        blocked, or, where others of it stay parked, has been passed over by nobody since. Withdrawn, it changes nothing for
        those.
        """
        state = self._state
        del state.queue[job_id]
        if state.pins:
            self.pins.unpin(job_id)
        blocked = state.blocked.get(lane.name) if state.blocked else None
        others_stay, was_in_line = lane.parked and len(lane.jobs) > 1, bool(lane.jobs)
        self.queue.remove(lane, job_id)
        if was_in_line and not lane.jobs:
            self._ripe.drop(lane)
        if blocked is not None:
            if not others_stay:
                blocked.passed_from = None
            elif placed:
                self._begin(lane, blocked)
            else:
                self._ripe.add(lane)
            self._set(lane, blocked)

    def step_out(self, lane: Lane, queued: Queued) -> None:
        """The job has a claim: it is not in line, and nothing is reserved for it. Its lane waits for what the others need."""
        self.pins.unpin(queued.request.job_id)
        self.queue.step_out(lane, queued)
        if (blocked := self._state.blocked.get(lane.name)) is not None:
            self._set(lane, blocked)

    def wake(self, rank: int, *, now_us: int, retries: int = RETRIES_MAX) -> None:
        """Look again at lanes whose first job may fit by now, or, so many of them, may look for victims again."""
        queue, parked, version = self.queue, self.queue.parked[rank], self._cluster.version
        if rank == INFERENCE or self._seen[rank] != version:
            self._seen[rank] = version
            for lane in list(parked.values()):
                if rank == INFERENCE or lane.seen != version:
                    queue.wake(lane)
        for group in self._cluster.groups.values():
            if group.touched:
                for lane in queue.needing(rank, group):
                    queue.wake(lane)
        for name in self._retries[rank].until(now_us, most=retries):
            if (found := parked.get(name)) is not None:
                queue.wake(found)

    def wake_freed(self) -> None:
        """Look again at the lanes of those whose quotas have room that they had not."""
        freed = self._cluster.guarantees.take_freed()
        for lane in list(self.queue.named.values()) if freed else ():
            if lane.parked and lane.account_id in freed:
                self.queue.wake(lane)

    def park(self, lane: Lane, *, now_us: int, until_us: int | None = None) -> None:
        """The lane's first job doesn't fit and nobody gives way for it; or it waits, until then, for a warmer node."""
        self.queue.park(lane)
        self._ripe.parked(lane.rank)
        blocked = self._state.blocked.get(lane.name)
        if blocked is None:
            self._forget(now_us)
            blocked = self._state.blocked[lane.name] = Blocked()
        if blocked.passed_from is None:
            self._begin(lane, blocked)
        if until_us is not None:
            blocked.retry_at_us = until_us
        elif blocked.retry_at_us <= now_us:
            blocked.retry_at_us = now_us + self._state.policy.retry_us
        self._set(lane, blocked)

    def park_again(self) -> None:
        """After the lanes were made anew: those that the state says are blocked are out of sight, as they were.

        So a planner that is rebuilt from its state looks at no lane that the one it was rebuilt from would not look at.
        """
        for alarms in (self._overdue, *self._retries):
            alarms.clear()
        self._passings.clear()
        self._ripe.clear()
        self._seen = [self._cluster.version] * RANKS
        for lane in self.queue.named.values():
            blocked = self._state.blocked.get(lane.name)
            if blocked is None or blocked.passed_from is None or (first := self.queue.first(lane)) is None:
                continue
            self.find_groups(lane, first)
            self.queue.park(lane)
            self._set(lane, blocked)

    def find_groups(self, lane: Lane, queued: Queued) -> None:
        """Where the lane's jobs may go, if that has changed since it was asked last."""
        if lane.seen != self._cluster.version:
            self._ripe.drop(lane)
            lane.groups = self._cluster.groups_for(queued.request, preemptible=queued.preemptible)
            lane.seen = self._cluster.version
            if lane.jobs:
                self._ripe.add(lane)

    def may_preempt(self, lane: Lane, *, now_us: int) -> bool:
        """Whether it is time to look for victims; inference always may."""
        if lane.rank == INFERENCE:
            return True
        blocked = self._state.blocked.get(lane.name)
        return blocked is None or blocked.retry_at_us <= now_us

    def pin_overdue(self, *, now_us: int) -> None:
        """Pin those that have waited too long, the best class first, then by turns of those who pay, then who came first: as many
        as there may be.
        """
        self._ripen_overdue(self._state.planned_at_us)
        has: dict[str, int] | None = None
        for rank, parked in enumerate(self.queue.parked):
            if parked:
                if self._noted[rank] != self._starts:
                    self._ripen_passed(rank)
                version = self.pins.version
                if self._ripe.is_full(rank, version):
                    continue
                if lanes := self._ripe.with_room(rank, self._room(rank), version=version):
                    has = self._pins_by_payer() if has is None else has
                    self._pin_of(lanes, has, now_us)

    def _pin_of(self, lanes: list[Lane], has: dict[str, int], now_us: int) -> None:
        """Pin those of some lanes of a class that have waited too long, by turns; of those who pay some have so many pins.

        A lane stands at first where its oldest job would, and is asked who is overdue of it when it comes up.
        """
        payer_of, named = self._fairness.payer, self.queue.named
        heads: list[tuple[int, tuple[int, int], str, Queued | None]]
        heads = [(0, lane.ages[0][0], lane.name, None) for lane in lanes if lane.ages]
        heapq.heapify(heads)
        room: dict[str, int] = {}
        version = -1
        while heads:
            turn, _, name, overdue = heapq.heappop(heads)
            lane = named[name]
            if version != self.pins.version:
                version, room = self.pins.version, self._room(lane.rank)
            if max([room[group.name] for group in lane.groups], default=0) < lane.shape.devices:
                continue
            if overdue is not None:
                payer = payer_of(overdue.request.account_id)
                if has.get(payer, 0) == turn:
                    if not self._pin(lane, overdue, now_us):
                        continue
                    has[payer] = turn + 1
                    overdue = None
            overdue = overdue or self._next_to_pin(lane, now_us)
            if overdue is None:
                self._leave_alone(lane, now_us)
            else:
                heapq.heappush(heads, (has.get(payer_of(overdue.request.account_id), 0), overdue.order, name, overdue))

    def _pins_by_payer(self) -> dict[str, int]:
        has: dict[str, int] = {}
        for job_id in self._state.pins:
            payer = self._fairness.payer(self._state.queue[job_id].request.account_id)
            has[payer] = has.get(payer, 0) + 1
        return has

    def _room(self, rank: int) -> dict[str, int]:
        """By group, how many devices more may be pinned there for a job of the class."""
        return {
            name: self.pins.room(group, rank) if group.pool != "reserved" or rank == INFERENCE else 0
            for name, group in self._cluster.groups.items()
        }

    def _ripen_passed(self, rank: int) -> None:
        """Note which lanes of a class may have been passed too often by now."""
        self._noted[rank] = self._starts
        for group in self._cluster.groups.values():
            passings = self._passings.get((group.name, rank))
            if not passings:
                continue
            starts = sum(self._state.groups[group.name].placed[rank:])
            while passings and passings[0][0] <= starts:
                lane = self.queue.named.get(heapq.heappop(passings)[1])
                if lane is not None and lane.parked:
                    self._ripe.add(lane)

    def _ripen_overdue(self, now_us: int) -> None:
        """Note of which lanes the oldest job has waited too long by now."""
        for name in self._overdue.until(now_us):
            lane = self.queue.named.get(name)
            if lane is not None:
                self._ripe.add(lane)

    def _leave_alone(self, lane: Lane, now_us: int) -> None:
        """Look at the lane no more, if nobody of it is pinned or overdue, until somebody may be."""
        state, longest = self._state, self._oldest(lane)
        if longest is None or longest.request.job_id in state.pins:
            return
        passed = self._passed(lane, longest)
        is_overdue = now_us - longest.queued_at_us >= state.policy.waits_us[lane.rank]
        if not is_overdue and passed < state.policy.bypasses_max:
            self._ripe.drop(lane)
            self._arm(lane, passed)

    def _arm(self, lane: Lane, passed: int) -> None:
        """The lane is looked at again once its groups have started as many more as it takes, even if they share them."""
        more = max(1, -(-(self._state.policy.bypasses_max - passed) // max(len(lane.groups), 1)))
        for group in lane.groups:
            starts = sum(self._state.groups[group.name].placed[lane.rank :])
            heapq.heappush(self._passings.setdefault((group.name, lane.rank), []), (starts + more, lane.name))

    def _pin(self, lane: Lane, queued: Queued, now_us: int) -> bool:
        """Nobody is pinned among what is lent, nor inference among spot nodes where it has others."""
        allows, least = self._cluster.guarantees.allows, queued.request.least
        home = [group for group in lane.groups if group.is_home_of(queued.request.account_id, lane.rank)]
        home = [group for group in home if allows(group, queued, least)]
        if lane.rank == INFERENCE:
            home = [group for group in home if group.pool != "spot"] or home
        return any(self.pins.pin(queued, group, now_us=now_us) for group in home)

    def _next_to_pin(self, lane: Lane, now_us: int) -> Queued | None:
        """Whom to pin next of the lane, if somebody has waited too long, or was passed too often: whoever is next by shares, so
        that who has had his share doesn't get more of it because the rest of his jobs wait; but whoever came first once that
        has waited many times as long.
        """
        state, bound_us = self._state, self._state.policy.waits_us[lane.rank]
        oldest = self.queue.oldest(lane, state.pins, state.claims)
        if oldest is None:
            return None
        waited_us = now_us - oldest.queued_at_us
        if waited_us >= bound_us:
            following = self.queue.first(lane)
            is_taken = following is None or following.request.job_id in state.pins
            return oldest if is_taken or waited_us >= _SENIOR * bound_us else following
        longest = self._oldest(lane)
        if longest is None or longest.request.job_id in state.pins:
            return None
        return longest if self._passed(lane, longest) >= state.policy.bypasses_max else None

    def dues(self) -> list[int]:
        """When lanes look for victims next, and when one of their oldest jobs will have waited too long."""
        self._ripen_overdue(self._state.planned_at_us)
        found = [] if (overdue_us := self._overdue.first()) is None else [overdue_us]
        for alarms, parked in zip(self._retries, self.queue.parked, strict=True):
            if parked and (first_us := alarms.first()) is not None:
                was_left = first_us <= self._state.planned_at_us
                found.append(self._state.planned_at_us + SOON_US if was_left else first_us)
        return found

    def alarms(self) -> dict[str, dict[str, int]]:
        """When each lane is due, as `dues` would say it: for comparing one planner with another."""
        planned_us = self._state.planned_at_us
        found = {f"retries of {rank}": dict(alarms.times) for rank, alarms in enumerate(self._retries)}
        found["overdue"] = {name: at_us for name, at_us in self._overdue.times.items() if at_us > planned_us}
        return found

    def _set(self, lane: Lane, blocked: Blocked) -> None:
        """When the lane is to be looked at again, though nothing else happens."""
        oldest = self._oldest(lane) if blocked.passed_from is not None else None
        if oldest is None:
            self._overdue.drop(lane.name)
            self._retries[lane.rank].drop(lane.name)
            return
        self._overdue.set(lane.name, oldest.queued_at_us + self._state.policy.waits_us[lane.rank])
        self._retries[lane.rank].set(lane.name, blocked.retry_at_us)

    def _forget(self, now_us: int) -> None:
        blocked, named = self._state.blocked, self.queue.named
        if len(blocked) > _FORGET_EVERY and len(blocked) % _FORGET_EVERY:
            return
        over = [
            name
            for name, at in blocked.items()
            if (lane := named.get(name)) is None or (at.passed_from is None and not lane.parked)
        ]
        for name in over:
            if blocked[name].retry_at_us <= now_us:
                del blocked[name]

    def _begin(self, lane: Lane, blocked: Blocked) -> None:
        """From here on it is counted who passes the lane's oldest job."""
        blocked.passed_from = self._placed(lane)
        self._arm(lane, 0)
        oldest = self._oldest(lane)
        blocked.payer = "" if oldest is None else self._fairness.payer(oldest.request.account_id)
        blocked.own_from = self._own(lane, blocked.payer)

    def _passed(self, lane: Lane, oldest: Queued) -> int:
        """How many jobs of others have passed the lane's oldest job. One that has become the oldest because another left is
        taken to have been passed by none of its own only: what its payer started before isn't known apart.
        """
        blocked = self._state.blocked[lane.name]
        payer = self._fairness.payer(oldest.request.account_id)
        own_from = blocked.own_from if payer == blocked.payer else 0
        return self._placed(lane) - (blocked.passed_from or 0) - (self._own(lane, payer) - own_from)

    def _own(self, lane: Lane, payer: str) -> int:
        """How many of those are the payer's."""
        own = self._state.starts.get(payer, {})
        return sum(sum(own[group.name][lane.rank :]) for group in lane.groups if group.name in own)

    def _placed(self, lane: Lane) -> int:
        """How many jobs of this class or a worse one its groups have placed."""
        return sum(sum(self._state.groups[group.name].placed[lane.rank :]) for group in lane.groups)

    def _oldest(self, lane: Lane) -> Queued | None:
        return next((queued for job_id, queued in lane.jobs.items() if job_id not in self._state.claims), None)
