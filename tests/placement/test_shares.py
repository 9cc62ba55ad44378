"""Who gets how much: what a start costs is given back, shares are of payers, nobody begins at nothing, and one's own starts pass nobody."""

from itertools import count

import pytest

from fabric.placement import Evict, Node, Placed, PlacementState, Planner, Policy, Request

S = 1_000_000
MINUTE = 60 * S
HOUR = 60 * MINUTE
CT = 3_600 * S


class Tenants:
    """Tenants who always have more work than there are devices, until a time: device-µs that each got."""

    def __init__(self, devices, *, policy=None, backlog=3):
        self.planner = Planner(PlacementState(policy=policy or Policy()))
        self.planner.add_node(Node("n", "H100", devices, "spot"), now_us=0)
        self.now, self.ids, self.got, self.backlog = 0, count(), {}, backlog
        self.ends, self.wants, self.asked = {}, {}, {}

    def add(self, account, run_us, **more):
        self.wants[account] = (run_us, more)
        self.got.setdefault(account, 0)
        for _ in range(self.backlog):
            self.submit(account)

    def submit(self, account):
        run_us, more = self.wants[account]
        request = Request(job_id=f"j{next(self.ids)}", account_id=account, devices=1, submitted_at_us=self.now, **more)
        self.asked[request.job_id] = request, run_us
        self.planner.enqueue(request, now_us=self.now)

    def until(self, end_us):
        while True:
            for step in self.planner.plan(now_us=self.now):
                assert not isinstance(step, Evict)
                assert isinstance(step, Placed)
                request, run_us = self.asked[step.job_id]
                self.planner.note_started(step.job_id, now_us=self.now)
                self.ends[step.job_id] = self.now + run_us
                self.submit(request.account_id)
            before, self.now = self.now, min(*self.ends.values(), self.now + MINUTE)
            if self.now > end_us:
                return self.got
            for job_id in self.ends:
                account = self.asked[job_id][0].account_id
                self.planner.note_usage(account, uhs=self.now - before, now_us=self.now, job_id=job_id)
            for job_id in [name for name, at in self.ends.items() if at == self.now]:
                request, run_us = self.asked.pop(job_id)
                del self.ends[job_id]
                self.got[request.account_id] += run_us
                self.planner.release(job_id, now_us=self.now)
            self.planner.check_invariants()

    def share(self, account):
        return 100 * self.got[account] // sum(self.got.values())


@pytest.mark.parametrize("lengths", [(MINUTE, HOUR), (30 * S, HOUR), (30 * S, 10 * MINUTE), (MINUTE, 25 * MINUTE)])
def test_equal_tenants_get_as_much_whatever_the_length_of_their_jobs(lengths):
    world = Tenants(8, backlog=9)
    for account, run_us in zip(("brief", "long"), lengths, strict=True):
        world.add(account, run_us, weight_ppm=1_000_000)
    world.until(20 * HOUR)
    brief, long = world.got["brief"], world.got["long"]
    assert abs(brief - long) * 10 <= max(brief, long), f"{brief / HOUR:.1f} and {long / HOUR:.1f} device-hours"


