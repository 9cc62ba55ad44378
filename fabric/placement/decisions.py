"""One round of decisions: claims that are complete, pinned jobs, then class by class whoever is next and fits.

A job that doesn't fit parks its whole lane, after asking whether worse jobs would make room for it.
"""

import msgspec

from fabric.placement import mixture
from fabric.placement.choice import Found, because, best, holds_out_us, in_order
from fabric.placement.cluster import Cluster
from fabric.placement.fitting import Group, Picks, Shape
from fabric.placement.guarantees import BORROWED
from fabric.placement.jobs import INFERENCE, Evict, Placed
from fabric.placement.lane import Lane
from fabric.placement.lending import Lending
from fabric.placement.preemption import Preemption
from fabric.placement.quotas import Fairness
from fabric.placement.state import PlacementState, Queued, Running
from fabric.placement.waiting import RETRIES_MAX, SOON_US, Waiting

Step = Placed | Evict
_SPENT_MAX = (20_000, 20_000, 8_192, 8_192, 8_192)
"""By class, what looking for victims may cost in one plan, as `Preemption.spent` counts it, until no further search is begun: no event
waits for hundreds of them, nor for hundreds of evictions. Who didn't have his turn has it in a plan soon after, the best class and the
least share first."""


class Decisions:
    """Turns what waits into what runs."""

    __slots__ = (
        "_cluster",
        "_fairness",
        "_holds_until_us",
        "_is_put_off",
        "_lending",
        "_preemption",
        "_queue",
        "_state",
        "_waiting",
    )

    def __init__(
        self,
        state: PlacementState,
        cluster: Cluster,
        *,
        fairness: Fairness,
        waiting: Waiting,
        preemption: Preemption,
        lending: Lending,
    ) -> None:
        self._state = state
        self._cluster = cluster
        self._fairness = fairness
        self._waiting = waiting
        self._queue = waiting.queue
        self._preemption = preemption
        self._holds_until_us: int | None = None
        """Until when the job that was just looked at waits for a better type."""
        self._lending = lending
        self._is_put_off = False
        """Whether the job that was just looked at would have looked for victims, had there not been so many searches."""

    def plan(self, *, now_us: int) -> tuple[Step, ...]:
        """Everything that can be done now."""
        steps: list[Step] = []
        state = self._state
        state.planned_at_us = now_us
        self._preemption.spent = 0
        self._lending.lend_again(now_us=now_us)
        if self._cluster.guarantees.types:
            self._waiting.wake_freed()
            self._queue.settle()
        if state.claims:
            self._place_claimed(steps, now_us)
        if state.pins:
            self._serve_pins(steps, now_us)
        if self._queue.fresh is not None:
            self._place_fresh(steps, now_us)
        if (any(self._queue.active) or any(self._queue.parked)) and self._place_waiting(steps, now_us):
            self._pin_overdue(steps, now_us)
        for group in self._cluster.groups.values():
            if group.touched:
                group.touched = False
        return tuple(steps)

    def next_due_us(self) -> int | None:
        """The first moment after the last plan at which time alone may change what can be done."""
        dues = self._waiting.dues()
        dues += [pin.retry_at_us for pin in self._state.pins.values()]
        dues += self._lending.dues()
        return min((due for due in dues if due > self._state.planned_at_us), default=None)

    def _place_fresh(self, steps: list[Step], now_us: int) -> None:
        """Whoever came last is placed if it fits and nobody has his turn before; else it stands in line with the others."""
        queue = self._queue
        assert queue.fresh is not None
        lane, queued = queue.fresh
        request = queued.request
        is_next = not any(queue.active) and not any(queue.parked[: lane.rank + 1]) and request.wish is None
        if is_next and lane.rank != INFERENCE and request.devices_least is None and not request.patience_us:
            if lane.seen != self._cluster.version:
                self._waiting.find_groups(lane, queued)
            groups = lane.groups if request.accelerators else self._cluster.by_need(lane.groups, queued)
            found = best(self._cluster, groups, queued, lane.shape)
            if found is not None:
                steps.append(self._place(lane, queued, *found, now_us))
                return
        queue.settle()

    def _place_waiting(self, steps: list[Step], now_us: int) -> bool:
        """Whoever waits and fits, the best class first. Whether anybody still waits."""
        queue, blocked = self._queue, False
        if self._cluster.guarantees.types:
            self._serve_guaranteed(steps, now_us)
        for rank, active in enumerate(queue.active):
            if queue.parked[rank]:
                self._waiting.wake(rank, now_us=now_us, retries=0 if self._is_spent(rank) else RETRIES_MAX)
            if active:
                queue.begin(rank)
                while (turn := queue.next(rank)) is not None:
                    lane, queued = turn
                    if not self._try_place(lane, queued, steps, now_us):
                        self._waiting.park(lane, now_us=now_us, until_us=self._look_again(queued, now_us))
            if queue.parked[rank]:
                blocked = True
        return blocked

    def _serve_guaranteed(self, steps: list[Step], now_us: int) -> None:
        """Whoever is within a quota starts, whatever his class, before anybody borrows: at once or as soon as borrowers leave."""
        queue, concerns = self._queue, self._cluster.guarantees.concerns
        for rank in range(len(queue.active)):
            if queue.parked[rank]:
                self._waiting.wake(rank, now_us=now_us)
            lanes = [lane for lane in queue.active[rank].values() if lane.account_id and concerns(lane.account_id)]
            for lane in sorted(lanes, key=lambda lane: lane.name):
                while (queued := queue.first(lane)) is not None and self._start_guaranteed(lane, queued, steps, now_us):
                    pass

    def _start_guaranteed(self, lane: Lane, queued: Queued, steps: list[Step], now_us: int) -> bool:
        """Whether the job is within a quota, and starts or has its claim: rather in the place of who borrows than on what is kept
        free for others; but on that before it waits, where its account has less than is guaranteed to it.
        """
        cluster, waits = self._cluster, queued.request.patience_us and self._patient_until(queued, now_us) is not None
        if lane.seen != cluster.version:
            self._waiting.find_groups(lane, queued)
        within = [group for group in lane.groups if cluster.guarantees.level(group, queued) != BORROWED]
        groups = cluster.by_need(tuple(within), queued)
        found = (
            best(cluster, groups, queued, lane.shape, others=lambda group: self._others(lane, group))
            if groups
            else None
        )
        if found is not None and waits and not self._is_warm(queued, found):
            return False
        for group in within if found is None else ():
            evictions = self._preemption.make_room(queued, group, now_us=now_us)
            if evictions is not None:
                self._claimed(lane, queued)
                steps.extend(evictions)
                if not self._state.claims[queued.request.job_id].owed:
                    self._place_claimed(steps, now_us)
                return True
            lacks = cluster.guarantees.lacks(group, queued)
            picks = cluster.find(group, lane.shape, queued, strictly=False) if lacks else None
            found = found or (None if picks is None else (group, picks))
        if found is None:
            return False
        steps.append(self._place(lane, queued, *found, now_us))
        return True

    def _try_place(self, lane: Lane, queued: Queued, steps: list[Step], now_us: int) -> bool:
        cluster = self._cluster
        if lane.seen != cluster.version:
            self._waiting.find_groups(lane, queued)
        groups = in_order(cluster, lane.groups, queued, self._state.policy.score_percent)
        found = best(cluster, groups, queued, lane.shape, others=lambda group: self._others(lane, group))
        is_patient = queued.request.patience_us and self._patient_until(queued, now_us) is not None
        if is_patient and not (found and self._is_warm(queued, found)):
            return False
        if found is not None and queued.request.wish is not None and self._holds_out(lane, queued, found[0], now_us):
            return False
        if found is not None:
            if found[0].owner is None and lane.rank == INFERENCE and self._await_own(lane, queued, now_us):
                return True
            steps.append(self._place(lane, queued, *found, now_us))
            return True
        if queued.request.mixtures and (parts := mixture.find(cluster, lane.groups, queued)) is not None:
            steps.append(self._place_mixed(lane, queued, parts, now_us))
            return True
        may = self._waiting.may_preempt(lane, now_us=now_us) and self._may_search(lane)
        return may and self._preempt(lane, queued, steps, now_us)

    def _is_spent(self, rank: int) -> bool:
        return self._preemption.spent >= _SPENT_MAX[rank]

    def _may_search(self, lane: Lane) -> bool:
        """Whether victims are looked for in this plan, or the lane's turn comes in one soon after."""
        self._is_put_off = self._is_spent(lane.rank)
        return not self._is_put_off

    def _look_again(self, queued: Queued, now_us: int) -> int | None:
        """When the lane is to be looked at again, if that isn't when lanes usually are."""
        is_put_off, self._is_put_off = self._is_put_off, False
        holds_until_us, self._holds_until_us = self._holds_until_us, None
        if holds_until_us is not None:
            return holds_until_us
        return now_us + SOON_US if is_put_off else self._patient_until(queued, now_us)

    def _holds_out(self, lane: Lane, queued: Queued, group: Group, now_us: int) -> bool:
        """Whether a job with a wish rather waits for a better type; then it is looked at again when it takes this one."""
        until_us = queued.queued_at_us + holds_out_us(
            self._cluster, lane.groups, queued, group, self._state.policy.score_percent
        )
        self._holds_until_us = until_us if now_us < until_us else None
        return now_us < until_us

    def _others(self, lane: Lane, group: Group) -> int:
        """What others of its class wait for that would fit beside an elastic gang which takes the least it must."""
        least = lane.shape.devices
        return self._queue.wanted(lane.rank, group, within=group.free - least) - (
            least if 2 * least <= group.free else 0
        )

    def _patient_until(self, queued: Queued, now_us: int) -> int | None:
        """Until when the job waits for a preferred node; None when it takes what it gets."""
        until_us = queued.queued_at_us + queued.request.patience_us
        return until_us if queued.request.patience_us and queued.request.prefers and now_us < until_us else None

    @staticmethod
    def _is_warm(queued: Queued, found: Found) -> bool:
        group, picks = found
        return {group.ids[slot] for slot, _ in picks} <= set(queued.request.prefers)

    def _preempt(self, lane: Lane, queued: Queued, steps: list[Step], now_us: int) -> bool:
        for group in lane.groups:
            is_spot_for_inference = lane.rank == INFERENCE and group.pool == "spot"
            if is_spot_for_inference or not group.is_home_of(queued.request.account_id, lane.rank):
                continue
            evictions = self._preemption.make_room(queued, group, now_us=now_us)
            if evictions is not None:
                self._claimed(lane, queued)
                steps.extend(evictions)
                return True
        return False

    def _await_own(self, lane: Lane, queued: Queued, now_us: int) -> bool:
        """A model stays where it is placed: it rather waits for a node of its account's own that is being left."""
        for group in lane.groups:
            if group.owner is not None and self._preemption.take_over(queued, group, now_us=now_us):
                self._claimed(lane, queued)
                return True
        return False

    def _claimed(self, lane: Lane, queued: Queued) -> None:
        """The job waits for its claim alone: not in line, and without a reservation."""
        self._waiting.step_out(lane, queued)

    def _place(self, lane: Lane, queued: Queued, group: Group, picks: Picks, now_us: int) -> Placed:
        request = queued.request
        pin = self._state.pins.get(request.job_id)
        shares = group.shares(picks) if request.fraction is None else group.shares([(picks[0][0], 1)])
        running = Running(
            request,
            queued.seq,
            queued.rank,
            group.name,
            shares,
            queued.preemptible,
            now_us,
            None,
            None,
            0,
            0,
            None if pin is None else pin.at_us,
        )
        why = None
        if request.wish is not None:
            why = because(self._cluster, lane.groups, queued, (group, picks), self._state.policy.score_percent)
        self._cluster.own(group, request.job_id, running)
        placed = self._placed(lane, running, group, now_us)
        return placed if why is None else msgspec.structs.replace(placed, because=why)

    def _place_mixed(self, lane: Lane, queued: Queued, parts: mixture.Parts, now_us: int) -> Placed:
        first = parts[0][0]
        shares = [(group.shares([pick])[0], group.accelerator) for group, picks in parts for pick in picks]
        running = Running(
            request=queued.request,
            seq=queued.seq,
            rank=queued.rank,
            group=first.name,
            shares=tuple(share for share, _ in shares),
            preemptible=queued.preemptible,
            placed_at_us=now_us,
            groups=tuple(dict.fromkeys(group.name for group, _ in parts)),
        )
        self._cluster.own(first, queued.request.job_id, running)
        placed = self._placed(lane, running, first, now_us)
        return msgspec.structs.replace(placed, kinds=tuple(kind for _, kind in shares))

    def _placed(self, lane: Lane, running: Running, group: Group, now_us: int) -> Placed:
        request = running.request
        shares = running.shares
        devices = shares[0][1] if len(shares) == 1 else sum([devices for _, devices in shares])
        running.fee = self._fairness.enter(
            request.account_id, devices=devices, fraction=request.fraction, now_us=now_us
        )
        self._waiting.count_start(running, group)
        self._waiting.leave(lane, request.job_id, placed=True)
        return Placed(request.job_id, group.accelerator, running.shares, group.pool)

    def _place_claimed(self, steps: list[Step], now_us: int) -> None:
        for job_id, claim in list(self._state.claims.items()):
            if claim.owed:
                continue
            queued = self._state.queue[job_id]
            running = Running(
                request=queued.request,
                seq=queued.seq,
                rank=queued.rank,
                group=claim.group,
                shares=claim.shares,
                preemptible=queued.preemptible,
                placed_at_us=now_us,
                pinned_at_us=claim.pinned_at_us,
            )
            self._cluster.own_claimed(job_id, running)
            steps.append(self._placed(self._queue.lane_of(queued), running, self._cluster.groups[claim.group], now_us))

    def _pin_overdue(self, steps: list[Step], now_us: int) -> None:
        """Reserve for those who waited too long. What can be done for them is done now, not when somebody asks again."""
        before = len(self._state.pins)
        self._waiting.pin_overdue(now_us=now_us)
        if len(self._state.pins) > before:
            self._serve_pins(steps, now_us)

    def _serve_pins(self, steps: list[Step], now_us: int) -> None:
        """Whoever is pinned starts if it fits now, or evicts who passed it; the best class and the longest pinned first."""
        queue, pins, groups = self._state.queue, self._state.pins, self._cluster.groups
        for pin in pins.values():
            group = groups[pin.group]
            if group.touched or pin.retry_at_us <= now_us or group.leaving_devices + group.free >= pin.enough:
                break
        else:
            return
        for job_id in sorted(pins, key=lambda job_id: (queue[job_id].rank, pins[job_id].at_us, queue[job_id].order)):
            pin, queued = pins[job_id], queue[job_id]
            group = self._cluster.groups[pin.group]
            found = best(self._cluster, (group,), queued, Shape.of(queued.request)) if group.touched else None
            if found is not None:
                steps.append(self._place(self._queue.lane_of(queued), queued, *found, now_us))
            elif pin.retry_at_us <= now_us or group.leaving_devices + group.free >= pin.enough:
                if self._is_spent(queued.rank):
                    pin.retry_at_us = now_us + SOON_US
                    continue
                evictions = self._preemption.complete(queued, group, pin, now_us=now_us)
                if evictions is not None:
                    self._state.claims[job_id].pinned_at_us = pin.at_us
                    self._claimed(self._queue.lane_of(queued), queued)
                    steps.extend(evictions)
