"""Stories of payments: who says that something was paid, by which reference, and what follows from it once and never again."""

import msgspec
import pytest

from fabric.gate import Gate
from fabric.gate.events import BuyBundle, OpenAccount, Subscribe, Tick, TopUp, Unsubscribe
from fabric.gate.questions import BalanceOf
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