def test_what_a_start_cost_is_given_back_when_the_job_ends(story):
    at = story("h0 H100 1 spot")
    at.submit("runs", account="cusp")
    at.planner.note_usage("known", uhs=2 * CT // 60, now_us=at.now)
    for account in ("known", "brief"):
        at.planner._fairness.use(account, uhs=0, now_us=at.now)
    at.queue("b", account="brief")
    at.release("runs")
    at.now += MINUTE
    at.queue("k", account="known")
    at.queue("b2", account="brief")
    assert at.planner.queue_position("k") == 0, "while it runs, its start counts"
    at.planner.note_usage("brief", uhs=CT // 60, now_us=at.now)
    assert at.release("b") == ["b2@h0:1"], "it has used less"


def test_what_is_used_counts_once_however_jobs_overlap(story):
    at = story("h0 H100 8 spot")
    at.submit("a", account="acme")
    at.submit("b", account="acme")
    fairness = at.planner._fairness
    for _ in range(30):
        at.now += MINUTE
        at.planner.note_usage("acme", uhs=2 * CT // 60, now_us=at.now)
    at.release("a")
    at.planner.note_usage("acme", uhs=CT // 60, now_us=at.now)
    at.release("b")
    at.planner.note_usage("other", uhs=61 * CT // 60, now_us=at.now)
    assert abs(fairness.keys["acme"] - fairness.keys["other"]) < fairness.keys["other"] // 500


def test_a_job_uses_its_own_fee_and_what_no_job_is_named_for_uses_all(story):
    at = story("h0 H100 8 spot")
    for name in ("a", "b"):
        at.submit(name, account="acme")
    account, running = at.planner._state.accounts["acme"], at.planner._state.running
    fee = running["a"].fee
    at.planner.note_usage("acme", uhs=4 * MINUTE, now_us=at.now, job_id="a")
    assert (running["a"].fee, running["b"].fee, account.usage) == (fee * 6 // 10, fee, 2 * fee)
    at.planner.note_usage("acme", uhs=30 * MINUTE, now_us=at.now, job_id="a")
    assert (running["a"].fee, account.usage, account.credit) == (0, 2 * fee + fee * 24 // 10, fee)
    at.planner.note_usage("acme", uhs=9 * MINUTE, now_us=at.now)
    assert (account.usage, account.credit) == (2 * fee + fee * 24 // 10, fee // 10)
    at.release("b")
    assert (account.usage, account.credit, account.fees) == (fee * 43 // 10, 0, 0), "34 and 9 minutes were used"


def test_ten_accounts_of_one_payer_get_the_share_of_one():
    world = Tenants(8, backlog=9)
    world.add("alone", 10 * MINUTE)
    for at in range(10):
        world.add(f"one-of-ten-{at}", 10 * MINUTE, cohort="ten")
    world.until(20 * HOUR)
    assert 48 <= world.share("alone") <= 52
    each = [world.got[f"one-of-ten-{at}"] for at in range(10)]
    assert max(each) - min(each) <= 2 * HOUR, "and among them whoever came first goes first"


@pytest.mark.parametrize("cohorts", [False, True])
def test_weights_are_of_accounts_and_of_payers(cohorts):
    world = Tenants(8, backlog=9)
    for name, weight in (("three", 3_000_000), ("one", 1_000_000)):
        if cohorts:
            for at in range(2):
                world.add(f"{name}{at}", 10 * MINUTE, cohort=name, cohort_weight_ppm=weight)
        else:
            world.add(name, 10 * MINUTE, weight_ppm=weight)
    world.until(40 * HOUR)
    three = sum(got for name, got in world.got.items() if name.startswith("three"))
    assert 0.73 <= three / sum(world.got.values()) <= 0.77


def test_a_new_account_begins_where_the_least_of_those_present_stand(story):
    at = story("h0 H100 1 spot")
    at.submit("before", account="less")
    at.release("before")
    at.submit("runs", account="old")
    at.planner.note_usage("old", uhs=500 * CT, now_us=at.now)
    at.planner.note_usage("less", uhs=300 * CT, now_us=at.now)
    at.queue("o", account="old")
    at.queue("l", account="less")
    at.queue("n", account="new")
    assert at.planner.queue_position("l") == 0, "who came first of those who have used as much"
    at.planner.note_usage("less", uhs=CT, now_us=at.now)
    assert at.planner.queue_position("n") == 0
    at.planner.note_usage("new", uhs=2 * CT, now_us=at.now)
    assert at.planner.queue_position("n") == 1
    assert at.planner.queue_position("o") == 2, "it isn't put behind who has used more"


def test_one_whose_first_use_was_a_call_of_a_model_begins_there_too(story):
    at = story("h0 H100 1 spot")
    at.submit("runs", account="old")
    at.planner.note_usage("old", uhs=500 * CT, now_us=at.now)
    at.queue("o", account="old")
    at.planner.note_usage("caller", uhs=1, now_us=at.now)
    at.queue("c", account="caller")
    assert at.planner.queue_position("o") == 0


def test_an_account_that_moves_to_another_payer_counts_there_from_now_on(story):
    at = story("h0 H100 1 spot")
    at.submit("runs", account="cusp")
    at.planner.note_usage("a", uhs=9 * CT, now_us=at.now)
    at.planner.note_usage("b", uhs=5 * CT, now_us=at.now)
    for account in ("a", "b"):
        at.queue(account, account=account, cohort="heavy" if account == "b" else "")
    at.planner.note_usage("b", uhs=5 * CT, now_us=at.now)
    assert [at.planner.queue_position(name) for name in ("a", "b")] == [0, 1]
    at.planner.weigh("b", weight_ppm=4_000_000, cohort="", cohort_weight_ppm=1_000_000)
    at.planner.check_invariants()
    assert [at.planner.queue_position(name) for name in ("a", "b")] == [1, 0]


def test_starts_of_ones_own_pass_nobody(story):
    at = story("h0 H100 8 spot", bypasses_max=3)
    at.submit("runs", 6, preemptible=False)
    at.submit("gang", 8, account="acme")
    for number in range(9):
        at.submit(f"own{number}", account="acme")
        at.release(f"own{number}")
    assert at.planner._state.pins == {}
    for number in range(3):
        assert at.planner._state.pins == {}
        at.submit(f"others{number}", account="bolt")
        at.release(f"others{number}")
    assert list(at.planner._state.pins) == ["gang"]


def test_starts_of_another_account_of_the_same_payer_pass_nobody_either(story):
    at = story("h0 H100 8 spot", bypasses_max=3)
    at.submit("runs", 6, preemptible=False)
    at.submit("gang", 8, account="acme", cohort="one")
    for number in range(9):
        at.submit(f"own{number}", account="bolt", cohort="one")
        at.release(f"own{number}")
    assert at.planner._state.pins == {}


def test_a_gang_that_stands_behind_a_decoy_of_ones_own_is_not_aged_by_it(story):
    at = story("h0 H100 8 spot", bypasses_max=3)
    at.submit("runs", 6, account="cusp", preemptible=False)
    at.submit("decoy", 8, account="bolt")
    at.submit("gang", 8, account="acme")
    for number in range(9):
        at.submit(f"own{number}", account="acme")
        at.release(f"own{number}")
        if at.planner._state.pins:
            break
    at.planner.withdraw("decoy")
    at.plan()
    assert at.planner._state.pins == {}


def test_however_often_a_key_falls_a_lane_keeps_few_entries_of_it():
    world = Tenants(2, backlog=3)
    for account in ("a", "b", "c"):
        world.add(account, S, cohort="one" if account == "c" else "")
    world.until(HOUR // 6)
    lanes = world.planner._queue.lanes.values()
    assert sum(len(lane.heads) for lane in lanes) < 60
