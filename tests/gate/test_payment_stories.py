"""Stories of payments: who says that something was paid, by which reference, and what follows from it once and never again."""

import msgspec
import pytest

from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import BuyBundle, Cancel, Grant, Subscribe, Tick, TopUp, Unsubscribe, VoidLot
from fabric.gate.instructions import Accepted
from fabric.gate.questions import BalanceOf
from fabric.units import AMOUNT_UHS_MAX, INT64_MAX
from tests.gate.conftest import submit, top_up
from tests.gate.world import CATALOGUE, CONFIGURE, S

WEEK = 7 * 86_400
WEEKLY = CATALOGUE.subscription("weekly")
PURCHASES = (
    TopUp(account_id="ada", amount_uhs=100 * S, payment_ref="P"),
    BuyBundle(account_id="ada", bundle="edge", payment_ref="P"),
    Subscribe(account_id="ada", subscription="weekly", payment_ref="P"),
)


def booked(event, **more):
    """The same, booked by an operator."""
    return msgspec.structs.replace(event, channel="operator", **more)


def pays(number, subscription="weekly", **more):
    return booked(Subscribe(account_id="ada", subscription=subscription, payment_ref=f"INV-{number}", **more))


@pytest.fixture
def paid(story):
    """Where only what an operator books is paid."""
    story.must(msgspec.structs.replace(CONFIGURE, payments="operator"))
    return story


# -- who says that it was paid -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("purchase", PURCHASES, ids=lambda event: type(event).__name__)
def test_where_an_operator_books_payments_a_customers_word_makes_no_token(paid, purchase):
    before = paid.gate.state.book.tokens_uhs["issued"]
    refusal = paid.do(purchase)
    assert (refusal.outcome.code, refusal.outcome.http_status, refusal.transfers) == ("operator_only", 403, ())
    assert "pay the operator" in refusal.outcome.message
    assert paid.do(booked(purchase, payment_ref="")).outcome.code == "payment_ref_missing"
    assert paid.do(msgspec.structs.replace(purchase, channel="stripe")).outcome.code == "invalid_channel"
    assert paid.gate.state.book.tokens_uhs["issued"] == before
    decision = paid.do(booked(purchase))
    assert paid.gate.state.book.tokens_uhs["issued"] < before
    assert "cash/operator" in {leg.account for transfer in decision.transfers for leg in transfer.postings}


def test_an_unknown_way_to_pay_is_no_configuration(story):
    assert story.do(msgspec.structs.replace(CONFIGURE, payments="")).outcome.code == "invalid_config"


def test_a_cycle_that_nobody_has_paid_is_never_granted(paid):
    paid.must(pays(1))
    bought = paid.gate.state.book.tokens_uhs["issued"]
    paid.at(WEEK).do(Tick())
    assert paid.gate.state.subscriptions == []
    assert paid.gate.state.book.tokens_uhs["issued"] == bought
    paid.at(5 * WEEK).do(Tick())
    assert paid.gate.state.book.tokens_uhs["issued"] == bought


def test_a_subscription_from_the_sandbox_is_not_renewed_where_payments_are_real(story):
    story.must(Subscribe(account_id="ada", subscription="weekly"))
    story.must(msgspec.structs.replace(CONFIGURE, payments="operator"))
    issued = story.gate.state.book.tokens_uhs["issued"]
    story.at(3 * WEEK).do(Tick())
    assert (story.gate.state.subscriptions, story.gate.state.book.tokens_uhs["issued"]) == ([], issued)


def test_a_cycle_paid_ahead_is_good_from_its_own_start_and_renews_once(paid):
    paid.must(pays(1))
    free = paid.free()
    paid.at(WEEK - 10).must(pays(2))
    assert paid.free() == free
    paid.at(WEEK).do(Tick())
    (record,) = paid.gate.state.subscriptions
    assert (record.index, record.ahead, len(record.lots)) == (1, [], 1)
    lot = paid.gate.state.book.lots[record.lots[0]]
    assert (lot.effective_at_us, lot.free_uhs, lot.terms.price_microcny) == (
        paid.now_us,
        700 * S,
        WEEKLY.price_microcny,
    )
    paid.at(2 * WEEK).do(Tick())
    assert paid.gate.state.subscriptions == []
    cash = paid.gate.state.book.money_microcny["cash"]
    assert cash >= 2 * WEEKLY.price_microcny


def test_what_is_left_is_rolled_over_into_a_cycle_that_was_paid_ahead(paid):
    paid.must(pays(1, "monthly"))
    paid.must(pays(2, "monthly"))
    paid.at(31 * 86_400).do(Tick())
    (record,) = paid.gate.state.subscriptions
    found = sorted(paid.gate.state.book.lots[lot_id].free_uhs for lot_id in record.lots)
    assert found == [500 * S, 2_000 * S]


def test_no_more_cycles_are_paid_ahead_than_twelve(paid):
    for number in range(13):
        paid.must(pays(number))
    refusal = paid.do(pays(99)).outcome
    assert (refusal.code, refusal.facts["limit"]) == ("paid_ahead", 12)


