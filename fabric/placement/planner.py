"""The planner: which job runs where, and which gives way. Deterministic; time is a parameter.

In: nodes that come and go, jobs that are queued, started, saved and released. Out of `plan`: everything that can be done
now, as `Placed` and `Evict`. A placed job owns its devices until `release`; so does an evicted one, whose devices are then
owed to the job it was evicted for. Knows nothing of tokens, leases, Ray, or why a job ends.

All memory is in `PlacementState`; a planner rebuilt from an encoded copy of it decides the same from there on.
"""

from fabric.placement.checks import NodeFree, assert_consistent, check, view_nodes
from fabric.placement.cluster import Cluster
from fabric.placement.fitting import Group, Picks, Shape
from fabric.placement.jobs import INFERENCE, Evict, Placed, Request, Unplaceable, rank_of
from fabric.placement.preemption import Preemption
from fabric.placement.queue import Lane, Queue
from fabric.placement.quotas import Fairness
from fabric.placement.reservations import Reservations
from fabric.placement.state import Blocked, Node, PlacementState, Queued, Running
from fabric.units import AccountId, JobId, NodeId

Step = Placed | Evict


class Planner:
    """Decides; see the module."""

    def __init__(self, state: PlacementState) -> None:
        self._state = state
        self._cluster = Cluster(state)
        self._fairness = Fairness(state.accounts, state.policy, epoch_us=state.epoch_us)
        self._queue = Queue(state.queue, self._fairness)
        self._pins = Reservations(state, self._cluster)
        self._preemption = Preemption(state, self._cluster)
        self._planned_at_us = -1
        self._rebuild_queue()

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def add_node(self, node: Node, *, now_us: int) -> tuple[JobId, ...]:
        """A node joined or came back, or is no longer draining; saying it again changes nothing.

        Returns the jobs that lost their share there, if the node came back as something else.
        """
        del now_us
        known = self._state.nodes.get(node.node_id)
        lost: tuple[JobId, ...] = ()
        if known is not None and known.node != node and known.status != "down":
            lost = self.remove_node(node.node_id)
        self._cluster.add(node)
        if node.dedicated_to is not None and node.dedicated_to not in self._queue.owners:
            self._rebuild_queue()
        return lost

    def remove_node(self, node_id: NodeId) -> tuple[JobId, ...]:
        """The node is gone. Returns the jobs that had a share there; they keep their other shares until released."""
        node = self._state.nodes.get(node_id)
        if node is None:
            return ()
        self._close(node_id, status="down")
        jobs = tuple(node.shares)
        self._cluster.clear(node)
        return jobs

    def drain_node(self, node_id: NodeId) -> tuple[JobId, ...]:
        """Nothing new on the node. Returns the jobs that have a share there and must be asked to leave."""
        node = self._state.nodes.get(node_id)
        if node is None or node.status == "down":
            return ()
        self._close(node_id, status="draining")
        return tuple(node.shares)

    def nodes(self) -> tuple[NodeFree, ...]:
        return view_nodes(self._state)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def check(self, request: Request) -> Unplaceable | None:
        """Why the request can never run here, whoever else is here; None if it can."""
        return check(request, self._state, self._cluster)

    def could_place_now(self, request: Request) -> bool:
        """Whether devices for it are free this moment, if nobody is ahead of it and nobody gives way."""
        queued = self._queued(request, now_us=0)
        shape = Shape.of(request)
        groups = self._cluster.groups_for(request, preemptible=queued.preemptible)
        return any(self._cluster.find(group, shape, queued) is not None for group in groups)

    def enqueue(self, request: Request, *, now_us: int) -> None:
        """The job waits from now on. After an eviction or a pause: release first, then hand the same request in again."""
        job_id = request.job_id
        state = self._state
        assert job_id not in state.queue, f"{job_id} is queued already"
        assert job_id not in state.running, f"{job_id} has not been released"
        self._tick(now_us)
        if self._fairness.join(request.account_id, weight_ppm=request.weight_ppm):
            self._rebuild_queue()
        state.seq += 1
        queued = state.queue[job_id] = self._queued(request, now_us=now_us)
        self._queue.push(queued)

    def withdraw(self, job_id: JobId) -> bool:
        """The job waits no longer. What was evicted for it leaves all the same, and is free then. False if it did not wait."""
        queued = self._state.queue.get(job_id)
        if queued is None:
            return False
        if job_id in self._state.claims:
            self._cluster.unclaim(job_id)
        self._leave_queue(self._queue.lane_of(queued), job_id)
        return True

    def release(self, job_id: JobId, *, now_us: int) -> bool:
        """The job's devices are free, or its preemptor's. False if it owned none."""
        del now_us
        running = self._cluster.disown(job_id)
        if running is None:
            return False
        if running.group in self._state.pins:
            group = self._cluster.groups[running.group]
            for node_id, _ in running.shares:
                self._pins.consider(group, self._state.nodes[node_id])
        return True

    def note_started(self, job_id: JobId, *, now_us: int) -> None:
        """The job's code runs: its minimum run time counts from here."""
        running = self._state.running.get(job_id)
        if running is not None and running.started_at_us is None:
            running.started_at_us = now_us

    def note_checkpoint(self, job_id: JobId, *, now_us: int, write_us: int, restore_us: int) -> None:
        """The job's work up to now is durable: evicting it now loses little."""
        running = self._state.running.get(job_id)
        if running is not None:
            running.saved_at_us, running.write_us, running.restore_us = now_us, write_us, restore_us

    def note_usage(self, account_id: AccountId, *, uhs: int, now_us: int) -> None:
        """The account burned so much: it stands further back in its class, ever less as the usage ages."""
        self._tick(now_us)
        self._fairness.use(account_id, uhs=uhs, now_us=now_us)

    def queue_position(self, job_id: JobId) -> int | None:
        """How many wait ahead of the job, by the order of this moment; 0 for one that has a claim. None if it does not wait."""
        if job_id not in self._state.queue:
            return None
        if job_id in self._state.claims:
            return 0
        return self._queue.ranked(self._state.claims).index(job_id)

    # -- deciding ------------------------------------------------------------------------------------------------------

    def plan(self, *, now_us: int) -> tuple[Step, ...]:
        """Everything that can be done now, in order. Placed jobs have left the queue."""
        steps: list[Step] = []
        self._planned_at_us = now_us
        if self._state.claims:
            self._place_claimed(steps, now_us)
        if self._state.pins:
            self._serve_pins(steps, now_us)
        queue = self._queue
        claims = self._state.claims
        for rank, active in enumerate(queue.active):
            if queue.parked[rank]:
                self._wake(rank, now_us)
            while active:
                following = queue.next(rank, claims)
                if following is None:
                    break
                lane, queued = following
                if not self._try_place(lane, queued, steps, now_us):
                    self._park(lane, now_us)
        if any(queue.parked):
            self._pin_overdue(now_us)
        for group in self._cluster.groups.values():
            group.touched = False
        return tuple(steps)

    def next_due_us(self) -> int | None:
        """When `plan` may have something to do though nothing else happens; None if never."""
        state = self._state
        dues: list[int] = []
        for parked in self._queue.parked:
            for lane in parked.values():
                oldest = self._oldest(lane)
                if oldest is not None:
                    dues.append(oldest.queued_at_us + state.policy.waits_us[lane.rank])
                    dues.append(state.blocked[lane.name].retry_at_us)
        for pin in state.pins.values():
            dues += self._preemption.dues(pin)
        return min((due for due in dues if due > self._planned_at_us), default=None)

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself."""
        assert_consistent(self._state, self._cluster)

    # -- one job -------------------------------------------------------------------------------------------------------

    def _try_place(self, lane: Lane, queued: Queued, steps: list[Step], now_us: int) -> bool:
        if lane.seen != self._cluster.version:
            lane.groups = self._cluster.groups_for(queued.request, preemptible=queued.preemptible)
            lane.seen = self._cluster.version
        for group in lane.groups:
            found = self._cluster.find(group, lane.shape, queued)
            if found is not None:
                steps.append(self._place(lane, queued, group, found, now_us))
                return True
        blocked = self._state.blocked.get(lane.name)
        if blocked is not None and now_us < blocked.retry_at_us:
            return False
        for group in lane.groups:
            if group.pool == "reserved" and lane.rank != INFERENCE:
                continue
            evictions = self._preemption.make_room(queued, group, now_us=now_us)
            if evictions is not None:
                steps.extend(evictions)
                self._pins.unpin(queued.request.job_id)
                return True
        return False

    def _place(
        self, lane: Lane, queued: Queued, group: Group, found: tuple[Picks, JobId | None], now_us: int
    ) -> Placed:
        nodes = group.nodes
        shares = tuple([(nodes[slot].node.node_id, devices) for slot, devices in found[0]])  # type: ignore[union-attr]
        request = queued.request
        running = Running(
            request=request,
            seq=queued.seq,
            rank=queued.rank,
            group=group.name,
            shares=shares,
            preemptible=queued.preemptible,
            placed_at_us=now_us,
            backfills=found[1],
        )
        self._cluster.own(group, request.job_id, running)
        return self._placed(lane, running, group, now_us)

    def _placed(self, lane: Lane, running: Running, group: Group, now_us: int) -> Placed:
        request = running.request
        self._fairness.enter(request.account_id, devices=request.devices, now_us=now_us)
        self._state.placed[group.name][running.rank] += 1
        self._leave_queue(lane, request.job_id)
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
                preemptible=queued.preemptible and not claim.settled,
                placed_at_us=now_us,
            )
            self._cluster.own_claimed(job_id, running)
            steps.append(self._placed(self._queue.lane_of(queued), running, self._cluster.groups[claim.group], now_us))

    def _serve_pins(self, steps: list[Step], now_us: int) -> None:
        for name, pin in list(self._state.pins.items()):
            queued = self._state.queue[pin.job_id]
            group = self._cluster.groups[name]
            lane = self._queue.lane_of(queued)
            found = self._cluster.find(group, lane.shape, queued)
            if found is not None:
                queued.preemptible = False
                steps.append(self._place(lane, queued, group, found, now_us))
                continue
            evictions = self._preemption.complete(queued, group, pin, now_us=now_us)
            if evictions is not None:
                self._state.claims[pin.job_id].settled = True
                steps.extend(evictions)
                self._pins.unpin(pin.job_id)

    # -- the line ------------------------------------------------------------------------------------------------------

    def _queued(self, request: Request, *, now_us: int) -> Queued:
        preemptible = request.preemptible
        if preemptible and self._state.evictions:
            preemptible = not self._preemption.is_left_alone(request.job_id, now_us=now_us)
        return Queued(
            request=request,
            seq=self._state.seq,
            rank=rank_of(request),
            queued_at_us=now_us,
            preemptible=preemptible,
            order=(request.submitted_at_us, self._state.seq),
        )

    def _leave_queue(self, lane: Lane, job_id: JobId) -> None:
        state = self._state
        del state.queue[job_id]
        del lane.jobs[job_id]
        if state.pins:
            self._pins.unpin(job_id)
        if state.blocked and (blocked := state.blocked.get(lane.name)) is not None:
            blocked.passed_from = None
        if lane.parked and not lane.jobs:
            self._queue.wake(lane)

    def _wake(self, rank: int, now_us: int) -> None:
        """Lanes whose first job may fit by now, or may look for victims again."""
        for lane in list(self._queue.parked[rank].values()):
            if (
                rank == INFERENCE
                or lane.seen != self._cluster.version
                or self._state.blocked[lane.name].retry_at_us <= now_us
                or any(group.touched and group.free >= lane.shape.devices for group in lane.groups)
            ):
                self._queue.wake(lane)

    def _park(self, lane: Lane, now_us: int) -> None:
        self._queue.park(lane)
        blocked = self._state.blocked.get(lane.name)
        if blocked is None:
            self._forget_blocked(now_us)
            blocked = self._state.blocked[lane.name] = Blocked()
        if blocked.passed_from is None:
            blocked.passed_from = self._passed(lane)
        if blocked.retry_at_us <= now_us:
            blocked.retry_at_us = now_us + self._state.policy.retry_us

    def _forget_blocked(self, now_us: int) -> None:
        blocked = self._state.blocked
        for name in [name for name, at in blocked.items() if at.passed_from is None and at.retry_at_us <= now_us]:
            del blocked[name]

    def _passed(self, lane: Lane) -> int:
        return sum(sum(self._state.placed[group.name][lane.rank :]) for group in lane.groups)

    def _pin_overdue(self, now_us: int) -> None:
        """Give every free reservation to whoever has waited longest of those that have waited too long."""
        policy = self._state.policy
        overdue: list[tuple[int, int, Lane, Queued]] = []
        for parked in self._queue.parked:
            for lane in parked.values():
                oldest = self._oldest(lane)
                if oldest is None or self._pins.holds(oldest.request.job_id):
                    continue
                passed = self._passed(lane) - (self._state.blocked[lane.name].passed_from or 0)
                if now_us - oldest.queued_at_us >= policy.waits_us[lane.rank] or passed >= policy.bypasses_max:
                    overdue.append((oldest.queued_at_us, oldest.seq, lane, oldest))
        for _, _, lane, oldest in sorted(overdue, key=lambda entry: entry[:2]):
            self._pins.pin(oldest, lane.groups)

    def _oldest(self, lane: Lane) -> Queued | None:
        return next((queued for job_id, queued in lane.jobs.items() if job_id not in self._state.claims), None)

    # -- bookkeeping ---------------------------------------------------------------------------------------------------

    def _close(self, node_id: NodeId, *, status: str) -> None:
        for job_id, claim in list(self._state.claims.items()):
            if any(share[0] == node_id for share in claim.shares):
                self._cluster.unclaim(job_id)
                self._queue.push_back(self._state.queue[job_id])
        for pin in list(self._state.pins.values()):
            if node_id in pin.nodes:
                self._pins.unpin(pin.job_id)
        self._cluster.close(node_id, status=status)

    def _tick(self, now_us: int) -> None:
        if self._fairness.rebase(now_us=now_us):
            self._rebuild_queue()
        self._state.epoch_us = self._fairness.epoch_us

    def _rebuild_queue(self) -> None:
        for node in self._state.nodes.values():
            if node.node.dedicated_to is not None:
                self._queue.owners[node.node.dedicated_to] = None
        self._queue.rebuild(skip=self._state.claims)
