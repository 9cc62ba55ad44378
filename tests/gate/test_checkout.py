"""Stories of payments that a provider takes: what it says, in any order and however often, books each of them once."""

import msgspec
import pytest

from fabric.gate import Gate
from fabric.gate.checkout import OPEN_MAX
from fabric.gate.events import Cancel, Tick, TopUp, VoidLot
from fabric.gate.instructions import Accepted
from fabric.gate.payment_events import (
    PaymentStarted,
    ReconcilePayments,
    RefundPayment,
    SettleSuspense,
)
from fabric.gate.questions import BalanceOf, NoticesOf, SuspenseOf
from fabric.gate.serving_events import Authorize, ReleaseHold
from tests.gate.conftest import submit
from tests.gate.tills import HOUR, PRICE, USE, Books, asks, says, uses, view
from tests.gate.world import CONFIGURE, DAY, T0, S

# -- paid once ---------------------------------------------------------------------------------------------------------


def test_a_payment_is_asked_started_and_paid_and_books_once(till, books):
    asked = books.do(asks())
    assert (asked.facts["price_microcny"], books.free()) == (PRICE, 0)
    assert view(till).state == "asked"
    books.do(PaymentStarted(payment_id="p1", provider_ref="cs_1"))
    assert view(till).state == "pending"
    for _ in range(3):
        assert books.do(says()).facts["state"] == "paid"
    assert books.free() == 7_200 * S
    assert (books["cash/stripe"], books["op/op/revenue"]) == (PRICE, -PRICE)
    assert [notice.what for notice in till.gate.ask(NoticesOf(account_id="bob"), till.now_us)] == ["payment_paid"]


@pytest.mark.parametrize("before", ["asked", "pending", "declined", "expired"])
def test_money_that_is_there_is_booked_whatever_was_said_before(till, books, before):
    books.do(asks())
    if before == "pending":
        books.do(PaymentStarted(payment_id="p1", provider_ref="cs_1"))
    if before in ("declined", "expired"):
        books.do(says(before, why="no funds"))
        assert (view(till).state, view(till).why, books.free()) == (before, "no funds", 0)
    books.do(says())
    books.do(PaymentStarted(payment_id="p1", provider_ref="cs_2"))
    books.do(says("expired"))
    assert (view(till).state, books.free()) == ("paid", 7_200 * S)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"amount": PRICE - 10_000}, "other_amount"),
        ({"amount": PRICE + 10_000}, "other_amount"),
        ({"currency": "USD"}, "other_currency"),
        ({"payment_id": "elsewhere"}, "unknown_payment"),
        ({"provider": "alipay"}, "other_provider"),
    ],
)
def test_what_is_not_what_was_asked_for_stands_in_suspense_and_is_told(till, books, more, why):
    books.do(asks())
    for _ in range(2):
        books.do(says(**more))
    (found,) = till.gate.ask(SuspenseOf(), till.now_us)
    said = says(**more).said
    assert (found.why, found.amount, found.currency) == (why, said.amount, said.currency)
    assert books.sums[f"suspense/{said.provider}", said.currency] == -said.amount
    assert books.free() == 0
    told = till.gate.ask(NoticesOf(account_id=""), till.now_us)
    assert [notice.what for notice in told] == ["suspense"]
    if why in ("other_amount", "other_currency"):
        assert books.do(says()).facts["aside"], "the first word decides: it never buys anything any more"
        assert books.free() == 0
        assert [each.why for each in till.gate.ask(SuspenseOf(), till.now_us)] == [why, "said_otherwise"]


def test_money_in_suspense_is_returned_kept_or_buys_tokens(till, books):
    for number in range(3):
        books.do(says(payment_id=f"x{number}"))
    settle = {"reason": "asked the customer"}
    books.do(SettleSuspense(suspense_id="stripe/x0", how="returned", **settle))
    assert (books["cash/stripe"], books["suspense/stripe"]) == (2 * PRICE, -2 * PRICE)
    books.do(SettleSuspense(suspense_id="stripe/x1", how="kept", **settle))
    assert (books["op/op/revenue"], books["suspense/stripe"]) == (-PRICE, -PRICE)
    books.do(SettleSuspense(suspense_id="stripe/x2", how="booked", account_id="bob", **settle))
    assert (books["cash/stripe"], books["suspense/stripe"], books.free()) == (2 * PRICE, 0, 7_200 * S)
    assert till.do(SettleSuspense(suspense_id="stripe/x2", how="kept", **settle)).outcome.code == "settled"
    assert till.gate.ask(SuspenseOf(), till.now_us) == []


