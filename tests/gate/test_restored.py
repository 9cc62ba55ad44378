"""A gate restored from its own snapshot is the gate that wrote it: it knows the same, and decides the same from there on.

The whole core's model restores one now and then; here a small cluster, whose few nodes give more notice or less and come
and go all the time, restores one before every event.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fabric.gate import Gate, jobs, requests
from fabric.gate.derived import DERIVED, assert_same
from fabric.gate.events import (
    Cancel,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    NodeDown,
    NodeDrain,
    NodeUp,
    Pause,
    Pool,
    Resume,
    Submit,
    Tick,
    TopUp,
)
from fabric.gate.instructions import Accepted
from fabric.placement import Placed
from tests.gate.world import Clockwork, S, spec


class Twins(Clockwork):
    """A gate, and one that is restored from its snapshot before every event: they must decide the same."""

    def do(self, event):
        restored = Gate.restore(self.gate.snapshot())
        decision = super().do(event)
        assert restored.handle(event, self.now_us) == decision, "a restored gate decides otherwise"
        assert restored.snapshot() == self.gate.snapshot()
        assert_same(self.gate._core, restored._core)
        return decision

    def node(self, node_id, kind, notice_s=None, owner=None, *, devices=1):
        event = NodeUp(
            node_id=node_id,
            accelerator=kind,
            devices=devices,
            pool=Pool.DEDICATED if owner else Pool.SPOT,
            dedicated_to=owner,
            notice_us=None if notice_s is None else notice_s * S,
        )
        assert isinstance(self.do(event).outcome, Accepted)

    def submit(self, job_id, *types, **more):
        outcome = self.do(Submit(job_id=job_id, account_id="ada", spec=spec(types=types, **more))).outcome
        assert isinstance(outcome, Accepted), outcome

    def with_slow_saves(self, job_id):
        """Its saves take 30 s, so that it needs 46 s of notice; it is paused."""
        lease_id = self.job(job_id).lease_id
        self.do(LeaseStarted(lease_id=lease_id))
        self.do(LeaseSaved(lease_id=lease_id, write_us=30 * S))
        self.do(Pause(job_id=job_id, account_id=self.job(job_id).account_id))
        self.do(LeaseFinished(lease_id=lease_id, outcome=LeaseOutcome.SAVED))
        self.do(LeaseRemoved(lease_id=lease_id))

    def resume(self, job_id):
        self.do(Resume(job_id=job_id, account_id=self.job(job_id).account_id))


ACCOUNTS = ("ada", "bob")
NODES = {"h1": ("H100", None), "h2": ("H100", None), "a1": ("A100", None), "b1": ("A100", "bob")}
picks = st.integers(0, 30)


def twins():
    at = Twins(*ACCOUNTS)
    for account in ACCOUNTS:
        at.do(TopUp(account_id=account, amount_uhs=10_000 * S))
    return at


class ComeAndGo(RuleBasedStateMachine):
    """Four nodes of two types and two pools, and jobs that outlast the notice of some."""

    def __init__(self):
        super().__init__()
        self.at, self.count = twins(), 0
        for node_id, (kind, _) in NODES.items():
            self.at.node(node_id, kind)

    def jobs(self, *states):
        return [name for name, job in self.at.gate.state.jobs.items() if job.state in states]

    @rule(
        steps=st.lists(
            st.tuples(
                st.sampled_from(list(NODES)),
                st.sampled_from(("up", "up", "down", "down", "drain", "undo", "other")),
                st.sampled_from((None, 2, 20, 90)),
            ),
            min_size=1,
            max_size=4,
        )
    )
    def nodes_come_and_go(self, steps):
        for node_id, verb, notice_s in steps:
            kind, owner = NODES[node_id]
            match verb:
                case "up":
                    self.at.node(node_id, kind, notice_s, owner)
                case "other":
                    self.at.node(node_id, kind, notice_s, None if owner else "ada", devices=2)
                case "down":
                    self.at.do(NodeDown(node_id=node_id))
                case _:
                    self.at.do(NodeDrain(node_id=node_id, grace_us=5 * S, undo=verb == "undo"))

    @rule(
        wanted=st.lists(
            st.tuples(st.sampled_from((("H100",), ("A100",), ("H100", "A100"), ())), st.integers(1, 2), st.booleans()),
            min_size=1,
            max_size=4,
        )
    )
    def jobs_are_submitted(self, wanted):
        for types, devices, preemptible in wanted:
            self.count += 1
            more = {"devices": devices, "preemptible": preemptible, "max_retries": 9}
            self.at.do(
                Submit(job_id=f"j{self.count}", account_id=ACCOUNTS[devices % 2], spec=spec(types=types, **more))
            )

    @precondition(lambda self: self.jobs("starting"))
    @rule(pick=picks)
    def one_saves_slowly_and_is_paused(self, pick):
        found = self.jobs("starting")
        self.at.with_slow_saves(found[pick % len(found)])

    @precondition(lambda self: self.jobs("parked"))
    @rule()
    def all_go_on(self):
        for job_id in self.jobs("parked"):
            self.at.resume(job_id)

    @precondition(lambda self: self.jobs("queued"))
    @rule(pick=picks)
    def one_of_those_that_wait_is_cancelled(self, pick):
        found = self.jobs("queued")
        job_id = found[pick % len(found)]
        self.at.do(Cancel(job_id=job_id, account_id=self.at.job(job_id).account_id))

    @precondition(lambda self: self.at.gate.state.leases)
    @rule(pick=picks, outcome=st.sampled_from((LeaseOutcome.SUCCEEDED, LeaseOutcome.LOST, LeaseOutcome.SAVED)))
    def a_lease_ends(self, pick, outcome):
        leases = list(self.at.gate.state.leases)
        lease_id = leases[pick % len(leases)]
        self.at.do(LeaseStarted(lease_id=lease_id))
        self.at.do(LeaseFinished(lease_id=lease_id, outcome=outcome))
        self.at.do(LeaseRemoved(lease_id=lease_id))

    @rule(seconds=st.sampled_from((0, 1, 61, 700, 8_000, 20 * 86_400)))
    def time_passes(self, seconds):
        self.at.now_us += seconds * S
        self.at.do(Tick())

    @invariant()
    def nobody_waits_who_could_run(self):
        """Looked at anew, nothing more can be placed: what is out of sight is so for a reason. Where owners wait for what is lent,
        lanes are looked at one by one: it is not lent while theirs are out of sight.
        """
        again = Gate.restore(self.at.gate.snapshot())._core.planner
        lanes = [lane for lane in again._queue.named.values() if again._queue.first(lane) is not None]
        wanted = any(group.wanted for group in again._cluster.groups.values())
        for together in ([lane] for lane in lanes) if wanted else [lanes]:
            for lane in together:
                again._queue.wake(lane)
            placed = [step for step in again.plan(now_us=self.at.now_us) if isinstance(step, Placed)]
            assert not placed, "a job that fits waits"


ComeAndGo.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestNodesThatComeAndGo = ComeAndGo.TestCase


def test_a_job_starts_when_the_last_short_notice_node_is_gone():
    """It waits for notice; then the free devices of its type all give enough."""
    at = twins()
    at.node("a1", "A100")
    at.node("h1", "H100", notice_s=2)
    at.submit("slow", "A100", "H100")
    at.with_slow_saves("slow")
    at.submit("other", "A100")
    at.submit("short", "H100")
    at.node("h2", "H100")
    at.resume("slow")
    assert at.job("slow").state == "queued", "h2 is free, but its type gives 2 s of notice as long as h1 is there"
    at.do(NodeDown(node_id="h1"))
    assert at.job("slow").nodes == ("h2",)
    assert at.job("slow").state == "starting"


def test_a_returning_short_notice_node_takes_no_job_that_needs_more():
    """A job that waits for 46 s of notice isn't put on a node that gives 2 s."""
    at = twins()
    at.node("h1", "H100")
    at.node("a1", "A100", notice_s=2)
    at.submit("slow", "H100", "A100")
    at.with_slow_saves("slow")
    at.node("h2", "H100", notice_s=2)
    at.do(NodeDown(node_id="h2"))
    at.submit("other", "H100")
    at.resume("slow")
    assert at.job("slow").state == "queued", "h1 is taken, and a1 gives too little notice"
    at.node("h2", "H100", notice_s=2)
    for hour in range(48):
        at.at(3_600 * hour).do(Tick())
        assert at.job("slow").state == "queued"