def test_a_subscription_that_is_ended_still_grants_what_was_paid(paid):
    paid.must(pays(1))
    paid.must(pays(2))
    ends = paid.must(Unsubscribe(account_id="ada", subscription="weekly")).facts["ends_at_us"]
    assert ends == paid.now_us + 2 * WEEK * S
    paid.at(WEEK).do(Tick())
    assert len(paid.gate.state.subscriptions) == 1
    paid.at(2 * WEEK).do(Tick())
    assert paid.gate.state.subscriptions == []


def test_what_is_paid_ahead_survives_a_restart(paid):
    paid.must(pays(1))
    paid.must(pays(2))
    twin = Gate.restore(paid.gate.snapshot())
    paid.at(WEEK)
    assert twin.handle(Tick(), paid.now_us) == paid.do(Tick())
    assert twin.snapshot() == paid.gate.snapshot()
    assert twin.ask(BalanceOf(account_id="ada"), paid.now_us).free_uhs > 0


def test_the_local_account_of_a_new_fabric_has_nothing_and_gets_nothing_for_nothing(paid):
    paid.must(OpenAccount(account_id="new", name="", plan="starter"))
    paid.do(TopUp(account_id="new", amount_uhs=S))
    assert paid.free("new") == 0


# -- a reference books once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["sandbox", "operator"])
@pytest.mark.parametrize("purchase", PURCHASES, ids=lambda event: type(event).__name__)
def test_a_payment_books_once_however_often_and_however_it_is_said(story, purchase, channel):
    purchase = msgspec.structs.replace(purchase, channel=channel)
    first = story.do(msgspec.structs.replace(purchase, request_id="one")).outcome
    for request_id, ref in (("two", "P"), ("", " P"), ("three", "P\t ")):
        story.at(100 * 86_400).do(Tick())
        again = story.do(msgspec.structs.replace(purchase, request_id=request_id, payment_ref=ref))
        assert (again.outcome, again.transfers) == (first, ())


@pytest.mark.parametrize("purchase", PURCHASES, ids=lambda event: type(event).__name__)
def test_a_payment_books_nothing_else_whoever_asks_and_however_late(story, purchase):
    story.must(msgspec.structs.replace(purchase, request_id="one"))
    others = [other for other in PURCHASES if other is not purchase]
    others.append(TopUp(account_id="ada", amount_uhs=101 * S, payment_ref="P"))
    story.at(2 * 366 * 86_400)
    story.gate = Gate.restore(story.gate.snapshot())
    for number, other in enumerate(others):
        refusal = story.do(msgspec.structs.replace(other, request_id=f"r{number}")).outcome
        assert (refusal.code, refusal.http_status) == ("payment_ref_used", 409)
        assert "'P'" in refusal.message


def test_a_reference_is_the_accounts_own_and_the_channels(story):
    for account in ("ada", "bob"):
        for channel in ("sandbox", "operator"):
            before = story.free(account)
            story.must(TopUp(account_id=account, amount_uhs=S, payment_ref="P", channel=channel))
            assert story.free(account) == before + S


def test_a_payment_that_was_refused_may_still_be_booked(story):
    assert story.do(TopUp(account_id="ada", amount_uhs=0, payment_ref="P")).outcome.code == "invalid_amount"
    story.must(TopUp(account_id="ada", amount_uhs=S, payment_ref="P"))


def test_a_purchase_says_the_whole_of_its_price(story):
    outcome = story.must(PURCHASES[1])
    assert outcome.facts["price_microcny"] == CATALOGUE.bundle("edge").price_microcny
    assert outcome.facts["expires_at_us"] == story.now_us + 3 * 86_400 * S
    assert (
        story.must(Subscribe(account_id="ada", subscription="weekly")).facts["price_microcny"] == WEEKLY.price_microcny
    )


# -- amounts -----------------------------------------------------------------------------------------------------------


def test_no_booking_fills_the_books(story):
    for kind in (TopUp, Grant):
        for amount in (AMOUNT_UHS_MAX + 1, 2**62, INT64_MAX, INT64_MAX + 1, 2**70):
            assert story.do(kind(account_id="ada", amount_uhs=amount)).outcome.code == "invalid_amount"
    assert AMOUNT_UHS_MAX < INT64_MAX // 250
    story.must(TopUp(account_id="bob", amount_uhs=AMOUNT_UHS_MAX))


@pytest.mark.parametrize(
    "way", [*PURCHASES, Grant(account_id="ada", amount_uhs=100 * S)], ids=lambda way: type(way).__name__
)
def test_no_account_alone_fills_the_books_however_often_it_buys(story, way):
    """And what it can't be sold any more can still be sold to everybody else."""
    story.must(TopUp(account_id="ada", amount_uhs=AMOUNT_UHS_MAX - 1_000 * S))
    refusal = story.do(way).outcome
    assert (refusal.code, refusal.facts["limit_uhs"]) == ("account_full", AMOUNT_UHS_MAX)
    assert "book at most 0 now" in refusal.message
    story.must(msgspec.structs.replace(way, account_id="bob"))
    story.must(submit(limit=700 * S))
    assert story.do(way).outcome.code == "account_full", "what is held is owned too"
    lots = story.gate.state.book.lots
    story.must(VoidLot(account_id="ada", lot_id=list(lots)[1], reason="too much"))
    story.must(way)