def test_a_price_stays_what_it_was_when_the_payment_was_asked(till, books):
    books.do(asks())
    dear = [msgspec.structs.replace(plan, price_microcny_per_ct=900_000) for plan in CONFIGURE.catalogue.plans]
    catalogue = msgspec.structs.replace(CONFIGURE.catalogue, plans=tuple(dear))
    till.must(msgspec.structs.replace(CONFIGURE, payments="stripe", catalogue=catalogue))
    books.do(says())
    assert (books["cash/stripe"], books.free()) == (PRICE, 7_200 * S)


def test_whole_fen_are_asked_for(till):
    assert till.must(asks(seconds=1)).facts["price_microcny"] == 10_000


def test_what_cant_be_asked_is_refused(till):
    assert till.do(asks(provider="alipay")).outcome.code == "unknown_provider"
    assert till.do(asks(provider="sandbox")).outcome.code == "unknown_provider"
    assert till.do(asks(account_id="nobody")).outcome.code == "not_found"
    assert till.do(asks(payment_id="a/b")).outcome.code == "invalid_payment_id"
    assert till.do(asks(valid_us=1)).outcome.code == "invalid_lifetime"
    assert till.do(asks(seconds=0)).outcome.code == "invalid_amount"
    for number in range(OPEN_MAX):
        till.must(asks(f"n{number}"))
    assert till.do(asks()).outcome.code == "too_many_payments"
    till.must(says("expired", payment_id="n0"))
    till.must(asks())
    assert till.do(asks()).outcome.code == "payment_exists"
    assert till.do(asks("p2")).outcome.code == "too_many_payments"


def test_a_customers_word_is_no_providers(till):
    assert till.do(TopUp(account_id="bob", amount_uhs=S)).outcome.code == "operator_only"
    assert till.do(says(provider="sandbox")).outcome.code == "operator_only"
    assert till.do(says(provider="paypal")).outcome.code == "invalid_word"
    assert till.do(says("refunded")).outcome.code == "invalid_word"
    assert till.do(says(amount=-1)).outcome.code == "invalid_word"


# -- an operator's and the sandbox's -----------------------------------------------------------------------------------


def test_what_a_customer_asks_of_the_operator_is_booked_by_its_reference(till, books):
    books.do(asks(provider="operator"))
    assert books.do(says(provider="operator", amount=PRICE - 1)).code == "other_amount"
    books.do(says(provider="operator", provider_ref="INV  142"))
    assert (view(till).state, view(till).provider_ref, books["cash/operator"]) == ("paid", "INV 142", PRICE)
    assert books.do(says(provider="operator", payment_id="p9")).code == "not_found"
    books.do(asks("p2", provider="operator"))
    assert books.do(says(provider="operator", payment_id="p2", provider_ref="INV 142")).code == "payment_ref_used"
    top_up = TopUp(account_id="bob", amount_uhs=S, channel="operator", payment_ref="INV 142")
    assert books.do(top_up).code == "payment_ref_used", "whichever way it is booked"
    assert till.gate.ask(SuspenseOf(), till.now_us) == []


def test_the_sandbox_believes_everybody_only_where_it_is_the_way_to_pay(story):
    books = Books(story)
    books.do(asks(provider="sandbox"), says(provider="sandbox"))
    assert books.free() == 7_200 * S


# -- refunds -----------------------------------------------------------------------------------------------------------


def refund(seconds=None, payment_id="p1", **more):
    amount = None if seconds is None else seconds * S
    return RefundPayment(payment_id=payment_id, account_id="bob", amount_uhs=amount, reason="asked for", **more)


