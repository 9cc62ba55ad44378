"""Subscribers keep their terms until they were told of others and a whole cycle has passed; an offer that ends says what follows."""

import pytest

from fabric.charging.catalogue import Ends
from fabric.gate.events import Subscribe, Tick
from tests.gate.dated import Dated, at, catalogue, priced
from tests.gate.world import CATALOGUE, DAY, S

D = DAY // S
"""A day in seconds."""


@pytest.fixture
def dated():
    story = Dated()
    yield story
    report = story.report()
    assert report.ok, report


def subscribes(story, offer="weekly", account="ada"):
    return story.do(Subscribe(account_id=account, subscription=offer)).outcome


def granted(story, until, account="ada"):
    """What is granted of subscriptions until a day: on which, how much, for how many CNY; 0 is carried over."""
    decision = story.at(until * D).do(Tick())
    found = []
    for transfer in decision.transfers:
        if transfer.kind == "subscription" and transfer.account_id == account:
            paid = sum(leg.amount for leg in transfer.postings if leg.account == "cash/sandbox")
            seconds = sum(share.amount_uhs for share in transfer.lots) // S
            found.append(((transfer.at_us - at(0)) // DAY, seconds, paid // 1_000_000))
    return found


OLD, NEW = 45, 90
DEARER = {"weekly": {"price_microcny": NEW * 1_000_000}}


def test_a_price_that_is_announced_in_time_begins_with_the_first_cycle_after_its_date(dated):
    subscribes(dated)
    dated.at(3 * D).must(priced(catalogue=catalogue(10 * D, offers=DEARER)))
    assert granted(dated, 22) == [(7, 700, OLD), (14, 700, NEW), (21, 700, NEW)]
    ((what, text),) = dated.notices()
    assert (what, "90.00 CNY a cycle, from the cycle of 2023-11-28 on" in text) == ("subscription_changes", True), text


def test_one_that_begins_at_once_waits_until_a_whole_cycle_has_passed(dated):
    subscribes(dated)
    dated.at(8 * D).must(priced(catalogue=catalogue(offers=DEARER)))
    assert subscribes(dated, account="bob").facts["price_microcny"] == NEW * 1_000_000, "who begins now pays it now"
    assert granted(dated, 22) == [(14, 700, OLD), (21, 700, NEW)]


def test_however_late_somebody_looks_each_cycle_has_its_own_price(dated):
    subscribes(dated)
    dated.at(3 * D).must(priced(catalogue=catalogue(16 * D, offers=DEARER)))
    dated.at(3 * D).must(
        priced(catalogue=catalogue(16 * D, offers=DEARER), operator="op")
    )  # said again, it is told no second time
    assert len(dated.notices()) == 1
    assert granted(dated, 29) == [(7, 700, OLD), (14, 700, OLD), (21, 700, NEW), (28, 700, NEW)]


def test_what_is_withdrawn_in_time_never_begins_and_its_subscribers_are_told(dated):
    subscribes(dated)
    dated.at(3 * D).must(priced(catalogue=catalogue(10 * D, offers=DEARER)))
    dated.at(4 * D).must(priced())
    assert granted(dated, 15) == [(7, 700, OLD), (14, 700, OLD)]
    assert "is withdrawn" in dated.notices()[-1][1]


def ending(then="", *, keeps=False, day=5):
    return {"daily": {"ends": Ends(at_us=at(day * D), then=then, keeps_rollover=keeps)}}


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("then", ["", "weekly"])
def test_whose_offer_ends_goes_on_as_it_says_and_keeps_or_loses_what_would_be_carried_over(dated, then, keeps):
    """A hundred a day, of which sixty are carried over; told on the second day, it ends with the fifth."""
    subscribes(dated, "daily")
    dated.at(D + 60).must(priced(catalogue=catalogue(offers=ending(then, keeps=keeps))))
    assert [(day, paid) for day, _, paid in granted(dated, 4.5) if paid] == [(2, 10), (3, 10), (4, 10)]
    carried = [(5, 60, 0)] if keeps else []
    assert granted(dated, 5) == carried + ([(5, 700, OLD)] if then else [])
    assert [each.subscription for each in dated.gate.state.subscriptions] == ([then] if then else [])
    assert granted(dated, 12.5) == ([(12, 700, OLD)] if then else [])
    ((what, text),) = dated.notices()
    assert what == "subscription_ends"
    assert ("it goes on as weekly" in text, "is good for one cycle more" in text) == (bool(then), keeps)
    assert "2023-11-19" in text


def test_who_is_told_too_late_has_one_cycle_more(dated):
    subscribes(dated, "daily")
    dated.at(4 * D + 60).must(priced(catalogue=catalogue(offers=ending())))
    assert [(day, paid) for day, _, paid in granted(dated, 9) if paid] == [(5, 10)]
    assert dated.gate.state.subscriptions == []


def test_an_offer_that_is_taken_away_ends_for_its_subscribers_as_one_that_says_nothing(dated):
    subscribes(dated, "daily")
    dated.at(D + 60).must(priced(catalogue=catalogue(without=("daily",))))
    assert [(day, paid) for day, _, paid in granted(dated, 9) if paid] == [(2, 10)]
    assert "it stops, and what would be carried over expires" in dated.notices()[-1][1]


def test_nobody_begins_what_has_ended_and_its_subscribers_are_told_so(dated):
    dated.must(priced(catalogue=catalogue(offers=ending(day=5))))
    subscribes(dated, "daily")
    dated.at(5 * D).do(Tick())
    refused = subscribes(dated, "daily", account="bob")
    assert (refused.code, refused.facts) == ("offer_ended", {"subscription": "daily"})
    assert "choose of monthly, weekly" in refused.message


def test_who_has_what_follows_already_does_not_have_it_twice(dated):
    subscribes(dated, "daily")
    subscribes(dated, "weekly")
    dated.at(D + 60).must(priced(catalogue=catalogue(offers=ending("weekly"))))
    dated.at(6 * D).do(Tick())
    assert [each.subscription for each in dated.gate.state.subscriptions] == ["weekly"]


def test_an_offer_cannot_lead_to_one_that_is_not_there(dated):
    for then in ("gold", "daily"):
        refused = dated.do(priced(catalogue=catalogue(offers=ending(then)))).outcome
        assert (refused.code, refused.facts) == ("invalid_config", {"missing": then})


def test_what_operators_book_for_a_coming_cycle_costs_what_its_subscriber_was_told(dated):
    dated.must(priced(payments="operator"))
    paid = {"account_id": "ada", "subscription": "weekly", "channel": "operator"}
    dated.must(Subscribe(payment_ref="1", **paid))
    dated.at(3 * D).must(priced(catalogue=catalogue(10 * D, offers=DEARER), payments="operator"))
    costs = [dated.must(Subscribe(payment_ref=ref, **paid)).facts["price_microcny"] for ref in "23"]
    assert costs == [OLD * 1_000_000, NEW * 1_000_000], "the cycles of days 7 and 14"
    assert CATALOGUE.subscription("weekly").price_microcny == OLD * 1_000_000