def test_a_withdrawn_job_leaves_others_as_blocked_as_a_restored_gate_has_them():
    """How long a lane has been passed over is the state's to say, not that of a list of parked lanes."""
    at = twins()
    at.node("h1", "H100")
    for job_id in ("first", "second", "third"):
        at.submit(job_id, "H100")
    at.do(Pause(job_id="second", account_id="ada"))
    at.gate.check()


def test_every_attribute_beside_the_state_is_listed_as_derived():
    """A cache that nobody has listed is one that nobody compares."""
    at = twins()
    at.node("h1", "H100")
    core = at.gate._core
    planner = core.planner
    queue = planner._queue
    queue.lane_of(planner._queued(next_request(at), now_us=at.now_us))
    parts = [
        core, core.price_list, core.book.deadlines, core.book.own, planner, planner._cluster, planner._fairness, queue,
        planner._cluster.guarantees,
        planner._pins, planner._preemption, planner._preemption._budget, planner._lending, planner._decisions,
        planner._waiting, planner._waiting._overdue,
        planner._waiting._ripe, planner._cluster.divided, *[group.units for group in planner._cluster.groups.values()],
        *planner._cluster.groups.values(), *queue.named.values(),
    ]  # fmt: skip
    assert {type(part).__name__ for part in parts} == set(DERIVED)
    for part in parts:
        kind = type(part)
        held = set(getattr(kind, "__slots__", ())) | set(getattr(part, "__dict__", ()))
        assert held == set(DERIVED[kind.__name__]), (
            f"{kind.__name__}: list in fabric.gate.derived what it is derived from"
        )
    assert set(vars(core.book)) == {"daybook", "deadlines", "own", "forgets_at_us", "just_given_up", "just_shrunk"}


def next_request(at):
    return requests.request_of(at.gate._core, jobs.draft("j", "ada", None, spec(), now_us=at.now_us))


def test_a_restored_gate_looks_at_no_lane_that_the_one_before_would_not_look_at():
    state = ComeAndGo()
    state.nobody_waits_who_could_run()
    one = (("H100",), 1, False)
    submitted = [
        {"wanted": wanted} for wanted in (*[[one]] * 6, [(("H100",), 1, True), ((), 1, True)], [(("H100",), 2, True)])
    ]
    steps = (
        *[(state.jobs_are_submitted, each) for each in submitted],
        (state.one_of_those_that_wait_is_cancelled, {"pick": 30}),
        (state.nodes_come_and_go, {"steps": [("h1", "down", None)]}),
        (state.one_of_those_that_wait_is_cancelled, {"pick": 27}),
        (state.one_saves_slowly_and_is_paused, {"pick": 0}),
        (state.all_go_on, {}),
        (state.one_saves_slowly_and_is_paused, {"pick": 0}),
        (state.jobs_are_submitted, {"wanted": [(("H100",), 2, True)]}),
        (state.time_passes, {"seconds": 0}),
        (state.all_go_on, {}),
    )
    for step, given in steps:
        step(**given)
        state.nobody_waits_who_could_run()
