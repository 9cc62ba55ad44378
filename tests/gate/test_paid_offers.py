"""Stories of bundles and subscriptions that are paid through a provider: begun, renewed, unpaid for a while, ended."""

import msgspec
import pytest

from fabric.gate.events import Subscribe, Tick, Unsubscribe
from fabric.gate.payment_events import RefundPayment
from fabric.gate.questions import NoticesOf, PaymentsOf
from tests.gate.tills import asks, says, uses, view
from tests.gate.world import CONFIGURE, DAY, S

EDGE, WEEK = 60_000_000, 45_000_000
DAYS = DAY / S


def bundle(payment_id="p1", **more):
    return asks(payment_id, seconds=0, bundle="edge", **more)


def week(payment_id="p1", **more):
    return asks(payment_id, seconds=0, subscription="weekly", **more)


def autos(till):
    return [each for each in till.gate.ask(PaymentsOf(account_id="bob"), till.now_us) if each.auto]


def heard(till):
    return [notice.what for notice in till.gate.ask(NoticesOf(account_id="bob"), till.now_us)]


def record(till):
    (found,) = till.gate.state.subscriptions
    return found


# -- bundles -----------------------------------------------------------------------------------------------------------


def test_a_bundle_that_is_paid_books_all_of_its_parts_once(till, books):
    assert books.do(bundle()).facts["price_microcny"] == EDGE
    for _ in range(2):
        books.do(says(amount=EDGE))
    assert (books.free(), view(till).buys) == (500 * S, "edge")
    assert (books["cash/stripe"], books["op/op/revenue"]) == (EDGE, -EDGE)
    assert [each.amount for each in till.gate.state.accounts["bob"].entitlements] == [600]


def test_a_bundle_is_what_was_offered_when_it_was_asked(till, books):
    books.do(bundle())
    till.must(
        msgspec.structs.replace(
            CONFIGURE, payments="stripe", catalogue=msgspec.structs.replace(CONFIGURE.catalogue, bundles=())
        )
    )
    books.do(says(amount=EDGE))
    assert books.free() == 500 * S
    assert books.do(bundle("p2")).code == "unknown_bundle"


def test_a_refund_of_a_bundle_takes_back_its_unused_lots_at_their_prices(till, books):
    books.do(bundle(), says(amount=EDGE), *uses(100))
    answer = books.do(RefundPayment(payment_id="p1", account_id="bob", reason="asked"))
    assert answer.facts["amount_uhs"] == 400 * S
    assert answer.facts["amount_microcny"] == 40_000_000 + 5_000_000 // 2, "what expires first was used"
    books.do(says(amount=EDGE, refunded=answer.facts["amount_microcny"]))
    assert (books.free(), books["suspense/stripe"], view(till).state) == (0, 0, "refunded")


def test_a_charge_back_of_a_bundle_freezes_all_of_its_lots_and_undone_gives_all_back(till, books):
    books.do(bundle(), says(amount=EDGE), *uses(120), says(amount=EDGE, charged_back=EDGE))
    assert (books.free(), books.owed(), books["cash/stripe"]) == (0, 120 * S, 0)
    books.do(says(amount=EDGE, charged_back=EDGE, reinstated=EDGE))
    assert (books.free(), books.owed(), books["cash/stripe"]) == (380 * S, 0, EDGE)


@pytest.mark.parametrize("wrong", [{"amount_uhs": S, "bundle": "edge"}, {"bundle": "edge", "subscription": "weekly"}])
def test_a_payment_is_for_one_thing(till, wrong):
    assert till.do(asks(**{"amount_uhs": 0, **wrong})).outcome.code == "invalid_payment"


# -- subscriptions -----------------------------------------------------------------------------------------------------


def test_a_subscription_begins_when_it_is_paid_and_its_next_cycle_is_asked_for_before_it_begins(till, books):
    books.do(week())
    till.at(3_600)
    books.do(says(amount=WEEK))
    assert (books.free(), record(till).started_at_us) == (700 * S, till.now_us)
    till.at(3_600 + 3.9 * DAYS).do(Tick())
    assert autos(till) == []
    till.at(3_600 + 4 * DAYS).do(Tick())
    (asked,) = autos(till)
    assert (asked.subscription, asked.price_microcny, heard(till)[-1]) == ("weekly", WEEK, "renewal_asked")
    books.do(says(payment_id=asked.payment_id, amount=WEEK))
    assert (books.free(), len(record(till).ahead)) == (700 * S, 1)
    till.at(3_600 + 7 * DAYS).do(Tick())
    assert (record(till).index, record(till).ahead, books["cash/stripe"]) == (1, [], 2 * WEEK)
    assert books.free() == 1_400 * S, "the first is good for ten days"


def test_a_renewal_that_fails_is_asked_again_then_past_due_and_paid_late_begins_anew(till, books):
    books.do(week(), says(amount=WEEK))
    for day in (4, 5, 6):
        till.at(day * DAYS).do(Tick())
        books.do(says("declined", payment_id=autos(till)[0].payment_id, amount=0, why="card declined"))
    assert (record(till).failures, heard(till)[-1]) == (3, "renewal_failed")
    till.at(7 * DAYS).do(Tick())
    assert record(till).past_due_at_us == till.now_us
    assert heard(till)[-2:] == ["subscription_past_due", "renewal_asked"]
    till.at(10 * DAYS).do(Tick())
    assert books.free() == 0, "nothing is granted that isn't paid"
    books.do(says(payment_id=autos(till)[0].payment_id, amount=WEEK))
    assert (books.free(), record(till).started_at_us, record(till).past_due_at_us) == (700 * S, till.now_us, None)
    assert (record(till).failures, record(till).next_at_us) == (0, till.now_us + 7 * DAY)


def test_one_that_stays_unpaid_ends_and_grants_nothing(till, books):
    books.do(week(), says(amount=WEEK))
    till.at(7 * DAYS).do(Tick())
    till.at(14 * DAYS - 1).do(Tick())
    assert record(till).past_due_at_us is not None
    till.at(14 * DAYS).do(Tick())
    assert till.gate.state.subscriptions == []
    assert heard(till)[-1] == "subscription_ended"
    assert books["cash/stripe"] == WEEK
    books.do(says(payment_id=autos(till)[0].payment_id, amount=WEEK))
    assert books.free() == 700 * S, "paid after all: it begins again"


def test_unsubscribed_nothing_more_is_asked_for(till, books):
    books.do(week(), says(amount=WEEK))
    till.at(4 * DAYS).do(Tick())
    books.do(Unsubscribe(account_id="bob", subscription="weekly"))
    assert autos(till)[0].state == "expired", "no provider had been told"
    till.at(7 * DAYS).do(Tick())
    assert (till.gate.state.subscriptions, len(autos(till))) == ([], 1)


def test_a_cycle_paid_ahead_and_refunded_is_asked_for_again(till, books):
    books.do(week(), says(amount=WEEK), week("p2"), says(payment_id="p2", amount=WEEK))
    assert len(record(till).ahead) == 1
    books.do(RefundPayment(payment_id="p2", account_id="bob", reason="too early"))
    assert record(till).ahead == []
    till.at(4 * DAYS).do(Tick())
    assert len(autos(till)) == 1


def test_an_operators_booking_pays_a_cycle_that_is_past_due(till, books):
    books.do(week(), says(amount=WEEK))
    till.at(8 * DAYS).do(Tick())
    books.do(Subscribe(account_id="bob", subscription="weekly", channel="operator", payment_ref="BANK-1"))
    assert (books.free(), record(till).past_due_at_us) == (1_400 * S, None)
