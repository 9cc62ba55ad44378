"""Prices take effect on a date: what was used is charged at what was in force when it was used, whenever it is booked."""

from fractions import Fraction

import pytest
from msgspec.structs import replace

from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import ClosePeriod, Configure, HoldMode, NodeDown, Tick
from fabric.gate.limit_events import LimitTerms, SetLimit, Unit, Whose
from fabric.gate.periods import Period
from fabric.gate.questions import PricesOf
from fabric.gate.serving_events import Authorize, CallUsed, ModelSpec, OfferModel, SettleHold
from fabric.ledger import Service, Use
from fabric.ledger.accounts import Priced
from fabric.placement.quotas import Policy
from tests.gate.conftest import Story, finished, metered, node, removed, started, submit, top_up
from tests.gate.dated import Dated, at, catalogue, dearer, moved, priced
from tests.gate.model_calls import rate
from tests.gate.world import CATALOGUE, CONFIGURE, T0, TARIFFS, S

DEAR = {"post": 1_200_000}
"""The postpaid plan at three times its price."""
HOUR = 3_600


@pytest.fixture
def dated():
    """Proved in the end."""
    story = Dated()
    yield story
    report = story.report()
    assert report.ok, report


def on_credit(story):
    story.must(OpenAccount(account_id="cyd", name="Cyd", plan="post", credit_limit_uhs=500 * S))


def owed(*parts):
    """In whole fen: so many seconds each at its price."""
    exact = Fraction(sum(seconds * price for seconds, price in parts), HOUR)
    return round(exact / 10_000) * 10_000


