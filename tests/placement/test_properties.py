"""Random nodes, jobs, departures and drains: what always holds of a planner."""

from fractions import Fraction

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fabric.placement import Evict, Node, Placed, PlacementState, Planner, Policy, Request, mixture
from fabric.placement.fitting import Shape
from fabric.placement.quota_terms import Quota

MINUTE = 60_000_000
POLICY = Policy(headroom_devices=1, bypasses_max=3, evictions_max=2)
TYPES = ("H100", "A100")
POOLS = (("spot", None), ("spot", None), ("reserved", None), ("dedicated", "acme"))
NODES = [
    Node(
        f"{pool}-{kind}-{at}",
        kind,
        devices,
        pool,
        owner,
        notice_us=MINUTE if (pool, kind) == ("spot", "A100") else None,
        units=1 if (kind, at) == ("A100", 0) else 4 + 2 * at,
    )
    for at, devices in enumerate((8, 4))
    for kind in TYPES
    for pool, owner in dict.fromkeys(POOLS)
]
NODES += [Node("spot-H100-mig", "H100", 4, "spot", fraction=(1, 4)), Node("small", "H100", 1, "spot", units=2)]

QUOTAS = (
    (),
    (Quota(accelerator="H100", account="acme", nominal=4, borrow_max=2, lend_max=2),),
    (
        Quota(accelerator="A100", account="bolt", nominal=2),
        Quota(accelerator="H100", cohort="one", nominal=6, borrow_max=2),
    ),
    (
        Quota(accelerator="A100", cohort="one", nominal=1, lend_max=0),
        Quota(accelerator="A100", account="cusp", nominal=3),
    ),
)
shapes = st.one_of(
    st.tuples(st.integers(1, 10), st.none()),
    st.tuples(st.integers(1, 3), st.sampled_from((1, 2, 4, 8))).map(lambda at: (at[0] * at[1], at[1])),
)


