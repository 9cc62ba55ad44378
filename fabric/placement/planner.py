"""The planner: which job runs where, and which gives way. Deterministic; time is a parameter.

In: nodes that come and go, jobs that are queued, started, saved and released. Out of `plan`: everything that can be done
now, as `Placed` and `Evict`. A placed job owns its devices until `release`; so does an evicted one, whose devices are then
owed to the job it was evicted for. Knows nothing of tokens, leases, Ray, or why a job ends.

All memory is in `PlacementState`; a planner rebuilt from an encoded copy of it decides the same from there on.
"""

from collections.abc import Collection, Iterable, Mapping

from fabric.placement import derived, growth, mixture, places
from fabric.placement.checks import NodeFree, assert_consistent, barred, beyond_quotas, check, view_nodes
from fabric.placement.cluster import Cluster
from fabric.placement.decisions import Decisions, Step
from fabric.placement.fitting import Shape
from fabric.placement.jobs import Request, Unplaceable, class_of
from fabric.placement.lending import Lending
from fabric.placement.preemption import Preemption
from fabric.placement.queue import Queue
from fabric.placement.quota_terms import Used
from fabric.placement.quotas import LONGEST_GRACE_US, POOLS, Fairness, Policy
from fabric.placement.reservations import Reservations
from fabric.placement.state import Node, PlacementState, Queued
from fabric.placement.waiting import Waiting
from fabric.placement.why import Inquiry, Waits
from fabric.units import AccountId, JobId, NodeId