def run(story, *middle, account="cyd", last=(300, 200)):
    """A job from 0 to 300 that is metered to 100, then what happens, and then the rest in one sample."""
    end, rest = last
    story.play(
        (0, submit(account=account, limit=400 * S), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (100, metered(100), []),
        *middle,
        (end, metered(rest, seq=2), []),
        (end, finished("succeeded"), ["remove j.1"]),
        (end, removed(), []),
    )


# -- what is used on credit --------------------------------------------------------------------------------------------


def test_what_is_used_on_credit_before_a_date_is_invoiced_at_the_price_of_before_however_late_it_is_metered(dated):
    on_credit(dated)
    dated.must(priced(catalogue=catalogue(200, prices=DEAR)))
    run(dated)
    dated.must(ClosePeriod(period="p"))
    account = dated.gate.state.book.accounts["cyd"]
    assert account.receivable_microcny == owed((200, 400_000), (100, 1_200_000))


def test_so_is_what_is_used_before_a_change_that_is_made_at_once(dated):
    on_credit(dated)
    run(dated, (200, priced(catalogue=catalogue(prices=DEAR)), []))
    dated.must(ClosePeriod(period="p"))
    account = dated.gate.state.book.accounts["cyd"]
    assert account.receivable_microcny == owed((200, 400_000), (100, 1_200_000))


def test_by_the_rules_of_before_it_has_the_price_of_when_it_was_booked():
    story = Story("ada", "bob")
    story.gate = Gate.restore(None)
    for event in (CONFIGURE, node()):
        story.must(event)
    on_credit(story)
    run(story, (200, priced(catalogue=catalogue(prices=DEAR)), []))
    story.must(ClosePeriod(period="p"))
    assert story.gate.state.book.accounts["cyd"].receivable_microcny == owed((100, 400_000), (200, 1_200_000))
    assert (story.gate.state.plan_prices, story.gate.state.offers) == ([], {})


def test_what_is_given_back_of_dear_use_leaves_the_cheap_use_of_others_its_own_price(dated):
    """The lost job had used 100 s at the price of before and as much at the one in force: only what the other used is owed then."""
    on_credit(dated)
    dated.must(node("a1", "A100"))
    dated.must(priced(catalogue=catalogue(prices=DEAR)))
    dated.must(priced(catalogue=catalogue(100, prices={"post": 400_000})))
    dated.play(
        (0, submit("a", account="cyd", limit=250 * S), ["start a.1 epoch 1 on h1:1"]),
        (0, started("a.1"), []),
        (100, metered(100, "a.1"), []),
        (100, submit("b", account="cyd", types=("A100",), limit=100 * S), ["start b.1 epoch 1 on a1:1"]),
        (100, started("b.1"), []),
        (200, metered(100, "a.1", seq=2), []),
        (200, metered(100, "b.1"), []),
        (200, NodeDown(node_id="h1"), ["remove a.1"]),
        (201, removed("a.1"), []),
        job="a",
    )
    account = dated.gate.state.book.accounts["cyd"]
    assert (account.debt_uhs, account.priced) == (100 * 315_000, []), "all that is owed is owed at the price in force"


PRICE = (40 * S, 4 * S, 400 * S, 400 * S)
COST = 100 * 40 + 10 * 400


def offer(name="tiny", price=PRICE):
    spec = ModelSpec(name=name, source="/m", accelerators=("H100",))
    return OfferModel(spec=spec, rates=() if price is None else (rate(*price),))


def call(name, began, *, model="tiny", version=0):
    return CallUsed(
        call_id=name, model=model, accelerator="H100", prompt_tokens=100, cached_tokens=0, completion_tokens=10, started_at_us=at(began),
        ended_at_us=at(began + 1), ended="stop", rate_version=version,
    )  # fmt: skip


def pays(story, *calls, account="ada", model="tiny", hold="s"):
    use = Use(service=Service.INFERENCE, accelerators=("H100",), models=(model,))
    story.must(Authorize(hold_id=hold, account_id=account, amount_uhs=S, use=use, ttl_us=60 * S))
    decision = story.do(SettleHold(hold_id=hold, account_id=account, seq=1, calls=calls))
    return [(record.cdr_id, record.rate_version, record.charged_uhs) for record in decision.records]


def test_calls_on_credit_that_are_reported_after_a_date_have_the_price_of_when_they_began(dated):
    on_credit(dated)
    dated.must(offer())
    dated.must(priced(catalogue=catalogue(30, prices=DEAR)))
    pays(dated.at(40), call("a", 10), call("b", 35), account="cyd")
    account = dated.gate.state.book.accounts["cyd"]
    assert (account.debt_uhs, account.priced) == (2 * COST, [Priced(COST, 400_000)])


def test_a_limit_in_money_holds_at_the_dearest_price_that_is_known_to_begin_in_its_period(dated):
    """It is 22:13; what begins after midnight is of the next day."""
    terms = LimitTerms(period=Period.DAY, unit=Unit.CNY, amount=50_000)  # 360 s at 0.50 CNY a token
    dated.must(SetLimit(account_id="ada", whose=Whose.ACCOUNT, terms=terms))
    dated.must(priced(catalogue=catalogue(2 * HOUR, prices={"starter": 2_000_000})))
    dated.must(submit("a", limit=180 * S))
    dated.must(priced(catalogue=catalogue(HOUR, prices={"starter": 1_000_000})))
    assert dated.do(submit("b", limit=1 * S)).outcome.code == "spending_limit_reached"
    dated.must(priced())
    dated.must(submit("b", limit=180 * S))
    assert dated.do(submit("c", limit=1 * S)).outcome.code == "spending_limit_reached"


# -- what burns, and calls ---------------------------------------------------------------------------------------------


def test_a_lease_pays_other_tariffs_from_their_date_on_and_stops_in_time_for_them(dated):
    dated.must(priced(tariffs=dearer(100)))
    dated.play(
        (0, submit(limit=400 * S), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (150, metered(150), []),
        (239, Tick(), []),
        (240, Tick(), ["stop j.1 limit_reached by 250"]),
        (245, finished("saved"), ["remove j.1"]),
        (245, removed(), []),
    )
    (record,) = dated.records()
    spans = [((span.until_us - T0) / S, span.tariff_version, span.weight_ppm) for span in record.spans]
    assert spans == [(100, 1, 1_000_000), (245, 2, 2_000_000)]
    assert record.charged_uhs == 100 * S + 2 * 145 * S


def test_one_that_runs_already_foresees_what_is_announced_and_forgets_what_is_withdrawn(dated):
    begun = ((0, submit(limit=400 * S), ["start j.1 epoch 1 on h1:1"]), (0, started(), []))
    dated.play(*begun, (50, priced(tariffs=dearer(100)), []), (60, CONFIGURE, []), (150, metered(150), []))
    assert (dated.gate.state.announced, dated.job().burned_uhs) == ([], 150 * S)
    dated.play((150, priced(tariffs=dearer(160)), []), (170, metered(20, seq=2), []))
    assert dated.job().burned_uhs == 150 * S + 10 * S + 20 * S
    dated.play((170, finished("succeeded"), ["remove j.1"]), (170, removed(), []))


def test_a_rolling_hold_covers_the_dearest_price_that_begins_while_it_lasts(dated):
    dated.must(top_up(9_000))
    dated.must(priced(tariffs=dearer(10_000)))
    rolling = {"limit": 5_000 * S, "hold": HoldMode.ROLLING}
    assert dated.must(submit("a", **rolling)).held_uhs == 600 * S
    assert dated.at(9_399).must(submit("b", **rolling)).held_uhs == 600 * S
    assert dated.at(9_401).must(submit("c", **rolling)).held_uhs == 1_200 * S


def test_calls_pay_the_rates_that_were_in_force_when_they_began_whatever_their_replica_had_heard(dated):
    dated.must(priced(tariffs=replace(TARIFFS, version=9, rates=(rate(*PRICE),))))
    dated.must(offer("other", price=None))
    double = (rate(*(2 * each for each in PRICE)),)
    dated.must(priced(tariffs=replace(TARIFFS, version=10, rates=double, effective_from_us=at(100))))
    told = [
        call("a", 99, version=1),
        call("b", 100, version=1),
        call("c", 99),
        call("d", 101),
        call("e", 101, version=2),
    ]
    paid = pays(dated.at(200), *(replace(each, model="other") for each in told), model="other")
    assert paid == [("a", 1, COST), ("b", 2, 2 * COST), ("c", 1, COST), ("d", 2, 2 * COST), ("e", 2, 2 * COST)]


# -- what is announced -------------------------------------------------------------------------------------------------


def test_a_top_up_costs_what_is_in_force_and_what_is_announced_is_shown_until_then(dated):
    dated.must(priced(catalogue=catalogue(100, prices={"starter": 600_000})))
    assert dated.gate.next_due_us() == at(100)
    shown = dated.gate.ask(PricesOf(), dated.now_us)
    assert shown.catalogue == CATALOGUE
    assert [(each.since_us, each.catalogue.version, each.tariffs) for each in shown.announced] == [(at(100), 2, None)]
    costs = [dated.at(second).must(top_up(HOUR)).facts["price_microcny"] for second in (99, 100)]
    assert costs == [500_000, 600_000]
    assert dated.gate.ask(PricesOf(), dated.now_us).announced == ()
    assert [each.what for each in dated.gate.state.till.notices[""]] == ["prices_in_force"]


def test_what_is_announced_for_an_earlier_date_takes_the_place_of_what_was_to_begin_later(dated):
    dated.must(priced(tariffs=dearer(300)))
    dated.must(priced(tariffs=dearer(300), catalogue=catalogue(200)))
    assert [each.since_us for each in dated.gate.state.announced] == [at(200), at(300)]
    dated.must(priced(tariffs=dearer(200, version=3), catalogue=catalogue(200)))
    (only,) = dated.gate.state.announced
    assert (only.since_us, only.tariffs.version, only.catalogue.version) == (at(200), 3, 2)
    dated.must(priced(tariffs=dearer(400, version=4), catalogue=catalogue(200)))
    assert [each.tariffs.version for each in dated.gate.state.announced] == [3, 4]
    dated.at(250).do(Tick())
    assert (dated.gate.state.tariffs.version, dated.gate.state.catalogue.version) == (3, 2)
    assert [each.since_us for each in dated.gate.state.announced] == [at(400)]


def test_policy_that_is_set_by_hand_neither_withdraws_prices_nor_brings_old_ones_back(dated):
    by_hand = Configure(tariffs=TARIFFS, catalogue=CATALOGUE, policy=Policy(evictions_max=1), by_hand=True)
    dated.must(priced(tariffs=dearer(100)))
    dated.must(by_hand)
    assert len(dated.gate.state.announced) == 1
    dated.at(101).must(replace(by_hand, policy=Policy(evictions_max=2)))
    assert dated.gate.state.tariffs.version == 2


def test_a_date_that_has_passed_is_at_once(dated):
    dated.at(100).must(priced(tariffs=dearer(50)))
    assert (dated.gate.state.tariffs.version, dated.gate.state.announced) == (2, [])
    dated.must(submit())


IMPOSSIBLE = {
    "a weight for each type": {"tariffs": replace(dearer(9), weights=TARIFFS.weights[:1])},
    "the next one": {"tariffs": dearer(9, version=1)},
    "each plan": {"catalogue": replace(catalogue(9), plans=CATALOGUE.plans[:2])},
    "days from now, and the catalogue": {"catalogue": catalogue(4_000 * 86_400)},
}


@pytest.mark.parametrize("says", IMPOSSIBLE)
def test_what_can_only_be_asked_now_is_refused_when_it_is_announced(dated, says):
    dated.must(OpenAccount(account_id="cyd", name="Cyd", plan="post"))
    refused = dated.do(priced(**IMPOSSIBLE[says])).outcome
    assert (refused.code, says in refused.message) == ("invalid_config", True), refused.message


def test_nothing_is_sold_before_there_are_prices():
    refused = Gate().handle(priced(tariffs=dearer(9)), T0).outcome
    assert (refused.code, "without a date" in refused.message) == ("invalid_config", True)


# -- the proof ---------------------------------------------------------------------------------------------------------


def test_whoever_doubts_a_bill_finds_prices_that_were_not_in_force():
    """An operator who charged by a date, and shows another."""
    story = Dated()
    story.must(priced(tariffs=dearer(100), catalogue=catalogue(100, prices={"starter": 600_000})))
    run(story, account="ada", last=(200, 100))
    assert story.report().ok
    assert "were not in force then" in story.report(moved(20)).problem
    assert "and others began at" in story.report(moved(-20)).problem


def test_and_calls_and_purchases_that_were_charged_by_another_date():
    story = Dated()
    story.must(priced(tariffs=replace(TARIFFS, version=9, rates=(rate(*PRICE),))))
    story.must(offer("other", price=None))
    double = (rate(*(2 * each for each in PRICE)),)
    story.must(priced(tariffs=replace(TARIFFS, version=10, rates=double, effective_from_us=at(100))))
    pays(story.at(200), replace(call("a", 99), model="other"), model="other")
    assert story.report().ok
    assert "began when others were in force" in story.report(moved(-20)).problem
    story = Dated()
    story.must(priced(catalogue=catalogue(100, prices={"starter": 600_000})))
    story.at(99).must(top_up(HOUR))
    story.at(100).must(top_up(HOUR))
    assert story.report().ok
    assert "by the price list" in story.report(moved(1)).problem
    assert "by the price list" in story.report(moved(-1)).problem
