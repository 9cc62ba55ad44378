"""Quotas: what is guaranteed can be had back, what is lent has a bound, and nobody holds more than he may borrow."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fabric.placement import Evict, Node, Placed, PlacementState, Planner, Policy, Request
from fabric.placement.quota_terms import Quota

S = 1_000_000
MINUTE = 60 * S


def quota(account="", nominal=0, borrow=None, lend=None, *, cohort="", kind="H100"):
    return Quota(accelerator=kind, account=account, cohort=cohort, nominal=nominal, borrow_max=borrow, lend_max=lend)


def cluster(story, *quotas, devices=8):
    return story(f"n0 H100 {devices} spot", quotas=quotas)


def test_who_asks_for_what_is_his_gets_it_back_from_a_better_class_at_once(story):
    at = cluster(story, quota("acme", 4), quota("bolt", 4))
    assert at.submit("b", 8, account="bolt", tier=0) == ["b@n0:8"]
    assert at.submit("a", 4, account="acme", tier=2) == ["b>a"]
    assert at.release("b") == ["a@n0:4"]


def test_what_is_within_a_quota_is_not_evicted_for_a_better_class_of_who_borrows(story):
    at = cluster(story, quota("acme", 4), quota("bolt", 4))
    assert at.submit("a", 4, account="acme", tier=2) == ["a@n0:4"]
    assert at.submit("b", 8, account="bolt", tier=0) == []
    assert at.wait(60 * MINUTE) == []
    assert at.submit("c", 4, account="bolt", tier=0) == ["c@n0:4"]


def test_who_has_no_quota_borrows_what_is_idle(story):
    at = cluster(story, quota("acme", 8))
    assert at.submit("x", 8, account="anybody", tier=0) == ["x@n0:8"]
    assert at.submit("a", 8, account="acme", tier=2) == ["x>a"]


def test_nobody_holds_more_than_he_may_borrow(story):
    at = cluster(story, quota("acme", 2, borrow=2))
    assert at.submit("a", 2, account="acme") == ["a@n0:2"]
    assert at.submit("b", 2, account="acme") == ["b@n0:2"]
    assert at.submit("c", 1, account="acme") == []
    assert at.submit("x", 4, account="anybody") == ["x@n0:4"], "others pass who waits for his own quota"
    assert at.release("b") == ["c@n0:1"]


def test_an_elastic_gang_takes_no_more_than_may_be_borrowed(story):
    at = cluster(story, quota("acme", 2, borrow=3))
    assert at.submit("a", 8, devices_least=1, account="acme") == ["a@n0:5"]


def test_what_is_not_lent_stays_free_for_its_owner(story):
    at = cluster(story, quota("acme", 4, lend=1))
    assert [at.submit(f"x{n}", 1, account="x")[:1] for n in range(6)] == [[f"x{n}@n0:1"] for n in range(5)] + [[]]
    assert at.submit("a", 3, account="acme") == ["a@n0:3"], "nobody has to leave for what wasn't lent"


def test_who_takes_his_own_does_not_take_what_another_keeps_free(story):
    at = cluster(story, quota("acme", 4), quota("bolt", 4, lend=0))
    assert at.submit("x", 4, account="x") == ["x@n0:4"]
    assert at.submit("a", 4, account="acme") == ["x>a", "a@n0:4"], "it starts at once, and x makes up for it"
    assert at.submit("y", 1, account="y") == []
    at.release("x")
    assert at.submit("b", 4, account="bolt") == ["b@n0:4"]


def test_who_has_all_that_is_his_does_not_take_what_another_keeps_free_for_a_better_class_of_his_own(story):
    at = cluster(story, quota("acme", 1), quota("bolt", 4, lend=0))
    assert [at.submit(f"a{n}", 1, account="acme")[:1] for n in range(4)] == [[f"a{n}@n0:1"] for n in range(4)]
    assert at.submit("best", 1, account="acme", tier=0) == [], "of his own jobs it would be within his quota"
    assert at.submit("b", 4, account="bolt") == ["b@n0:4"], "at once"


def test_who_is_within_his_quota_goes_before_a_better_class_that_would_borrow(story):
    at = cluster(story, quota("acme", 8))
    at.submit("filler", 8, account="acme", preemptible=False)
    at.queue("x", 8, account="x", tier=0)
    at.queue("a", 8, account="acme", tier=2)
    assert at.release("filler") == ["a@n0:8"]


def test_accounts_of_a_cohort_lend_to_each_other_before_others_get_it(story):
    at = cluster(story, quota("one", 4), quota("two", 4))
    for account in ("one", "two"):
        at.planner.weigh(account, weight_ppm=10**6, cohort="house", cohort_weight_ppm=10**6)
    assert at.submit("x", 8, account="x") == ["x@n0:8"]
    assert at.submit("a", 8, account="one", cohort="house") == ["x>a"], "what the other doesn't use is the cohort's"
    assert at.release("x") == ["a@n0:8"]
    assert at.submit("b", 4, account="two", cohort="house") == ["a>b"], "its own, though a sibling has it"


def test_a_cohort_has_a_limit_of_its_own(story):
    at = cluster(story, quota(cohort="house", nominal=4, borrow=1))
    assert at.submit("a", 3, account="one", cohort="house") == ["a@n0:3"]
    assert at.submit("b", 2, account="two", cohort="house") == ["b@n0:2"]
    assert at.submit("c", 1, account="three", cohort="house") == []
    assert at.release("a") == ["c@n0:1"]


def test_who_can_not_be_evicted_borrows_only_what_nobody_has_a_quota_of(story):
    at = cluster(story, quota("acme", 6))
    assert at.submit("x", 2, account="x", preemptible=False) == ["x@n0:2"]
    assert at.submit("y", 1, account="x", preemptible=False) == []
    assert at.submit("a", 6, account="acme") == ["a@n0:6"]


def test_a_quota_counts_no_cells_of_the_account_s_own_and_lent_nodes_as_borrowed(story):
    at = story("n0 H100 4 spot", "e0 H100 4 dedicated acme", "r0 H100 4 reserved", quotas=(quota("acme", 2, borrow=2),))
    assert at.submit("own", 4, account="acme", each=4) == ["own@e0:4"]
    assert at.submit("a", 2, account="acme") == ["a@n0:2"]
    assert at.submit("b", 2, account="acme", each=2) == ["b@n0:2"]
    assert at.submit("c", 1, account="acme") == []


def test_a_quota_that_is_set_while_jobs_run_is_kept_from_then_on(story):
    at = cluster(story)
    assert at.submit("x", 8, account="x", tier=0) == ["x@n0:8"]
    at.planner.follow(msgspec.structs.replace(at.planner._state.policy, quotas=(quota("acme", 8),)), now_us=at.now)
    assert at.submit("a", 8, account="acme", tier=2) == ["x>a"]
    at.planner.follow(msgspec.structs.replace(at.planner._state.policy, quotas=()), now_us=at.now)
    assert at.release("x") == ["a@n0:8"]


@pytest.mark.parametrize(
    "wrong",
    [
        quota("acme", -1), quota("acme", 1, lend=2), quota("acme", 1, borrow=-1), quota("", 1), quota("a", 1, cohort="b"),
        quota("acme", 1, kind=""),
    ],
)  # fmt: skip
def test_a_quota_that_can_not_be_meant_is_named(wrong):
    assert Policy(quotas=(wrong,)).mistake == "quotas"
    assert Policy(quotas=(quota("acme", 1), quota("acme", 2))).mistake == "quotas", "one for an owner and type"


# -- random streams ----------------------------------------------------------------------------------------------------

NODES = 4
EACH = 4
HOUSE = ("one", "two")
ACCOUNTS = ("acme", "bolt", *HOUSE, "x")
"""x has no quota ever."""

limits = st.one_of(st.none(), st.integers(0, 4))


@st.composite
def quotas(draw):
    """Quotas that the cluster can keep."""
    left, found = NODES * EACH, []
    for owner in draw(st.lists(st.sampled_from((*ACCOUNTS[:-1], "cohort")), unique=True)):
        nominal = draw(st.integers(0, min(6, left)))
        left -= nominal
        lend = draw(st.one_of(st.none(), st.integers(0, nominal)))
        name = {"cohort": "house"} if owner == "cohort" else {"account": owner}
        found.append(quota(nominal=nominal, borrow=draw(limits), lend=lend, **name))
    return tuple(sorted(found, key=lambda each: each.owner))


class Keeping(RuleBasedStateMachine):
    """Single devices on one type: what quotas say, reckoned by a model that knows only who has how many."""

    def __init__(self):
        super().__init__()
        self.planner = Planner(PlacementState(policy=Policy(run_us_min=30 * MINUTE)))
        self.now, self.count, self.quotas = 1_000_000 * MINUTE, 0, ()
        self.jobs, self.running, self.leaving = {}, {}, {}
        for at in range(NODES):
            self.planner.add_node(Node(f"n{at}", "H100", EACH, "spot"), now_us=self.now)
        for account in HOUSE:
            self.planner.weigh(account, weight_ppm=10**6, cohort="house", cohort_weight_ppm=10**6)

    @initialize(quotas=quotas(), largest=st.sampled_from((1, 1, 3)))
    def begin(self, quotas, largest):
        self.set(quotas)
        self.largest, self.is_kept = largest, largest == 1

    @precondition(lambda self: self.count % 7 == 6)
    @rule(quotas=quotas())
    def set(self, quotas):
        self.quotas = quotas
        self.planner.follow(msgspec.structs.replace(self.planner._state.policy, quotas=quotas), now_us=self.now)
        self.plan()
        self.is_kept = False

    @rule(account=st.sampled_from(ACCOUNTS), tier=st.integers(0, 2), jobs=st.integers(1, 6), devices=st.integers(1, 3))
    def submit(self, account, tier, jobs, devices):
        for _ in range(jobs):
            self.enqueue(account, tier, min(devices, self.largest))
        self.plan()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data):
        self.free(data.draw(st.sampled_from(sorted(self.running))))
        self.plan()

    @precondition(lambda self: self.leaving)
    @rule(data=st.data(), again=st.booleans())
    def leave(self, data, again):
        job_id = data.draw(st.sampled_from(sorted(self.leaving)))
        self.free(job_id)
        if again:
            self.planner.enqueue(self.jobs[job_id], now_us=self.now)
        self.plan()

    @rule(minutes=st.integers(1, 90))
    def wait(self, minutes):
        self.now += minutes * MINUTE
        self.plan()

    @rule()
    def is_the_same_when_restored(self):
        encoded = msgspec.msgpack.encode(self.planner._state)
        other = Planner(msgspec.msgpack.decode(encoded, type=PlacementState))
        assert other.derived() == self.planner.derived()
        self.planner = other

    @rule(data=st.data())
    def what_is_guaranteed_is_had_back_within_a_grace(self, data):
        """An owner asks for all that is his: nothing of it waits for more than that others have left."""
        owners = [each for each in self.quotas if each.account]
        if not owners or self.largest > 1:
            return
        mine = data.draw(st.sampled_from(owners))
        state = self.planner._state
        for job_id in [name for name, queued in state.queue.items() if queued.request.account_id == mine.account]:
            self.planner.withdraw(job_id)
        self.plan()
        asked = [self.enqueue(mine.account, 2, 1) for _ in range(max(mine.nominal - self.has(mine.account), 0))]
        if any(each.cohort for each in self.quotas) and mine.account in HOUSE and not self.cohort_lets(len(asked)):
            return
        if mine.limit is not None and self.has(mine.account) + len(asked) > mine.limit:
            return
        self.plan()
        assert all(job_id in self.running or job_id in state.claims for job_id in asked)

    @rule()
    def settle_down(self):
        """Whoever was evicted asks again: that ends."""
        evictions = 0
        for _ in range(100):
            for job_id in sorted(self.leaving):
                self.free(job_id)
                self.planner.enqueue(self.jobs[job_id], now_us=self.now)
            evictions += len(steps := [step for step in self.plan() if isinstance(step, Evict)])
            if not steps and not self.leaving:
                return
        raise AssertionError(f"{evictions} evictions, and no end")

    @invariant()
    def what_is_not_lent_is_free_or_being_left(self):
        state = self.planner._state
        free = sum(node.free for node in state.nodes.values())
        leaving = sum(sum(devices for _, devices in self.running_of(job_id)) for job_id in self.leaving)
        owed = sum(claim.owed for claim in state.claims.values())
        kept = sum(
            max(each.nominal - each.lend_max - self.has(each.account), 0)
            for each in self.quotas
            if each.account and each.lend_max is not None
        )
        assert not self.is_kept or free + leaving - owed >= kept

    is_kept = False
    largest = 1

    def cohort_lets(self, more):
        for each in self.quotas:
            if each.cohort and each.borrow_max is not None:
                own = sum(other.nominal for other in self.quotas if other.account in HOUSE)
                counted = sum(
                    max(
                        self.has(account),
                        sum(
                            q.nominal - q.lend_max
                            for q in self.quotas
                            if q.account == account and q.lend_max is not None
                        ),
                    )
                    for account in HOUSE
                )
                return counted + more <= each.nominal + own + each.borrow_max
        return True

    def running_of(self, job_id):
        return self.planner._state.running[job_id].shares

    def has(self, account):
        state = self.planner._state
        running = [running.shares for running in state.running.values() if running.request.account_id == account]
        claims = [
            claim.shares for name, claim in state.claims.items() if state.queue[name].request.account_id == account
        ]
        return sum(devices for shares in (*running, *claims) for _, devices in shares)

    def enqueue(self, account, tier, devices):
        self.count += 1
        job_id = f"j{self.count}"
        self.jobs[job_id] = Request(
            job_id=job_id,
            account_id=account,
            devices=devices,
            tier_rank=tier,
            cohort="house" if account in HOUSE else "",
            submitted_at_us=self.now,
        )
        self.planner.enqueue(self.jobs[job_id], now_us=self.now)
        return job_id

    def free(self, job_id):
        self.running.pop(job_id, None)
        self.leaving.pop(job_id, None)
        assert self.planner.release(job_id, now_us=self.now)

    def plan(self):
        before = {account: self.has(account) for account in ACCOUNTS}
        steps = self.planner.plan(now_us=self.now)
        self.planner.check_invariants()
        assert self.planner.at_rest
        for step in steps:
            if isinstance(step, Placed):
                self.running[step.job_id] = step
            else:
                self.running.pop(step.job_id)
                self.leaving[step.job_id] = step
        for each in self.quotas:
            if each.account and each.limit is not None:
                assert self.has(each.account) <= max(each.limit, before[each.account])
        return steps


Keeping.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestKeeping = Keeping.TestCase