def test_a_refund_takes_back_what_is_unused_and_its_price_as_paid(till, books):
    books.do(asks(), says(), *uses(3_600))
    found = books.do(refund())
    assert found.facts == {"refund_id": "p1-r1", "amount_uhs": 3_600 * S, "amount_microcny": PRICE // 2}
    assert (books.free(), books["cash/stripe"], books["suspense/stripe"]) == (0, PRICE, -PRICE // 2)
    assert view(till).refunds_due_microcny == PRICE // 2
    for _ in range(2):
        books.do(says(refunded=PRICE // 2))
    assert (books["cash/stripe"], books["suspense/stripe"], books["op/op/revenue"]) == (PRICE // 2, 0, -PRICE // 2)
    assert (view(till).state, view(till).refunds_due_microcny) == ("refunded", 0)
    assert books.do(refund()).code == "not_unused"


def test_what_is_held_or_used_never_goes_back(till, books):
    books.do(asks(), says())
    till.must(submit(account="bob", limit=3_000 * S))
    assert books.do(refund(7_200)).code == "not_unused"
    assert books.do(refund()).facts["amount_uhs"] == 4_200 * S
    till.must(Cancel(job_id="j", account_id="bob"))
    till.do(Tick())


def test_parts_of_a_refund_come_to_all_of_the_price(till, books):
    books.do(asks(), says())
    back = [books.do(refund(part)).facts["amount_microcny"] for part in (1_000, 2_333, 2_333, 1_534)]
    assert sum(back) == PRICE
    assert all(each % 10_000 == 0 for each in back)
    books.do(says(refunded=PRICE))
    assert (books["cash/stripe"], books["op/op/revenue"], books["suspense/stripe"]) == (0, 0, 0)


def test_a_refund_at_the_provider_takes_back_as_much(till, books):
    books.do(asks(), says(), says(refunded=PRICE // 4))
    assert (books.free(), view(till).state, books["suspense/stripe"]) == (5_400 * S, "refunded", 0)


def test_what_a_provider_gave_back_for_used_tokens_stands_in_suspense(till, books):
    books.do(asks(), says(), *uses(3_600), says(refunded=PRICE))
    (found,) = till.gate.ask(SuspenseOf(), till.now_us)
    assert (found.why, found.amount) == ("beyond_unused", -PRICE // 2)
    assert (books["cash/stripe"], books["suspense/stripe"], books["op/op/revenue"]) == (0, PRICE // 2, -PRICE // 2)
    assert books.free() == books.owed() == 0
    books.do(SettleSuspense(suspense_id=found.suspense_id, how="kept", reason="goodwill"))
    assert (books["suspense/stripe"], books["op/op/revenue"]) == (0, 0)


def test_a_refund_that_is_heard_of_before_the_payment_waits_for_it(till, books):
    books.do(asks(), says("pending", refunded=PRICE))
    assert (view(till).state, books["cash/stripe"]) == ("pending", 0)
    books.do(says())
    assert (view(till).state, books.free(), books["cash/stripe"]) == ("refunded", 0, 0)


def test_what_stood_in_suspense_and_was_refunded_is_settled(till, books):
    books.do(asks(), says(amount=PRICE * 2), says(amount=PRICE * 2, refunded=PRICE * 2))
    assert till.gate.ask(SuspenseOf(), till.now_us) == []
    assert (books["cash/stripe"], books["suspense/stripe"], books.free()) == (0, 0, 0)


def test_a_lot_that_a_provider_was_paid_for_is_refunded_and_not_voided(till, books):
    books.do(asks(), says())
    assert till.do(VoidLot(account_id="bob", lot_id=view(till).lot_id, reason="slip")).outcome.code == "refund_instead"


def test_only_its_own_payments_are_refunded(till, books):
    books.do(asks(), says())
    other = msgspec.structs.replace(refund(), account_id="ada")
    assert books.do(other).code == books.do(refund(payment_id="p9")).code == "not_found"
    books.do(asks("p2"))
    assert books.do(refund(payment_id="p2")).code == "not_paid"


# -- charge-backs ------------------------------------------------------------------------------------------------------


def test_a_charge_back_freezes_what_is_left_and_the_next_purchase_pays_the_rest_first(till, books):
    books.do(asks(), says(), *uses(2_000))
    for _ in range(2):
        books.do(says(charged_back=PRICE))
    assert (books.free(), books.owed(), view(till).state) == (0, 2_000 * S, "charged_back")
    assert (books["cash/stripe"], books["op/op/revenue"]) == (0, 0)
    assert books.do(refund()).code == "not_paid"
    assert books.do(uses(1, "d")[0]).code == "insufficient_tokens"
    assert till.gate.ask(BalanceOf(account_id="bob"), till.now_us).debt_uhs == 0, "nothing of it is from use"
    books.do(asks("p2"), says(payment_id="p2"))
    assert (books.free(), books.owed()) == (5_200 * S, 0)


def test_what_is_held_when_it_is_charged_back_pays_when_it_comes_free(till, books):
    books.do(asks(), says(), Authorize(hold_id="c", account_id="bob", amount_uhs=3_000 * S, use=USE, ttl_us=HOUR))
    books.do(says(charged_back=PRICE))
    assert (books.free(), books.owed()) == (0, 3_000 * S)
    books.do(ReleaseHold(hold_id="c", account_id="bob", seq=1))
    assert (books.free(), books.owed()) == (0, 0)


def test_a_charge_back_that_is_undone_gives_everything_back(till, books):
    books.do(asks(), says(), *uses(2_000), says(charged_back=PRICE))
    books.do(says(charged_back=PRICE, reinstated=PRICE))
    assert (books.free(), books.owed(), view(till).state) == (5_200 * S, 0, "paid")
    assert books["cash/stripe"] == PRICE
    books.do(says(charged_back=PRICE, reinstated=PRICE))
    assert books.do(refund()).facts["amount_uhs"] == 5_200 * S


def test_what_was_paid_meanwhile_for_an_undone_charge_back_comes_back(till, books):
    books.do(asks(), says(), *uses(2_000), says(charged_back=PRICE), asks("p2"), says(payment_id="p2"))
    assert books.free() == 5_200 * S
    books.do(says(charged_back=PRICE, reinstated=PRICE))
    assert books.free() == (5_200 + 5_200 + 2_000) * S


def test_a_part_that_is_charged_back_freezes_a_part(till, books):
    books.do(asks(), says(), says(charged_back=PRICE // 4))
    assert (books.free(), books.owed()) == (5_400 * S, 0)
    books.do(says(charged_back=PRICE // 4, reinstated=PRICE // 8))
    assert books.free() == 6_300 * S


def test_what_was_to_be_refunded_when_it_was_charged_back_is_paid_back_once(till, books):
    books.do(asks(), says(), refund(3_600), says(charged_back=PRICE))
    assert (books["cash/stripe"], books["suspense/stripe"]) == (0, 0)
    assert view(till).refunds_due_microcny == 0
    assert books.free() == books.owed() == 0


def test_frozen_tokens_that_expired_stay_gone(till, books):
    books.do(asks(), says(), says(charged_back=PRICE))
    till.at(31 * DAY / S)
    books.do(says(charged_back=PRICE, reinstated=PRICE))
    assert (books.free(), view(till).state) == (0, "paid")


def test_all_of_it_outlives_a_snapshot(till, books):
    books.do(asks(), says(), *uses(2_000), refund(100), says(charged_back=PRICE), says(payment_id="x"))
    again = Gate.restore(till.gate.snapshot())
    assert again.snapshot() == till.gate.snapshot()
    assert isinstance(again.handle(says(charged_back=PRICE, reinstated=PRICE), till.now_us).outcome, Accepted)


# -- reconciliation ----------------------------------------------------------------------------------------------------


def lists(till, *listed):
    return ReconcilePayments(provider="stripe", from_us=T0, until_us=till.now_us + 1, listed=listed)


def test_a_reconciliation_tells_what_is_missing_on_either_side_and_what_differs(till, books):
    for name in ("same", "lost", "other", "only-here"):
        books.do(asks(name))
    books.do(says(payment_id="same"), says(payment_id="other"), says(payment_id="only-here"))
    listed = [says(payment_id=name).said for name in ("same", "lost", "nobodys")]
    listed.append(says(payment_id="other", amount=2 * PRICE).said)
    facts = books.do(lists(till, *listed)).facts
    assert facts == {"matched": 1, "missing_here": 2, "missing_there": 1, "different": 1}
    assert view(till, "lost").state == "paid", "its webhook never came"
    found = {each.payment_id: each.why for each in till.gate.ask(SuspenseOf(), till.now_us)}
    assert found == {"nobodys": "unknown_payment", "other": "said_otherwise", "only-here": "missing_there"}
    assert till.gate.ask(NoticesOf(account_id=""), till.now_us)[-1].what == "reconciled"
    facts = books.do(lists(till, *listed)).facts
    assert facts == {"matched": 3, "missing_here": 0, "missing_there": 1, "different": 1}
    assert len(till.gate.ask(SuspenseOf(), till.now_us)) == 3


def test_a_refund_and_a_charge_back_that_nobody_told_of_are_found(till, books):
    books.do(asks(), says(), asks("p2"), says(payment_id="p2"))
    listed = says(refunded=PRICE // 2).said, says(payment_id="p2", charged_back=PRICE).said
    assert books.do(lists(till, *listed)).facts["different"] == 2
    assert (view(till).state, view(till, "p2").state) == ("refunded", "charged_back")
    assert books.do(lists(till, *listed)).facts["matched"] == 2


def test_only_lists_of_providers_that_have_one_are_reconciled(till):
    wrong = msgspec.structs.replace(lists(till), provider="operator")
    assert till.do(wrong).outcome.code == "unknown_provider"
    assert till.do(lists(till, says(provider="alipay").said)).outcome.code == "invalid_list"
