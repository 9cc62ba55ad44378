"""Stories of limits that reset: refused, parked and gone on by the clock, counted where it burned, told once."""

import pytest

from fabric.gate.account_events import AddMember, CreateKey, CreateProject
from fabric.gate.events import (
    HoldMode,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseStarted,
    Metered,
    NodeUp,
    Pool,
    Sample,
    Submit,
    Tick,
    TopUp,
)
from fabric.gate.instructions import Accepted, StopLease
from fabric.gate.limit_events import LearnZone, LimitTerms, SetLimit, Unit, Whose
from fabric.gate.limits import standing
from fabric.gate.periods import Period, Zone
from fabric.gate.questions import CallerOf, LimitsOf
from fabric.gate.roles import Role
from fabric.gate.serving_events import Authorize, ReleaseHold, SettleHold
from tests.gate.test_call_stories import COST, USE, call, hold, offer, say
from tests.gate.world import DAY, T0, Clockwork, S, spec

MIDNIGHT = (T0 // DAY + 1) * DAY
"""The first one in the world's time, in UTC: a bit less than two hours after its beginning."""


def daily(amount, **more):
    return LimitTerms(period=more.pop("period", Period.DAY), amount=amount, **more)


@pytest.fixture
def world():
    made = Clockwork("ada", "bob")
    made.do(offer())
    made.do(TopUp(account_id="ada", amount_uhs=10_000 * S))
    made.do(NodeUp(node_id="n1", accelerator="H100", devices=8, pool=Pool.SPOT))
    made.do(CreateKey(key_id="k", account_id="ada", secret_sha256=""))
    return made


def limit(world, terms, whose=Whose.KEY, **more):
    name = more.pop("name", "k" if whose is Whose.KEY else "")
    return world.do(SetLimit(account_id="ada", whose=whose, name=name, terms=terms, **more)).outcome


def until(world, at_us):
    world.at((at_us - T0) / S).do(Tick())


def used(world, whose="key/k"):
    core = world.gate._core
    return [standing(core, each, world.now_us).used for each in core.state.limits[whose]]


def start(world, seconds=5_000, job="j", **more):
    wanted = spec(seconds * S, hold=HoldMode.ROLLING, **more)
    outcome = world.do(Submit(job_id=job, account_id="ada", spec=wanted, key_id="k")).outcome
    if isinstance(outcome, Accepted):
        world.do(LeaseStarted(lease_id=f"{job}.1"))
    return outcome


def burn(world, seconds, *, lease="j.1", seq):
    """So many seconds at the reference utilisation of one device."""
    world.at((world.now_us - T0) / S + seconds)
    window = seconds * S
    return world.do(Metered(samples=(Sample(lease_id=lease, seq=seq, window_us=window, busy_us=window * 8 // 10),)))


# -- calls ------------------------------------------------------------------------------------------------------------


def test_a_limit_is_refused_with_the_number_the_limit_when_it_resets_and_a_remedy(world):
    assert limit(world, daily(COST)) == Accepted()
    hold(world, amount=50_000, minimum_uhs=1, key_id="k")
    say(world, call("a"), seq=1, end=True)
    event = Authorize(hold_id="t", account_id="ada", amount_uhs=50, use=USE, ttl_us=S, key_id="k")
    refusal = world.do(event).outcome
    assert (refusal.code, refusal.http_status) == ("spending_limit_reached", 402)
    assert refusal.facts["resets_at_us"] == MIDNIGHT
    assert (refusal.facts["used"], refusal.facts["limit"], refusal.facts["left_uhs"]) == (COST, COST, 0)
    for part in ("key k", "a day", "2023-11-15 00:00 UTC", "fabric keys limit"):
        assert part in refusal.message
    until(world, MIDNIGHT)
    assert isinstance(world.do(event).outcome, Accepted)


def test_what_is_held_counts_so_sixteen_gateways_stay_within_it(world):
    limit(world, daily(100_000))
    granted = 0
    for at in range(16):
        event = Authorize(
            hold_id=f"s{at}", account_id="ada", amount_uhs=30_000, use=USE, ttl_us=60 * S, minimum_uhs=1, key_id="k"
        )
        outcome = world.do(event).outcome
        granted += outcome.granted_uhs if isinstance(outcome, Accepted) else 0
    assert granted == 100_000


def test_what_is_held_over_a_reset_counts_in_the_new_period_too(world):
    limit(world, daily(30_000))
    hold(world, amount=30_000, key_id="k")
    until(world, MIDNIGHT)
    event = Authorize(hold_id="t", account_id="ada", amount_uhs=1, use=USE, ttl_us=S, key_id="k")
    world.do(ReleaseHold(hold_id="s", account_id="ada", seq=1))
    world.at((MIDNIGHT - T0) / S + 86_400)
    assert isinstance(world.do(event).outcome, Accepted)


def test_a_call_is_counted_in_the_period_in_which_it_ran(world):
    limit(world, daily(30_000))
    world.at((MIDNIGHT - T0) / S - 10)
    hold(world, amount=30_000, key_id="k")
    until(world, MIDNIGHT + 10 * S)
    late = call("late", began=MIDNIGHT - 6 * S, ended=MIDNIGHT - 2 * S)
    across = call("across", began=MIDNIGHT - 3 * S, ended=MIDNIGHT + S)
    say(world, late, across, seq=1)
    (one,) = world.gate.state.limits["key/k"]
    assert (one.used_before, one.used, one.used_ever) == (COST + COST * 3 // 4, COST // 4, 2 * COST)


def test_llm_tokens_are_limited_and_no_more_is_used_than_one_slice_beyond(world):
    limit(world, daily(1_000, unit=Unit.LLM))
    for at in range(16):
        event = Authorize(
            hold_id=f"s{at}", account_id="ada", amount_uhs=S, use=USE, ttl_us=60 * S, minimum_uhs=2_000, key_id="k"
        )
        world.do(event)
    held = [each.held_uhs for each in world.gate.state.book.holds.values()]
    cheapest = 4  # µHs a cached token of the offer
    assert sum(held[:-1]) // cheapest <= 1_000
    hold_id = next(iter(world.gate.state.book.holds))
    assert say(world, call("a", prompt=1_000), seq=1, hold_id=hold_id, end=True).records
    assert used(world) == [1_010]
    assert world.do(Authorize(
        hold_id="z", account_id="ada", amount_uhs=S, use=USE, ttl_us=60 * S, minimum_uhs=1, key_id="k"
    )).outcome.code == "spending_limit_reached"  # fmt: skip


def test_money_is_counted_at_the_accounts_price_to_the_last_fraction(world):
    limit(world, daily(1, unit=Unit.CNY))  # at 0.50 CNY a token 10⁻⁶ CNY are 7,200 µHs
    assert hold(world, amount=50_000, minimum_uhs=1, key_id="k").granted_uhs == 7_200
    say(world, call("a", prompt=50, completion=4), seq=1, end=True)  # 3,600 µHs
    assert hold(world, "t", amount=50_000, minimum_uhs=1, key_id="k").granted_uhs == 3_600


def test_of_several_limits_each_holds_and_the_refusal_names_the_nearest(world):
    limit(world, daily(50_000))
    limit(world, daily(20_000, period=Period.MONTH), Whose.ACCOUNT)
    assert hold(world, amount=60_000, minimum_uhs=1, key_id="k").granted_uhs == 20_000
    event = Authorize(hold_id="t", account_id="ada", amount_uhs=50, use=USE, ttl_us=S)
    refusal = world.do(event).outcome
    assert (refusal.facts["whose"], refusal.facts["period"]) == ("account/ada", "month")
    assert "2023-12-01 00:00 UTC" in refusal.message


def test_a_warning_refuses_nothing_and_is_told_once_a_period(world):
    limit(world, daily(COST, hard=False))
    told = lambda: [each for each in world.gate.state.till.notices.get("ada", ()) if each.what == "limit_reached"]  # noqa: E731
    for day in range(2):
        for at in range(3):
            name = f"{day}-{at}"
            hold(world, name, amount=50_000, key_id="k")
            say(world, call(name, began=world.now_us, ended=world.now_us), seq=1, hold_id=name, end=True)
        assert len(told()) == day + 1
        until(world, MIDNIGHT)


def test_a_gateway_is_told_what_the_limit_leaves_and_that_the_key_needs_slices_of_its_own(world):
    assert not world.gate.ask(CallerOf(key_id="k"), world.now_us).limited
    limit(world, daily(30_000))
    found = world.gate.ask(CallerOf(key_id="k"), world.now_us)
    assert (found.limited, found.free_uhs) == (True, 30_000)


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_is_parked_when_its_keys_limit_is_used_up_and_goes_on_when_it_resets(world):
    limit(world, daily(1_000 * S))
    assert start(world).held_uhs == 600 * S
    stops = []
    for seq in range(1, 120):
        decision = burn(world, 10, seq=seq)
        stops += [each for each in decision.instructions if isinstance(each, StopLease)]
        if stops:
            break
    assert [each.reason for each in stops] == ["spending_limit"]
    world.do(LeaseFinished(lease_id="j.1", outcome=LeaseOutcome.SAVED))
    world.do(LeaseRemoved(lease_id="j.1"))
    job = world.gate.state.jobs["j"]
    assert (job.state, job.reason, job.waits_until_us) == ("parked", "spending_limit", MIDNIGHT)
    assert job.burned_uhs <= 1_000 * S
    assert world.gate.next_due_us() <= MIDNIGHT
    world.do(TopUp(account_id="ada", amount_uhs=S))
    assert job.state == "parked", "tokens are not what it lacks"
    until(world, MIDNIGHT - S)
    assert job.state == "parked"
    until(world, MIDNIGHT)
    assert (job.state, job.waits_until_us) == ("starting", None)


def test_a_job_that_waits_for_its_limit_goes_on_as_soon_as_that_is_raised(world):
    limit(world, daily(600 * S))
    assert isinstance(start(world), Accepted)
    refusal = start(world, job="late")
    assert refusal.code == "spending_limit_reached"
    seq = 0
    while world.gate.state.leases["j.1"].state == "running":
        burn(world, 10, seq=(seq := seq + 1))
    world.do(LeaseFinished(lease_id="j.1", outcome=LeaseOutcome.SAVED))
    world.do(LeaseRemoved(lease_id="j.1"))
    assert world.gate.state.jobs["j"].reason == "spending_limit"
    limit(world, daily(5_000 * S))
    assert world.gate.state.jobs["j"].state == "starting"


def test_what_a_job_burns_across_a_reset_is_counted_where_it_burned(world):
    limit(world, daily(3_000 * S))
    world.at((MIDNIGHT - T0) / S - 40)
    start(world)
    burn(world, 30, seq=1)
    burn(world, 40, seq=2)
    (one,) = world.gate.state.limits["key/k"]
    assert (one.used_before, one.used) == (40 * S, 30 * S)


def test_a_paused_job_does_not_go_on_by_the_clock(world):
    from fabric.gate.events import Pause

    limit(world, daily(600 * S))
    start(world)
    seq = 0
    while world.gate.state.leases["j.1"].state == "running":
        burn(world, 10, seq=(seq := seq + 1))
    world.do(LeaseFinished(lease_id="j.1", outcome=LeaseOutcome.SAVED))
    world.do(LeaseRemoved(lease_id="j.1"))
    world.do(Pause(job_id="j", account_id="ada"))
    until(world, MIDNIGHT)
    assert world.gate.state.jobs["j"].state == "parked"


# -- setting them -----------------------------------------------------------------------------------------------------


def test_a_key_with_a_limit_neither_holds_for_others_nor_makes_keys(world):
    limit(world, daily(5 * S))
    assert {scope.value for scope in world.gate.state.keys["k"].scopes} == {
        "read", "jobs:own", "jobs:all", "models", "money",
    }  # fmt: skip
    more = SetLimit(account_id="ada", whose=Whose.KEY, name="k", terms=daily(9 * S), made_with="k")
    assert world.do(more).outcome.code == "restricted_key"


def test_a_new_key_may_come_with_limits(world):
    event = CreateKey(key_id="new", account_id="ada", secret_sha256="", limits=(daily(5 * S),))
    assert world.do(event).outcome == Accepted()
    assert {scope.value for scope in world.gate.state.keys["new"].scopes} == {"jobs:own", "models"}
    twice = CreateKey(key_id="n", account_id="ada", secret_sha256="", limits=(daily(5 * S), daily(6 * S)))
    assert world.do(twice).outcome.code == "too_many_limits"


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        (daily(0), "invalid_amount"),
        (daily(10**19), "invalid_amount"),
        (daily(1, starts_on=2), "invalid_start"),
        (daily(1, period=Period.MONTH, starts_on=32), "invalid_start"),
        (daily(1, zone="Mars/Olympus"), "unknown_zone"),
    ],
)
def test_what_cannot_be_meant_is_refused(world, terms, code):
    assert limit(world, terms).code == code


def test_only_an_operator_changes_what_an_operator_has_set(world):
    limit(world, daily(5 * S), Whose.ACCOUNT, by_operator=True)
    assert limit(world, daily(9 * S), Whose.ACCOUNT).code == "operator_only"
    assert limit(world, daily(9 * S), Whose.ACCOUNT, remove=True).code == "operator_only"
    assert limit(world, daily(9 * S), Whose.ACCOUNT, remove=True, by_operator=True) == Accepted()
    assert limit(world, daily(9 * S), Whose.ACCOUNT, remove=True).code == "not_found"


def test_keys_of_a_project_and_of_a_member_are_counted_together(world):
    world.do(CreateProject(account_id="ada", project="dev", wallet="ada"))
    world.do(AddMember(account_id="ada", member="mo", role=Role.DEVELOPER))
    for name, more in (
        ("one", {"project": "dev"}),
        ("two", {"project": "dev", "member": "mo"}),
        ("three", {"member": "mo"}),
    ):
        world.do(CreateKey(key_id=name, account_id="ada", secret_sha256="", **more))
    assert limit(world, daily(30_000), Whose.PROJECT, name="dev") == Accepted()
    assert limit(world, daily(40_000), Whose.MEMBER, name="mo") == Accepted()
    assert limit(world, daily(40_000), Whose.MEMBER, name="nobody").code == "not_found"
    assert world.gate.ask(CallerOf(key_id="one"), world.now_us).limited
    assert hold(world, "a", amount=20_000, key_id="one").granted_uhs == 20_000
    assert hold(world, "b", amount=20_000, minimum_uhs=1, key_id="two").granted_uhs == 10_000
    assert hold(world, "c", amount=50_000, minimum_uhs=1, key_id="three").granted_uhs == 30_000
    event = Authorize(hold_id="d", account_id="ada", amount_uhs=50, use=USE, ttl_us=S, key_id="two")
    refusal = world.do(event).outcome
    assert refusal.facts["whose"] in ("project/ada/dev", "member/ada/mo")
    assert isinstance(world.do(Authorize(
        hold_id="e", account_id="ada", amount_uhs=50, use=USE, ttl_us=S, key_id="k"
    )).outcome, Accepted), "it is nobody's limit"  # fmt: skip
    say(world, call("x"), hold_id="b", seq=1)
    assert (used(world, "project/ada/dev"), used(world, "member/ada/mo")) == ([COST], [COST])
    seen = world.gate.ask(LimitsOf(account_id="ada", key_id="two"), world.now_us)
    assert [(each.whose, each.name, each.held) for each in seen] == [
        ("member", "mo", 40_000 - COST), ("project", "dev", 30_000 - COST),
    ]  # fmt: skip


def test_other_clocks_begin_no_period_anew_that_has_begun(world):
    east = Zone(name="East/City", offsets_s=(8 * 3_600,))
    world.do(LearnZone(zone=east))
    limit(world, daily(10_000, zone="East/City"))
    (one,) = world.gate.state.limits["key/k"]
    hold(world, amount=5_000, key_id="k")
    say(world, call("a", prompt=100, completion=0), seq=1, end=True)
    began, ends = one.from_us, one.until_us
    world.do(LearnZone(zone=Zone(name="East/City", offsets_s=(9 * 3_600,))))
    assert (one.from_us, one.until_us) == (began, ends - 3_600 * S)
    assert one.used == 4_000
    assert SettleHold  # the rest of its life is as before
