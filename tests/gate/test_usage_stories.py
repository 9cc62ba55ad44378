"""Stories of use that is reported late, beyond what was held, or can't be charged: none of it is lost, none is owed."""

import pytest

from fabric.gate import calls as gate_calls
from fabric.gate import usage
from fabric.gate.account_events import CreateKey
from fabric.gate.events import Tick, TopUp
from fabric.gate.instructions import Accepted
from fabric.gate.questions import FreeOf, OpenUsageOf
from fabric.gate.serving_events import KeepUsage, ReleaseHold, SettleUsage, WriteOffUsage
from fabric.gate.views import RoomView
from tests.gate.test_call_stories import COST, call, free, hold, key_of, offer, say
from tests.gate.world import DAY, T0, Clockwork, S


@pytest.fixture
def world():
    made = Clockwork("ada", "bob")
    made.do(offer())
    made.do(TopUp(account_id="ada", amount_uhs=1_000 * S))
    return made


def test_what_was_written_off_is_in_the_calls_records_and_not_the_keys(world):
    """A slice of one call, two used, and the account's other tokens are spent: the last call bears the loss."""
    world.do(CreateKey(key_id="k", account_id="ada", secret_sha256=""))
    hold(world, amount=COST, key_id="k")
    hold(world, "other", amount=free(world))
    decision = say(world, call("a"), call("b"), seq=1, end=True)
    assert [(one.charged_uhs, one.absorbed_uhs) for one in decision.records] == [(COST, 0), (0, COST)]
    assert decision.outcome.facts["written_off_uhs"] == COST
    assert key_of(world) == (COST, 0)
    assert [transfer.kind for transfer in decision.transfers] == ["capture", "write_off"]


# -- holds that are over -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [True, False])
def test_a_call_of_a_hold_that_has_ended_is_charged_from_what_is_free(world, end):
    hold(world)
    world.do(ReleaseHold(hold_id="s", account_id="ada", seq=1))
    decision = say(world, call("a"), seq=2, end=end)
    assert isinstance(decision.outcome, Accepted)
    assert [(one.charged_uhs, one.absorbed_uhs) for one in decision.records] == [(COST, 0)]
    assert [(one.kind, one.flags) for one in decision.transfers] == [("capture", ("late", "over_hold"))]
    assert free(world) == 1_000 * S - COST
    assert say(world, call("a"), seq=3, end=end).records == (), "it is charged once"


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("days", [0, 40])
def test_a_call_of_a_hold_that_nobody_remembers_is_written_off(world, end, days):
    hold(world)
    world.at(days * 86_400).do(Tick())
    began = world.now_us - S
    decision = say(world, call("a", began=began, ended=began), seq=1, end=end, hold_id="s" if days else "unheard")
    assert isinstance(decision.outcome, Accepted)
    assert [(one.charged_uhs, one.absorbed_uhs) for one in decision.records] == [(0, COST)]
    assert [(one.kind, one.flags) for one in decision.transfers] == [("write_off", ("late", "no_hold"))]


def test_nobody_reports_calls_of_another_accounts_hold_or_of_a_jobs(world):
    hold(world)
    assert say(world, call("a"), seq=1, account="bob").outcome.code == "not_found"
    assert say(world, call("a"), seq=1, hold_id="j#1").outcome.code == "not_found"
    assert say(world, call("a"), seq=1, account="nobody", hold_id="x").outcome.code == "not_found"


# -- once, and for how long -----------------------------------------------------------------------------------------------


def later(world, days, call_id, *, ended_days, account="ada", hold_id="again"):
    """A call that ended on a day, reported on another one with a hold of its own."""
    world.at(days * 86_400)
    hold(world, hold_id, account=account, amount=10 * COST)
    ended = T0 + round(ended_days * 86_400) * S
    return say(world, call(call_id, began=ended, ended=ended), seq=1, hold_id=hold_id, account=account, end=True)


def test_a_busy_neighbour_makes_nobody_elses_calls_forgotten(world, monkeypatch):
    monkeypatch.setattr(gate_calls, "GENERATION_CALLS", 3)
    world.do(TopUp(account_id="bob", amount_uhs=1_000 * S))
    hold(world)
    say(world, call("a"), seq=1, end=True)
    for number in range(20):
        hold(world, f"b{number}", account="bob", amount=COST)
        say(world, call(f"b{number}"), seq=1, hold_id=f"b{number}", account="bob", end=True)
    assert later(world, 0, "a", ended_days=0).records == ()


@pytest.mark.parametrize("days", [1, 3.9, 5, 7, 9, 20, 40])
def test_a_call_is_charged_once_however_much_later_it_is_said_again(world, days):
    """As long as it is remembered it is known; after that it is the operator's."""
    later(world, 0.5, "a", ended_days=0.4, hold_id="first")
    for day in (2, 4.1, 6, 8.2, 10):
        if day < days:
            later(world, day, f"x{day}", ended_days=day - 0.1, hold_id=f"x{day}")
    world.at(days * 86_400).do(TopUp(account_id="ada", amount_uhs=100 * S))
    before = free(world)
    decision = later(world, days, "a", ended_days=0.4)
    assert sum(record.charged_uhs for record in decision.records) == 0
    assert free(world) == before
    booked = [(one.kind, one.flags) for one in decision.transfers if one.kind in ("capture", "write_off")]
    assert booked in ([], [("write_off", ("late", "forgotten"))])


