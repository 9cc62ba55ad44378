"""Stories of lots that expire while they are held: good until what runs on them ends, and not a day longer."""

import msgspec
import pytest

from fabric.gate import Gate
from fabric.gate.events import Grant, HoldMode, NodeDown, Subscribe, Tick
from fabric.gate.serving_events import Authorize, SettleHold, UpdateHold
from fabric.ledger import Origin, Scope, Service, Use
from tests.gate.conftest import Story, finished, metered, node, removed, started, submit, top_up
from tests.gate.world import DAY, T0, S

DAYS_30 = 30 * 86_400
USE = Use(service=Service.INFERENCE, accelerators=("H100",))


@pytest.fixture
def story():
    """Ada has a thousand device-seconds that are good for thirty days, and one node of one H100."""
    story = Story("ada", "bob")
    story.must(top_up(1_000))
    story.must(node(devices=1))
    return story


def granted(seconds, days, account="ada", **more):
    return Grant(account_id=account, amount_uhs=seconds * S, lifetime_us=days * DAY, **more)


def busy(story):
    """Bob has the only device."""
    story.must(top_up(5_000, "bob"))
    story.must(submit("b", "bob", limit=4_000 * S))
    story.do(started("b.1"))


@pytest.mark.parametrize("mode", [HoldMode.FULL, HoldMode.ROLLING])
def test_a_queued_job_is_held_anew_of_lots_that_are_good(story, mode):
    busy(story)
    story.must(submit(limit=400 * S, hold=mode))
    story.at(86_400).must(granted(5_000, 300))
    decision = story.at(DAYS_30).do(Tick())
    moves = [(one.kind, one.flags) for one in decision.transfers if one.ref == "j#1"]
    assert moves == [("expire", ("anew",)), ("hold", ("anew",))]
    assert (story.job().state, story.job().held_uhs) == ("queued", 400 * S)
    assert story.free() == 4_600 * S


def test_a_queued_job_whose_tokens_expired_waits_for_others_and_never_starts_on_them(story):
    """Not even a year later, when there is room at last."""
    busy(story)
    story.must(submit(limit=400 * S))
    story.at(DAYS_30).do(Tick())
    assert (story.job().state, story.job().reason, story.job().hold_id) == ("parked", "tokens_expired", None)
    story.at(365 * 86_400).do(finished("succeeded", "b.1"))
    story.do(removed("b.1"))
    assert story.job().attempts == 0
    story.must(top_up(500))
    assert (story.job().state, story.job().attempts) == ("starting", 1)


@pytest.mark.parametrize("upgraded_at", [3_600, DAYS_30 + 3_600])
def test_after_an_upgrade_a_queued_job_keeps_no_expired_lot_either(story, upgraded_at):
    """Older snapshots don't say that nothing runs on its hold: it is held anew of what is good, once it must be."""
    busy(story)
    story.must(submit(limit=400 * S))
    story.must(granted(5_000, 300))
    state = msgspec.msgpack.decode(story.gate.snapshot())
    state["now_us"] = T0 + upgraded_at * S
    for hold in state["book"]["holds"].values():
        del hold["waiting"], hold["stale_at_us"]
    for name, lot in state["book"]["lots"].items():
        if upgraded_at > DAYS_30 and lot["account_id"] == "ada" and lot["free_uhs"] and name == "lot-1":
            lot["expired_uhs"], lot["free_uhs"] = lot["free_uhs"], 0
    story.gate = Gate.restore(msgspec.msgpack.encode(state))
    again = Gate.restore(story.gate.snapshot())
    decision = story.gate.handle(Tick(), T0 + (DAYS_30 + 7_200) * S)
    assert again.handle(Tick(), T0 + (DAYS_30 + 7_200) * S) == decision
    moves = [(one.kind, one.flags) for one in decision.transfers if one.ref == "j#1"]
    assert moves == [("expire", ("anew",)), ("hold", ("anew",))]
    assert (story.job().state, story.job().held_uhs) == ("queued", 400 * S)


def test_what_runs_keeps_its_lot_until_its_lease_ends(story):
    story.must(submit(limit=900 * S))
    story.at(DAYS_30 - 100).do(started())
    story.at(DAYS_30 + 10).do(metered(110))
    assert story.job().held_uhs == 790 * S
    story.at(DAYS_30 + 20).do(finished("succeeded"))
    story.do(removed())
    assert story.free() == 0