def request_of(shape, least, fraction, mixtures, **facts):
    if fraction is not None:
        return Request(job_id="", devices=1, fraction=fraction, submitted_at_us=0, **facts)
    return Request(
        job_id="",
        devices=shape[0],
        devices_per_node=shape[1],
        devices_least=least and (shape[1] or 1) * min(least, shape[0] // (shape[1] or 1)),
        mixtures=mixtures,
        submitted_at_us=0,
        **facts,
    )


asked = st.builds(
    request_of,
    fraction=st.sampled_from((None, None, (1, 4), (1, 2), (1, 3), (3, 4))),
    shape=shapes,
    least=st.one_of(st.none(), st.none(), st.integers(1, 3)),
    speeds=st.sampled_from(((), (("H100", 1_000_000), ("A100", 315_000)))),
    prefers=st.sampled_from(((), ("spot-H100-0",), ("spot-A100-1", "reserved-A100-0"))),
    patience_us=st.sampled_from((0, 0, 0, MINUTE)),
    notice_us=st.sampled_from((0, 0, 0, MINUTE, 2 * MINUTE)),
    mixtures=st.sampled_from(((), (), (("H100", "A100"),))),
    account_id=st.sampled_from(("acme", "bolt", "cusp")),
    accelerators=st.sampled_from(((), ("H100",), ("A100",), ("A100", "H100"))),
    tier_rank=st.integers(0, 2),
    service=st.sampled_from(("training", "training", "batch", "inference")),
    preemptible=st.booleans(),
    grace_us=st.sampled_from((0, 30_000_000, 3 * MINUTE)),
    cohort=st.sampled_from(("", "", "one")),
    weight_ppm=st.sampled_from((1_000_000, 1_000_000, 3_000_000)),
)


class Pair:
    """Two planners fed the same; one of them is sometimes rebuilt from its encoded state."""

    def __init__(self):
        self.one = Planner(PlacementState(policy=POLICY))
        self.two = Planner(PlacementState(policy=POLICY))

    def __getattr__(self, name):
        def both(*args, **facts):
            first, second = getattr(self.one, name)(*args, **facts), getattr(self.two, name)(*args, **facts)
            assert first == second, f"{name} differs"
            return first

        return both

    def rebuild(self):
        encoded = msgspec.msgpack.encode(self.two._state)
        assert encoded == msgspec.msgpack.encode(self.one._state)
        self.two = Planner(msgspec.msgpack.decode(encoded, type=PlacementState))


class Placing(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.planner = Pair()
        self.now = 1_000_000 * MINUTE
        self.count = 0
        self.requests = {}
        self.waiting = {}
        self.running = {}
        self.leaving = {}
        self.owed_to = {}

    @initialize(chosen=st.lists(st.sampled_from(NODES), min_size=2, unique=True))
    def begin(self, chosen):
        for node in chosen:
            self.planner.add_node(node, now_us=self.now)

    @rule(node=st.sampled_from(NODES))
    def join(self, node):
        self.lose(self.planner.add_node(node, now_us=self.now))

    @rule(node=st.sampled_from(NODES), notice_us=st.sampled_from((None, MINUTE, 3 * MINUTE)))
    def announce(self, node, notice_us):
        """Another notice is no other node: whoever is there stays."""
        before = {view.node_id: (view.status, view.jobs) for view in self.planner.nodes()}.get(node.node_id)
        changed = msgspec.structs.replace(node, notice_us=notice_us)
        self.lose(self.planner.add_node(changed, now_us=self.now))
        now = self.planner.one._state.nodes[node.node_id]
        assert now.node.notice_us == notice_us
        same = msgspec.structs.replace(now.node, notice_us=None) == msgspec.structs.replace(node, notice_us=None)
        assert same
        jobs = {view.node_id: view.jobs for view in self.planner.nodes()}[node.node_id]
        if before is not None and before[0] != "down" and jobs != before[1]:
            assert not jobs, "only one that came back as something else loses what ran on it"

    @rule(node=st.sampled_from(NODES), pool=st.sampled_from(POOLS))
    def join_as_another(self, node, pool):
        changed = msgspec.structs.replace(node, pool=pool[0], dedicated_to=pool[1])
        self.lose(self.planner.add_node(changed, now_us=self.now))

    @rule(node=st.sampled_from(NODES))
    def remove(self, node):
        self.lose(self.planner.remove_node(node.node_id))

    @rule(node=st.sampled_from(NODES))
    def drain(self, node):
        for job_id in self.planner.drain_node(node.node_id):
            assert job_id in self.running or job_id in self.leaving
            self.lose((job_id,))

    @rule(request=asked, minutes=st.integers(0, 3))
    def submit(self, request, minutes):
        self.now += minutes * MINUTE
        self.count += 1
        named = msgspec.structs.replace(request, job_id=f"j{self.count}", submitted_at_us=self.now)
        if self.planner.check(named) is None:
            self.enqueue(named)

    @rule(data=st.data())
    @precondition(lambda self: self.running)
    def finish(self, data):
        self.free(data.draw(st.sampled_from(sorted(self.running))), again=False)

    @rule(data=st.data())
    @precondition(lambda self: self.running)
    def ask_to_stop(self, data):
        job_id = data.draw(st.sampled_from(sorted(self.running)))
        self.planner.note_leaving(job_id)
        self.lose((job_id,))

    @rule(data=st.data(), again=st.booleans())
    @precondition(lambda self: self.leaving)
    def leave(self, data, again):
        self.free(data.draw(st.sampled_from(sorted(self.leaving))), again=again)

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def withdraw(self, data):
        job_id = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.planner.withdraw(job_id)
        del self.waiting[job_id]

    @rule(data=st.data(), saved=st.booleans())
    @precondition(lambda self: self.running)
    def progress(self, data, saved):
        job_id = data.draw(st.sampled_from(sorted(self.running)))
        self.planner.note_started(job_id, now_us=self.now)
        if saved:
            self.planner.note_checkpoint(job_id, now_us=self.now, write_us=MINUTE, restore_us=MINUTE)

    @rule(account=st.sampled_from(("acme", "bolt", "new")), uhs=st.integers(0, 10**12))
    def use(self, account, uhs):
        self.planner.note_usage(account, uhs=uhs, now_us=self.now)

    @rule(account=st.sampled_from(("acme", "bolt", "unknown")), cohort=st.sampled_from(("", "one", "two")))
    def weigh(self, account, cohort):
        self.planner.weigh(account, weight_ppm=2_000_000, cohort=cohort, cohort_weight_ppm=1_000_000)

    @precondition(lambda self: self.count % 5 == 4)
    @rule(quotas=st.sampled_from(QUOTAS))
    def guarantee(self, quotas):
        self.planner.follow(msgspec.structs.replace(POLICY, quotas=quotas), now_us=self.now)

    @rule(minutes=st.integers(1, 90))
    def wait(self, minutes):
        self.now += minutes * MINUTE

    @precondition(lambda self: self.planner.one.at_rest)
    @rule()
    def snapshot(self):
        """The gate plans after every event that changes what can be done, so its snapshots are of planners at rest."""
        self.planner.rebuild()
        assert self.planner.one.derived() == self.planner.two.derived()

    @rule()
    def plan(self):
        due = self.planner.next_due_us()
        steps = self.planner.plan(now_us=self.now)
        for step in steps:
            if isinstance(step, Placed):
                self.placed(step)
            else:
                self.evicted(step)
        following = self.planner.plan(now_us=self.now)
        assert not any(isinstance(step, Placed) for step in following), "all that fits is placed at once"
        for step in following:
            self.evicted(step)
        due = self.planner.next_due_us()
        assert due is None or due > self.now
        self.nobody_is_kept_waiting()

    @rule()
    def settle_down(self):
        """Without anything else happening, evictions end: nobody evicts his evictor in turn."""
        evictions = 0
        for _ in range(200):
            steps = self.planner.plan(now_us=self.now)
            for step in steps:
                if isinstance(step, Placed):
                    self.placed(step)
                else:
                    self.evicted(step)
                    evictions += 1
            if not steps:
                break
            for job_id in sorted(self.leaving):
                self.free(job_id, again=True)
        else:
            raise AssertionError("evictions never end")
        assert evictions <= 4 * self.count

    @invariant()
    def is_consistent(self):
        self.planner.check_invariants()
        state = self.planner.one._state
        assert set(state.queue) == set(self.waiting)
        jobs = {job_id for job_id, running in state.running.items() if not running.is_divided}
        assert jobs == set(self.running) | set(self.leaving)
        self.no_unit_is_had_twice()

    def no_unit_is_had_twice(self):
        """Whole devices and what is had of divided ones are no more than there is, however it is counted."""
        had = {}
        for job_id, step in (*self.running.items(), *self.leaving.items()):
            part = Fraction(*(self.requests[job_id].fraction or (1, 1)))
            for node_id, devices in step.shares:
                had[node_id] = had.get(node_id, 0) + devices * part
        for node in self.planner.nodes():
            if node.status != "down":
                of_device = Fraction(*(node.fraction or (1, 1)))
                lost = [job_id for job_id in self.leaving if job_id not in node.jobs]
                gone = sum(
                    devices * Fraction(*(self.requests[job_id].fraction or (1, 1)))
                    for job_id in lost
                    for node_id, devices in self.leaving[job_id].shares
                    if node_id == node.node_id
                )
                assert had.get(node.node_id, 0) - gone <= (node.devices - node.free) * of_device

    def enqueue(self, request):
        self.planner.enqueue(request, now_us=self.now)
        self.requests[request.job_id] = request
        self.waiting[request.job_id] = request

    def placed(self, step):
        request = self.waiting.pop(step.job_id)
        self.running[step.job_id] = step
        nodes = {view.node_id: view for view in self.planner.nodes()}
        assert request.least <= sum(devices for _, devices in step.shares) <= request.devices
        assert len({node_id for node_id, _ in step.shares}) == len(step.shares)
        assert not step.kinds or len(step.kinds) > 1
        for at, (node_id, devices) in enumerate(step.shares):
            node = nodes[node_id]
            assert node.status == "up"
            if step.kinds:
                assert node.accelerator == step.kinds[at]
                assert any(set(step.kinds) <= set(types) for types in request.mixtures)
            else:
                assert (node.accelerator, node.pool) == (step.accelerator, step.pool)
            given_us = self.planner.one._state.nodes[node_id].node.notice_us
            assert given_us is None or given_us >= request.notice_us
            assert node.dedicated_to in (None, request.account_id) or request.preemptible
            assert request.devices_per_node in (None, devices)
            divisible = node.units % request.fraction[1] == 0 if request.fraction else node.fraction is None
            assert divisible or node.fraction == request.fraction
        assert not request.accelerators or {step.accelerator, *step.kinds} <= set(request.accelerators)
        owners = {nodes[node_id].dedicated_to for node_id, _ in step.shares}
        pools = {nodes[node_id].pool for node_id, _ in step.shares}
        assert request.grace_us < 3 * MINUTE or request.service == "inference" or "reserved" not in pools
        assert request.service != "inference" or owners <= {None, request.account_id}
        assert ("reserved" in pools) <= (request.service == "inference" or request.preemptible)

    def evicted(self, step: Evict):
        victim, preemptor = self.requests[step.job_id], self.requests[step.for_job_id]
        assert victim.preemptible
        assert step.for_job_id in self.waiting
        assert victim.service != "inference" or step.reason == "backfill"
        assert preemptor.job_id != victim.job_id
        self.leaving[step.job_id] = self.running.pop(step.job_id)

    def lose(self, job_ids):
        for job_id in job_ids:
            if job_id in self.running:
                self.leaving[job_id] = self.running.pop(job_id)

    def free(self, job_id, *, again):
        assert self.planner.release(job_id, now_us=self.now)
        self.running.pop(job_id, None)
        self.leaving.pop(job_id, None)
        if again and self.planner.check(self.requests[job_id]) is None:
            self.enqueue(self.requests[job_id])

    def nobody_is_kept_waiting(self):
        """Where no reservation stands, nobody in line fits."""
        state, cluster = self.planner.one._state, self.planner.one._cluster
        for job_id, queued in state.queue.items():
            if job_id in state.claims:
                continue
            request = queued.request
            if request.patience_us and request.prefers and self.now < queued.queued_at_us + request.patience_us:
                continue
            groups = cluster.groups_for(queued.request, preemptible=queued.preemptible)
            assert mixture.find(cluster, groups, queued) is None, f"{job_id} fits as a mixture"
            for group in groups:
                assert cluster.find(group, Shape.of(queued.request), queued) is None, f"{job_id} fits {group.name}"


Placing.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestPlacing = Placing.TestCase
