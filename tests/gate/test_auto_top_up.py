"""Stories of accounts that top themselves up: when a payment is asked for, how often, and how it ends."""

from fabric.gate.events import Cancel, TopUp
from fabric.gate.payment_events import SetAutoTopUp
from fabric.gate.questions import NoticesOf, PaymentsOf
from tests.gate.conftest import metered, started, submit
from tests.gate.tills import PRICE, asks, rule, says, uses
from tests.gate.world import DAY, S


def autos(till):
    return [each for each in till.gate.ask(PaymentsOf(account_id="bob"), till.now_us) if each.auto]


def heard(till):
    return [notice.what for notice in till.gate.ask(NoticesOf(account_id="bob"), till.now_us)]


def test_below_the_threshold_a_payment_is_asked_for_and_one_at_a_time(till, books):
    books.do(rule())
    books.do(rule())
    (asked,) = autos(till)
    assert (asked.state, asked.provider, asked.price_microcny) == ("asked", "stripe", PRICE)
    books.do(says(payment_id=asked.payment_id))
    assert (books.free(), len(autos(till))) == (7_200 * S, 1)
    books.do(*uses(6_300))
    assert len(autos(till)) == 2, "900 are left"
    assert heard(till) == ["auto_top_up_asked", "payment_paid", "auto_top_up_asked"]


def test_a_month_has_a_cap_that_is_told_of_once(till, books):
    books.do(rule(month_max_uhs=7_200 * S))
    books.do(says(payment_id=autos(till)[0].payment_id), *uses(7_000), *uses(100, "d"))
    assert len(autos(till)) == 1
    assert heard(till).count("auto_top_up_capped") == 1
    till.at(31 * DAY / S)
    books.do(*uses(10, "e"))
    assert len(autos(till)) == 2, "another month"


def test_after_three_failures_it_is_off(till, books):
    books.do(rule())
    for number in range(1, 4):
        till.at(number * 7 * 3_600)
        books.do(
            *uses(1, f"u{number}"), TopUp(account_id="bob", amount_uhs=S, channel="operator", payment_ref=f"{number}")
        )
        asked = autos(till)[0]
        assert len(autos(till)) == number
        books.do(says("declined", payment_id=asked.payment_id, why="card declined"))
    assert heard(till)[-2:] == ["auto_top_up_failed", "auto_top_up_off"]
    till.at(100 * 3_600)
    books.do(TopUp(account_id="bob", amount_uhs=S, channel="operator", payment_ref="x"))
    assert len(autos(till)) == 3
    books.do(rule())
    assert len(autos(till)) == 4, "its owner says so"


def test_a_short_runway_asks_for_a_payment(till, books):
    till.must(SetAutoTopUp(account_id="ada", runway_us=3_600 * S, amount_uhs=7_200 * S, month_max_uhs=7_200 * S))
    assert till.gate.ask(PaymentsOf(account_id="ada"), till.now_us) == [], "nothing runs"
    till.must(submit(limit=900 * S))
    till.must(started())
    till.at(30).do(metered(30))
    (asked,) = till.gate.ask(PaymentsOf(account_id="ada"), till.now_us)
    assert asked.auto
    till.must(Cancel(job_id="j", account_id="ada"))


def test_a_rule_that_cant_be_meant_is_refused(till):
    assert till.do(rule(runway_us=3_600 * S)).outcome.code == "invalid_threshold"
    assert till.do(rule(threshold_uhs=None)).outcome.code == "invalid_threshold"
    assert till.do(rule(threshold_uhs=None, runway_us=1)).outcome.code == "invalid_threshold"
    assert till.do(rule(month_max_uhs=S)).outcome.code == "invalid_cap"
    assert till.do(rule(amount_uhs=0)).outcome.code == "invalid_amount"
    assert till.do(rule(account_id="nobody")).outcome.code == "not_found"
    assert till.do(asks("auto-1")).outcome.code == "invalid_payment_id"
