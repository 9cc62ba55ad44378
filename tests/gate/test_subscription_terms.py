"""Subscribers keep their terms until they were told of others and a whole cycle has passed; an offer that ends says what follows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.charging.catalogue import Ends
from fabric.gate.events import Subscribe, Tick
from fabric.gate.questions import PaymentsOf
from tests.gate.conftest import Story
from tests.gate.dated import Dated, at, catalogue, priced
from tests.gate.tills import asks, says
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


# -- paid through a provider -------------------------------------------------------------------------------------------


def renewal(story, day):
    """The payment that is asked for by itself by then, and is paid; for how many CNY, and what it buys."""
    story.at(day * D).do(Tick())
    asked = next(each for each in story.gate.ask(PaymentsOf(account_id="ada"), story.now_us) if each.auto)
    story.must(says(payment_id=asked.payment_id, amount=asked.price_microcny))
    return asked.price_microcny // 1_000_000, asked.subscription


@pytest.fixture
def payer(dated):
    """Ada pays for weeks through Stripe."""
    dated.must(priced(payments="stripe"))
    dated.must(asks(seconds=0, subscription="weekly", account_id="ada"))
    dated.must(says(amount=OLD * 1_000_000))
    return dated


def test_the_next_cycle_is_asked_for_at_what_its_subscriber_was_told(payer):
    payer.at(D).must(priced(payments="stripe", catalogue=catalogue(10 * D, offers=DEARER)))
    assert [renewal(payer, day) for day in (4, 11)] == [(OLD, "weekly"), (NEW, "weekly")]


def test_what_follows_an_offer_that_ends_is_asked_for_when_it_begins_and_begins_when_it_is_paid(payer):
    ends = {"weekly": {"ends": Ends(at_us=at(14 * D), then="monthly")}}
    payer.at(D).must(priced(payments="stripe", catalogue=catalogue(offers=ends)))
    assert renewal(payer, 4) == (OLD, "weekly")
    payer.at(13 * D).do(Tick())
    assert [each for each in payer.gate.ask(PaymentsOf(account_id="ada"), payer.now_us) if each.state != "paid"] == []
    payer.at(14 * D).do(Tick())
    (record,) = payer.gate.state.subscriptions
    assert (record.subscription, record.past_due_at_us) == ("monthly", at(14 * D))
    assert renewal(payer, 14.5) == (400, "monthly")
    assert (record.past_due_at_us, record.started_at_us, record.index) == (None, at(14.5 * D), 0)


# -- any history of prices ---------------------------------------------------------------------------------------------


class Paying(Story):
    """What is paid for a subscription, by the day on which its cycle begins."""

    def __init__(self):
        self.paid = {}
        super().__init__("ada")

    def do(self, event):
        decision = super().do(event)
        for transfer in decision.transfers:
            cash = sum(leg.amount for leg in transfer.postings if leg.account == "cash/sandbox")
            if transfer.kind == "subscription" and cash:
                self.paid[(transfer.at_us - at(0)) // DAY] = cash // 1_000_000
        return decision


class Told:
    """What Ada was told of her subscription of 7 days, on which day, and from which on: what she pays follows from that alone."""

    def __init__(self):
        self.steps, self.now, self.cycle, self.paid = [(0, 0, OLD)], 0, 0, {0: OLD}

    def pass_to(self, day):
        while 7 * (self.cycle + 1) <= day:
            self.cycle += 1
            begins, before = 7 * self.cycle, 7 * (self.cycle - 1)
            for at_step in range(self.now, len(self.steps)):
                told, since, _ = self.steps[at_step]
                if since <= begins and told <= before:
                    self.now = at_step
            self.paid[begins] = self.steps[self.now][2]

    def hears(self, day, since, price):
        self.pass_to(day)
        begun = [step for step in self.steps if step[1] <= day]
        coming = [step for step in self.steps if day < step[1]]
        kept = begun + [step for step in coming if since is not None and step[1] < since]
        new = (day, day if since is None else since, price)
        if kept[-1][2] != price:
            again = [step for step in coming if step[1:] == new[1:]]
            kept += again[:1] or [new]
        self.steps = kept


CHANGES = st.lists(
    st.tuples(st.integers(0, 15), st.sampled_from([None, None, 3, 8, 20, 40]), st.sampled_from([OLD, NEW, 135])),
    max_size=5,
)


@settings(max_examples=60)
@given(changes=CHANGES, is_watched=st.booleans())
def test_each_cycle_costs_what_its_subscriber_was_told_a_whole_cycle_before(changes, is_watched):
    story, told, day = Paying(), Told(), 0.5
    subscribes(story)
    for wait, ahead, price in changes:
        for each in range(wait) if is_watched else ():
            story.at((day + each) * D).do(Tick())
        day += wait
        offers = {"weekly": {"price_microcny": price * 1_000_000}}
        since = None if ahead is None else day + ahead
        story.at(day * D).must(priced(catalogue=catalogue(None if since is None else since * D, offers=offers)))
        told.hears(day, since, price)
    story.at(100 * D).do(Tick())
    told.pass_to(100)
    assert story.paid == told.paid