class Planner:
    """Decides; see the module."""

    def __init__(self, state: PlacementState) -> None:
        self._state = state
        self._cluster = Cluster(state)
        self._fairness = Fairness(
            state.accounts, state.policy, epoch_us=state.epoch_us, cohorts=state.cohorts, started=state.running
        )
        for queued in state.queue.values():
            self._fairness.arrive(queued.request.account_id)
        for running in state.running.values():
            if not running.is_divided:
                self._fairness.arrive(running.request.account_id)
        self._queue = Queue(state.queue, self._fairness, state.policy, self._cluster.guarantees)
        self._pins = Reservations(state, self._cluster)
        self._preemption = Preemption(state, self._cluster)
        self._waiting = Waiting(state, self._cluster, self._queue, self._pins, self._fairness)
        self._lending = Lending(state, self._cluster)
        self._decisions = Decisions(
            state,
            self._cluster,
            fairness=self._fairness,
            waiting=self._waiting,
            preemption=self._preemption,
            lending=self._lending,
        )
        self.shortest_grace_us = min(state.policy.graces_us)
        """With no longer a grace a job may be anywhere."""
        self.owners: Mapping[AccountId, None] = self._queue.owners
        """Accounts that have, or had, nodes of their own."""
        self._rebuild_queue()

    def follow(self, policy: Policy, *, now_us: int) -> None:
        """Plan by another policy from now on. What was decided by the one before stands: places, pins and claims."""
        self._fairness.follow(policy, now_us=now_us)
        self._state.policy, self._state.epoch_us = policy, self._fairness.epoch_us
        self.shortest_grace_us = min(policy.graces_us)
        self._queue.follow(policy)
        self._cluster.guarantees.follow()
        self._cluster.layout += 1
        for group in self._cluster.groups.values():
            group.touched = True
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
            if self._cluster.announce(known, node):
                return lost
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
        jobs = self._cluster.divided.jobs_of(node.shares)
        self._cluster.clear(node)
        return jobs

    def drain_node(self, node_id: NodeId) -> tuple[JobId, ...]:
        """Nothing new on the node. Returns the jobs that have a share there and must be asked to leave."""
        node = self._state.nodes.get(node_id)
        if node is None or node.status == "down":
            return ()
        self._close(node_id, status="draining")
        jobs = self._cluster.divided.jobs_of(node.shares)
        for job_id in jobs:
            self.note_leaving(job_id)
        return jobs

    def cordon_node(self, node_id: NodeId) -> None:
        """Nothing new on the node; who has a share there stays."""
        node = self._state.nodes.get(node_id)
        if node is not None and node.status == "up":
            self._close(node_id, status="draining")

    def undrain_node(self, node_id: NodeId) -> None:
        """The node takes jobs again if it was draining. Who was asked to leave it still leaves."""
        node = self._state.nodes.get(node_id)
        if node is not None and node.status == "draining":
            self._cluster.add(node.node)

    def nodes(self) -> tuple[NodeFree, ...]:
        return view_nodes(self._state, self._cluster)

    def least_notice_us(self, nodes: Iterable[NodeId] | None = None) -> int | None:
        """The least notice that any of these nodes (None = of all) gives before it goes; None = all give enough."""
        return places.least_notice_us(self._state, self._cluster.groups, nodes)

    def longest_grace_us(self, nodes: Iterable[NodeId]) -> int:
        """The longest that a job on these nodes may take to leave, when it was asked to."""
        pools = {self._state.nodes[node_id].node.pool for node_id in nodes if node_id in self._state.nodes}
        graces_us = zip(POOLS, self._state.policy.graces_us, strict=True)
        return min((us for pool, us in graces_us if pool in pools), default=LONGEST_GRACE_US)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def check(self, request: Request) -> Unplaceable | None:
        """Why the request can never run here, whoever else is here; None if it can."""
        return check(request, self._state, self._cluster)

    def beyond_quotas(self, request: Request) -> Unplaceable | None:
        """Why the account could never have so many devices as quotas are now; None if it could."""
        return beyond_quotas(request, self._cluster) if self._cluster.guarantees.types else None

    def barred(self, request: Request) -> tuple[tuple[str, int], ...]:
        """Pools that would take the request if its grace weren't longer than theirs, and what the longest is there."""
        return barred(request, self._state, self._cluster)

    def could_place_now(self, request: Request) -> bool:
        """Whether devices for it are free this moment, if nobody is ahead of it and nobody gives way."""
        queued = self._queued(request, now_us=self._state.planned_at_us)
        shape = Shape.of(request)
        groups = self._cluster.groups_for(request, preemptible=queued.preemptible)
        if any(self._cluster.find(group, shape, queued) is not None for group in groups):
            return True
        return mixture.find(self._cluster, groups, queued) is not None

    def could_grow(self, job_id: JobId) -> int:
        """How many devices more an elastic gang could have in its group if it began anew now; 0 while anybody waits who could have
        some of them.
        """
        running = self._state.running.get(job_id)
        if running is None or running.evicting or running.groups or running.within is not None:
            return 0
        return growth.room(self._state, self._cluster, self._queue, running)

    def enqueue(self, request: Request, *, now_us: int) -> None:
        """The job waits from now on. After an eviction or a pause: release first, then hand the same request in again."""
        job_id = request.job_id
        state = self._state
        assert job_id not in state.queue, f"{job_id} is queued already"
        assert job_id not in state.running, f"{job_id} has not been released"
        self._tick(now_us)
        if self._fairness.join(
            request.account_id,
            weight_ppm=request.weight_ppm,
            cohort=request.cohort,
            cohort_weight_ppm=request.cohort_weight_ppm,
        ):
            self._reorder()
        self._fairness.arrive(request.account_id)
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
        self._queue.settle()
        self._waiting.leave(self._queue.lane_of(queued), job_id, placed=False)
        self._waiting.depart(queued.request.account_id)
        return True

    def release(self, job_id: JobId, *, now_us: int) -> bool:
        """The job's devices are free, or its preemptor's. False if it owned none."""
        running = self._cluster.disown(job_id)
        if running is None:
            return False
        self._lending.left(running, now_us=now_us)
        account_id = running.request.account_id
        if self._fairness.leave(account_id, fee=running.fee):
            self._queue.restate(account_id)
        self._waiting.depart(account_id)
        for name in (running.groups or (running.group,)) if self._state.pins else ():
            group = self._cluster.groups[name]
            if any(group.pinned):
                for node_id, _ in running.shares:
                    if self._cluster.bit_of(group, node_id):
                        self._pins.consider(group, self._state.nodes[node_id])
        return True

    def note_started(self, job_id: JobId, *, now_us: int) -> None:
        """The job's code runs: its minimum run time counts from here."""
        running = self._state.running.get(job_id)
        if running is not None and running.started_at_us is None:
            self._cluster.start(running, now_us=now_us)

    def note_leaving(self, job_id: JobId) -> None:
        """The job was asked to stop for a reason of its own: who needs room may count on its devices, and won't evict it."""
        running = self._state.running.get(job_id)
        if running is not None:
            self._cluster.evict(running)

    def note_checkpoint(self, job_id: JobId, *, now_us: int, write_us: int, restore_us: int) -> None:
        """The job's work up to now is durable: evicting it now loses little."""
        self._cluster.save(job_id, now_us=now_us, write_us=write_us, restore_us=restore_us)

    def note_usage(self, account_id: AccountId, *, uhs: int, now_us: int, job_id: JobId | None = None) -> None:
        """The account burned so much: it stands further back in its class, ever less as the usage ages."""
        self._tick(now_us)
        charged = None if job_id is None else self._state.running.get(job_id)
        self._fairness.use(account_id, uhs=uhs, now_us=now_us, charged=charged)

    def weigh(self, account_id: AccountId, *, weight_ppm: int, cohort: str, cohort_weight_ppm: int) -> None:
        """The account has this weight from now on, and is of this cohort; what it has used stays its own."""
        if self._fairness.weigh(account_id, weight_ppm=weight_ppm, cohort=cohort, cohort_weight_ppm=cohort_weight_ppm):
            self._reorder()

    def waits(self, job_id: JobId, *, now_us: int) -> Waits | None:
        """What keeps the job waiting, and what would let it start; None if it doesn't wait. Reads every waiting job."""
        return Inquiry(self._state, self._cluster, self._fairness).waits(job_id, now_us=now_us)

    def queued(self, job_id: JobId) -> Queued | None:
        """The job, if it waits."""
        return self._state.queue.get(job_id)

    def waiting(self) -> Collection[Queued]:
        """All that wait, by when they were handed in."""
        return self._state.queue.values()

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
        return self._decisions.plan(now_us=now_us)

    def next_due_us(self) -> int | None:
        """When `plan` may have something to do though nothing else happens; None if never. Always after the last plan."""
        return self._decisions.next_due_us()

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself, or what is derived from it isn't what it says."""
        assert_consistent(self._state, self._cluster)
        derived.assert_same(self.derived(), Planner(self._state).derived(), at_rest=self.at_rest)

    def derived(self) -> derived.View:
        """What is kept beside the state and follows from it, in a form that two planners can be compared by."""
        self._queue.settle()
        return derived.view(self._cluster, self._queue, self._fairness, self._waiting)

    @property
    def at_rest(self) -> bool:
        """Whether all that can be done has been planned: nothing has changed since."""
        cluster, queue = self._cluster, self._queue
        touched = any(group.touched for group in cluster.groups.values())
        stale = any(lane.seen != cluster.version for lanes in queue.parked for lane in lanes.values())
        is_settled = queue.fresh is None and cluster.guarantees.is_settled
        return not touched and not stale and not any(queue.active) and is_settled

    def quotas(self) -> tuple[Used, ...]:
        """Every quota, and what is used of it."""
        return tuple(self._cluster.guarantees.used())

    @property
    def layout(self) -> int:
        """Grows when a node comes or becomes another, or with another policy: what `check` found before need not hold any more."""
        return self._cluster.layout

    # -- bookkeeping ---------------------------------------------------------------------------------------------------

    def _queued(self, request: Request, *, now_us: int) -> Queued:
        seq = self._state.seq
        return Queued(
            request,
            seq,
            class_of(request.service, request.tier_rank),
            now_us,
            request.preemptible,
            (request.submitted_at_us, seq),
        )

    def _close(self, node_id: NodeId, *, status: str) -> None:
        for job_id, claim in list(self._state.claims.items()):
            if any(share[0] == node_id for share in claim.shares):
                self._cluster.unclaim(job_id)
                self._queue.push_back(self._state.queue[job_id])
        for job_id, pin in list(self._state.pins.items()):
            if node_id in pin.nodes:
                self._pins.unpin(job_id)
        self._cluster.close(node_id, status=status)

    def _tick(self, now_us: int) -> None:
        if self._fairness.rebase(now_us=now_us):
            self._rebuild_queue()
        self._state.epoch_us = self._fairness.epoch_us

    def _reorder(self) -> None:
        """Somebody's share has changed, or whose it is."""
        self._waiting.forget_absent()
        self._cluster.guarantees.regroup()
        self._rebuild_queue()

    def _rebuild_queue(self) -> None:
        for group in self._state.groups.values():
            if group.owner is not None:
                self._queue.owners[group.owner] = None
        self._queue.rebuild(skip=self._state.claims)
        self._waiting.park_again()