def test_what_is_given_away_leaves_room_for_what_is_sold(story):
    names = [f"a{number}" for number in range(130)]
    for name in names:
        story.must(OpenAccount(account_id=name, name="", plan="starter"))
    outcomes = [story.do(Grant(account_id=name, amount_uhs=AMOUNT_UHS_MAX)).outcome for name in names]
    assert outcomes[-1].code == "grants_full"
    given = [name for name, outcome in zip(names, outcomes, strict=True) if isinstance(outcome, Accepted)]
    assert len(given) == INT64_MAX // 2 // AMOUNT_UHS_MAX
    story.must(TopUp(account_id="bob", amount_uhs=AMOUNT_UHS_MAX))
    story.must(VoidLot(account_id=given[0], lot_id=outcomes[0].facts["lot_id"], reason="too generous"))
    story.must(Grant(account_id=given[0], amount_uhs=S))


def test_no_offer_is_of_more_than_can_be_booked(story):
    plan = msgspec.structs.replace(CATALOGUE.plans[2], credit_limit_uhs=2**62)
    catalogue = msgspec.structs.replace(CATALOGUE, plans=(*CATALOGUE.plans[:2], plan))
    refusal = story.do(msgspec.structs.replace(CONFIGURE, catalogue=catalogue)).outcome
    assert (refusal.code, refusal.facts["missing"]) == ("invalid_config", "post")


# -- what was booked by mistake ----------------------------------------------------------------------------------------


def void(lot_id="lot-2", amount=None, account="ada"):
    amount = None if amount is None else amount * S
    return VoidLot(account_id=account, lot_id=lot_id, amount_uhs=amount, reason="a slip of the pen")


def test_a_lot_booked_by_mistake_is_taken_back_with_its_price(story):
    story.must(TopUp(account_id="ada", amount_uhs=7_200 * S, payment_ref="P"))
    decision = story.do(void())
    (transfer,) = decision.transfers
    assert (transfer.kind, transfer.ref) == ("void", "lot-2")
    assert {(leg.account, leg.asset): leg.amount for leg in transfer.postings} == {
        ("cust/ada/available", "CT"): -7_200 * S,
        ("op/op/issued", "CT"): 7_200 * S,
        ("cash/sandbox", "CNY"): -1_000_000,
        ("op/op/revenue", "CNY"): 1_000_000,
    }
    assert decision.outcome.facts == {"voided_uhs": 7_200 * S, "price_microcny": 1_000_000}
    assert story.free() == 1_000 * S
    assert story.do(void()).outcome.code == "not_unused"


def test_what_is_held_or_used_is_never_voided(story):
    story.must(Grant(account_id="bob", amount_uhs=1_000 * S))
    story.must(submit(account="bob", limit=300 * S))
    for amount in (701, 1_000):
        assert story.do(void("lot-2", amount, "bob")).outcome.code == "not_unused"
    story.must(void("lot-2", 100, "bob"))
    story.must(void("lot-2", None, "bob"))
    assert story.gate.state.book.accounts["bob"].held_uhs == 300 * S
    story.must(Cancel(job_id="j", account_id="bob"))
    story.do(Tick())
    assert story.free("bob") <= 300 * S


def test_the_parts_of_a_price_add_up_however_a_lot_is_voided(story):
    story.must(TopUp(account_id="ada", amount_uhs=1_000 * S, payment_ref="P"))
    price = story.gate.state.book.lots["lot-2"].terms.price_microcny
    back = [story.must(void("lot-2", part)).facts["price_microcny"] for part in (1, 333, 333, 332, 1)]
    assert sum(back) == price
    assert min(back) >= 0


def test_a_void_is_no_new_room_for_the_same_payment(story):
    """What was typed as 1,000 for 100 keeps its payment: void the 900 that are too many."""
    story.must(TopUp(account_id="ada", amount_uhs=1_000 * S, payment_ref="P"))
    story.must(void("lot-2", 900))
    assert story.do(TopUp(account_id="ada", amount_uhs=100 * S, payment_ref="P")).outcome.code == "payment_ref_used"
    assert story.free() == 1_100 * S


def test_cycles_that_are_paid_ahead_are_voided_last_first(paid):
    for number in range(3):
        paid.must(pays(number))
    (record,) = paid.gate.state.subscriptions
    first, last = record.ahead
    assert paid.do(void(first)).outcome.code == "not_the_last"
    paid.must(void(last))
    paid.must(void(first))
    assert record.ahead == []
    paid.at(WEEK).do(Tick())
    assert paid.gate.state.subscriptions == []


def test_a_void_said_twice_is_one(story):
    story.must(top_up(500))
    event = msgspec.structs.replace(void("lot-2", 100), request_id="v")
    first = story.must(event)
    assert story.must(event) == first
    assert story.free() == 1_400 * S