def test_use_that_is_reported_within_days_is_charged_and_what_is_later_is_written_off(world):
    hold(world)
    decisions = [
        later(world, 3.9, "a", ended_days=0.1, hold_id="s1"),
        later(world, 5, "b", ended_days=0.1, hold_id="s2"),
    ]
    found = [(one.charged_uhs, one.absorbed_uhs) for decision in decisions for one in decision.records]
    assert found == [(COST, 0), (COST, 0)], "all that was charged since it ended is remembered"
    for day in (20, 25):
        later(world, day, f"x{day}", ended_days=day, hold_id=f"x{day}")
    world.at(30.5 * 86_400).do(TopUp(account_id="ada", amount_uhs=100 * S))
    late = later(world, 31, "c", ended_days=5, hold_id="s3")
    assert [(one.charged_uhs, one.absorbed_uhs) for one in late.records] == [(0, COST)]
    assert ("write_off", ("late", "forgotten")) in [(one.kind, one.flags) for one in late.transfers]


def test_what_is_remembered_of_idle_accounts_is_let_go(world):
    hold(world)
    say(world, call("a"), seq=1, end=True)
    world.do(TopUp(account_id="bob", amount_uhs=1_000 * S))
    later(world, 9, "b", ended_days=9, account="bob")
    assert set(world.gate.state.calls_of) == {"bob"}


# -- what could not be charged -------------------------------------------------------------------------------------------


def keep(bad, **more):
    return KeepUsage(account_id="ada", hold_id="s", call=bad, code="unknown_rate", reason="offer it", **more)


def kept(world):
    return [each.call.call_id for each in world.gate.ask(OpenUsageOf(), world.now_us)]


def test_what_can_not_be_charged_is_kept_open_until_it_can(world):
    hold(world)
    unrated = call("a", model="gone")
    assert say(world, unrated, seq=1).outcome.code == "unknown_rate"
    for _ in range(2):
        assert isinstance(world.do(keep(unrated)).outcome, Accepted)
    say(world, seq=2, end=True)
    assert kept(world) == ["a"]
    assert world.do(SettleUsage(account_id="ada", call_id="a")).outcome.code == "unknown_rate"
    world.do(offer("gone"))
    decision = world.do(SettleUsage(account_id="ada", call_id="a", request_id="r"))
    assert [(one.cdr_id, one.charged_uhs) for one in decision.records] == [("a", COST)]
    assert (kept(world), free(world)) == ([], 1_000 * S - COST)
    assert world.do(SettleUsage(account_id="ada", call_id="a")).outcome.code == "not_found"
    assert isinstance(world.do(keep(unrated)).outcome, Accepted)
    assert kept(world) == [], "it was charged"


def test_what_can_be_charged_and_is_written_off_is_booked_as_that(world):
    world.do(keep(call("a")))
    decision = world.do(WriteOffUsage(account_id="ada", call_id="a", reason="a goodwill"))
    assert [(one.charged_uhs, one.absorbed_uhs) for one in decision.records] == [(0, COST)]
    assert [transfer.kind for transfer in decision.transfers] == ["write_off"]
    assert (kept(world), free(world)) == ([], 1_000 * S)


def test_what_never_can_be_charged_is_closed_by_writing_it_off(world):
    world.do(keep(call("a", cached=101)))
    assert world.do(SettleUsage(account_id="ada", call_id="a")).outcome.code == "invalid_call"
    decision = world.do(WriteOffUsage(account_id="ada", call_id="a"))
    assert (decision.outcome.facts["written_off_uhs"], decision.records, kept(world)) == (0, (), [])


def test_open_usage_has_a_bound_beyond_which_its_meter_keeps_it(world, monkeypatch):
    monkeypatch.setattr(usage, "OPEN_MAX", 2)
    outcomes = [world.do(keep(call(name))).outcome for name in "abc"]
    assert [getattr(each, "http_status", None) for each in outcomes] == [None, None, 503]
    assert kept(world) == ["a", "b"]


def test_open_usage_outlives_a_restart(world):
    world.do(keep(call("a")))
    world.at(DAY // S).do(Tick())
    again = type(world.gate).restore(world.gate.snapshot())
    assert [each.call.call_id for each in again.ask(OpenUsageOf(), world.now_us)] == ["a"]


def test_what_bounds_a_hold_is_told_its_keys_limit_or_what_the_account_has(world):
    for name, limit_uhs in (("narrow", 30_000), ("wide", 100_000_000_000_000)):
        world.do(CreateKey(key_id=name, account_id="ada", secret_sha256="", limit_uhs=limit_uhs))
        hold(world, name, amount=10_000, key_id=name)
    hold(world, "shared", amount=10_000)

    def room(hold_id):
        return world.gate.ask(FreeOf(account_id="ada", hold_id=hold_id), world.now_us)

    free_uhs = room("shared").free_uhs
    assert room("shared") == RoomView(free_uhs=free_uhs) == room("wide")
    assert room("narrow") == RoomView(free_uhs=20_000, within_key=True)
    assert room("of nobody") == RoomView()