def test_a_job_that_is_put_back_into_the_queue_keeps_no_expired_lot(story):
    story.must(submit(limit=900 * S))
    story.at(DAYS_30 - 100).do(started())
    story.at(DAYS_30 + 10).do(metered(110))
    story.do(NodeDown(node_id="h1"))
    story.do(removed())
    assert (story.job().state, story.job().reason) == ("parked", "tokens_expired")
    lots = [lot for lot in story.gate.state.book.lots.values() if lot.terms.origin is Origin.REFUND]
    assert [(lot.free_uhs, lot.held_uhs) for lot in lots] == [(110 * S, 0)], "what was lost can still be spent"


@pytest.mark.parametrize(("left_s", "anew"), [(3_600, True), (2 * 86_400, False)])
def test_lost_work_goes_back_where_it_can_be_spent(story, left_s, anew):
    """A lot that is hardly good any more is no place for a refund; its scope goes with it."""
    scope = Scope(accelerators=("H100",))
    story.must(Grant(account_id="ada", amount_uhs=500 * S, lifetime_us=200 * S + left_s * S, scope=scope))
    story.must(submit(limit=400 * S))
    story.do(started())
    story.at(200).do(metered(200))
    story.do(NodeDown(node_id="h1"))
    story.do(removed())
    found = [lot for lot in story.gate.state.book.lots.values() if lot.terms.origin is Origin.REFUND]
    assert bool(found) == anew
    for lot in found:
        assert (lot.granted_uhs, lot.terms.scope, lot.terms.parent_lots) == (200 * S, scope, ("lot-2",))
        assert lot.expires_at_us == story.now_us + 30 * DAY
    assert story.job().held_uhs == 400 * S


def test_a_hold_that_is_renewed_for_ever_keeps_an_expired_lot_no_longer(story):
    """It keeps it as long as it would have been valid without being renewed."""
    story.at(DAYS_30 - 1_000)
    story.must(Authorize(hold_id="c", account_id="ada", amount_uhs=900 * S, use=USE, ttl_us=3_600 * S))
    for turn in range(1, 4):
        story.at(DAYS_30 - 1_000 + 1_100 * turn)
        story.must(UpdateHold(hold_id="c", account_id="ada", seq=turn, ttl_us=3_600 * S))
    assert story.gate.state.book.holds["c"].held_uhs == 900 * S
    story.at(DAYS_30 + 2_599).do(Tick())
    assert story.gate.state.book.holds["c"].held_uhs == 900 * S
    story.at(DAYS_30 + 2_600).do(Tick())
    assert story.gate.state.book.holds["c"].held_uhs == 0
    story.must(top_up(50))
    answer = story.must(UpdateHold(hold_id="c", account_id="ada", seq=9, more_uhs=10 * S, ttl_us=3_600 * S))
    assert (answer.granted_uhs, answer.held_uhs) == (10 * S, 10 * S)


@pytest.mark.parametrize("held", [0, 40, 60])
def test_what_is_held_at_the_end_of_a_cycle_is_rolled_over_too(story, held):
    """Daily: a hundred, of which up to sixty roll over."""
    story.must(Subscribe(account_id="bob", subscription="daily"))
    if held:
        event = Authorize(hold_id="c", account_id="bob", amount_uhs=held * S, use=USE, ttl_us=DAY - S)
        story.at(3_600).must(event)
    story.at(86_400).do(Tick())
    assert story.free("bob") == (100 + 60 - held) * S
    if held:
        story.must(SettleHold(hold_id="c", account_id="bob", seq=1))
    assert story.free("bob") == 160 * S, "what was held and not used is good for the next cycle, and not twice"


def test_a_cycle_that_was_held_to_the_end_is_not_lost(story):
    """As it was before: nothing was free, so nothing was carried over, and what the hold gave back had expired."""
    story.must(Subscribe(account_id="bob", subscription="monthly"))
    story.at(28 * 86_400)
    story.must(Authorize(hold_id="c", account_id="bob", amount_uhs=2_000 * S, use=USE, ttl_us=DAY))
    for turn in range(1, 8):
        story.at((28 + turn / 2) * 86_400)
        story.must(UpdateHold(hold_id="c", account_id="bob", seq=turn, ttl_us=DAY))
    story.must(SettleHold(hold_id="c", account_id="bob", seq=9))
    assert story.free("bob") == 2_500 * S
