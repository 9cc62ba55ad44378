"""Any history of payments: late, twice, out of order, altered, refunded, charged back, restored after every event.

A provider's world is made up, and what it says of it is heard in any order, in part, and again. Whatever is heard, each
payment's money is booked once; when the last word of each has been heard, the books agree with that world.
"""

from collections import defaultdict

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.charging.catalogue import Bundle, Component, Cycle, Subscription
from fabric.gate import Gate, derived
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import Tick, TopUp, Unsubscribe
from fabric.gate.payment_events import (
    AskPayment,
    PaymentStarted,
    PaymentState,
    PaymentTold,
    ReconcilePayments,
    RefundPayment,
    Said,
    SetAutoTopUp,
)
from fabric.gate.serving_events import Authorize, ReleaseHold, SettleHold
from fabric.ledger import Service, Use
from tests.gate.world import CONFIGURE, DAY, INFERENCE, T0, S

PAYMENTS = ("p0", "p1", "p2")
PRICE = 1_000_000
PAIR = Bundle(
    name="pair",
    price_microcny=PRICE,
    components=(
        Component(asset="CT", amount=3_000 * S, share_microcny=500_000, lifetime_days=9, restriction=INFERENCE),
        Component(asset="CT", amount=4_000 * S, share_microcny=400_000, lifetime_days=30),
        Component(asset="llm:tiny@1000/100/4000/4000", amount=9_000, share_microcny=60_000, lifetime_days=9),
        Component(asset="5g-min", amount=600, share_microcny=40_000, lifetime_days=9),
    ),
)
CYCLE = Subscription(
    name="cycle",
    plan="starter",
    price_microcny=PRICE,
    amount_uhs=6_000 * S,
    cycle=Cycle.DAYS,
    cycle_days=8,
    rollover_max_uhs=500 * S,
)
OFFERS = msgspec.structs.replace(CONFIGURE.catalogue, bundles=(PAIR,), subscriptions=(CYCLE,))
BOUGHT = {
    "p0": {"amount_uhs": 7_200 * S},
    "p1": {"amount_uhs": 0, "bundle": "pair"},
    "p2": {"amount_uhs": 0, "subscription": "cycle"},
}
FEN = 10_000
USE = Use(service=Service.INFERENCE)


@st.composite
def worlds(draw):
    """What truly becomes of a payment, as the words that its provider has for it, oldest first."""
    state, refunded, gone, again, words = "pending", 0, 0, 0, []
    for step in draw(st.lists(st.sampled_from(["declined", "paid", "paid", "refund", "gone", "again"]), max_size=6)):
        if state != "paid":
            state = step if step in ("declined", "paid") else state
        elif step == "refund":
            refunded += draw(st.integers(0, (PRICE - refunded - gone + again) // FEN)) * FEN
        elif step == "gone":
            gone += draw(st.integers(0, (PRICE - refunded - gone) // FEN)) * FEN
        elif step == "again":
            again += draw(st.integers(0, (gone - again) // FEN)) * FEN
        words.append({"state": state, "refunded": refunded, "charged_back": gone, "reinstated": again})
    return words or [{"state": "pending"}]


DEEDS = st.one_of(
    st.tuples(st.just("word"), st.sampled_from(PAYMENTS), st.integers(0, 5)),
    st.tuples(st.just("word"), st.sampled_from(PAYMENTS), st.integers(0, 5)),
    st.tuples(st.just("altered"), st.sampled_from((*PAYMENTS, "unknown")), st.sampled_from(["amount", "currency"])),
    st.tuples(st.just("hold"), st.integers(1, 9_000), st.none()),
    st.tuples(st.just("settle"), st.integers(0, 5_000), st.booleans()),
    st.tuples(st.just("refund"), st.sampled_from(PAYMENTS), st.integers(1, 7_200)),
    st.tuples(st.just("start"), st.sampled_from(PAYMENTS), st.none()),
    st.tuples(st.just("buy"), st.integers(1, 3_000), st.none()),
    st.tuples(st.just("auto"), st.integers(1, 9_000), st.booleans()),
    st.tuples(st.just("auto_word"), st.sampled_from(["paid", "declined", "expired"]), st.none()),
    st.tuples(st.just("end"), st.none(), st.none()),
    st.tuples(st.just("wait"), st.sampled_from([1, 3_600, 5 * 86_400, 20 * 86_400]), st.none()),
)


def told(payment, word, amount=PRICE, currency="CNY"):
    more = {**word, "state": PaymentState(word["state"])}
    more["amount"] = amount if word["state"] == "paid" else 0
    return PaymentTold(
        said=Said(provider="stripe", payment_id=payment, provider_ref=f"pi_{payment}", currency=currency, **more)
    )


class History:
    """Plays deeds on a gate, restored after every one of them, and adds up its transfers."""

    def __init__(self, worlds):
        self.worlds, self.gate, self.now, self.made = worlds, Gate(), T0, 0
        self.cash, self.open = defaultdict(int), []
        self.do(msgspec.structs.replace(CONFIGURE, payments="stripe", catalogue=OFFERS))
        self.do(OpenAccount(account_id="ada", name="", plan="starter"))
        for payment in PAYMENTS:
            self.do(AskPayment(payment_id=payment, account_id="ada", provider="stripe", **BOUGHT[payment]))

    def do(self, event):
        restored = Gate.restore(self.gate.snapshot())
        decision = self.gate.handle(event, self.now)
        assert restored.handle(event, self.now) == decision, "killed before it, it is decided the same"
        assert restored.snapshot() == self.gate.snapshot()
        derived.assert_same(self.gate._core, restored._core)
        self.gate.check()
        for transfer in decision.transfers:
            for leg in transfer.postings:
                if leg.asset != "CT":
                    self.cash[leg.account, leg.asset] += leg.amount
        account = self.gate.state.book.accounts.get("ada")
        for rule in self.gate.state.till.auto.values():
            assert rule.month_uhs <= rule.month_max_uhs
            assert 0 <= rule.failures <= 3
            assert rule.failures < 3 or not rule.on, "off after three in a row"
        assert account is None or account.debt_uhs == account.credit_held_uhs == 0, "never debt from use"
        return decision

    def play(self, deed, what, more):
        self.made += 1
        name = f"n{self.made}"
        match deed:
            case "word":
                words = self.worlds[what]
                self.do(told(what, words[more % len(words)]))
            case "altered":
                amount, currency = (PRICE + FEN, "CNY") if more == "amount" else (PRICE, "USD")
                self.do(told(what, {"state": "paid"}, amount, currency))
            case "hold":
                asked = Authorize(
                    hold_id=name, account_id="ada", amount_uhs=what * S, use=USE, ttl_us=DAY, minimum_uhs=1
                )
                self.do(asked)
                self.open.append(name)
            case "settle" if self.open:
                said = {"hold_id": self.open.pop(0), "account_id": "ada", "seq": 1}
                self.do(SettleHold(used_uhs=what * S, **said) if more else ReleaseHold(**said))
            case "refund":
                self.do(RefundPayment(payment_id=what, account_id="ada", amount_uhs=more * S, reason="asked"))
            case "start":
                self.do(PaymentStarted(payment_id=what, provider_ref=f"cs_{what}"))
            case "buy":
                buys = TopUp(account_id="ada", amount_uhs=what * S, channel="operator", payment_ref=name)
                self.do(buys)
            case "auto":
                rule = {"threshold_uhs": what * S, "amount_uhs": 700 * S, "month_max_uhs": 1_500 * S}
                self.do(SetAutoTopUp(account_id="ada", on=more, **rule))
            case "auto_word":
                open_ones = [
                    each for each in self.gate.state.till.payments.values() if each.auto and each.is_unfinished
                ]
                if open_ones:
                    self.do(told(open_ones[-1].payment_id, {"state": what}, open_ones[-1].price_microcny))
            case "end":
                self.do(Unsubscribe(account_id="ada", subscription="cycle"))
            case "wait":
                self.now += what * S
                self.do(Tick())

    def autos_paid(self):
        return [each for each in self.gate.state.till.payments.values() if each.auto and each.lot_id]

    def last_words(self):
        for payment in PAYMENTS:
            self.do(told(payment, self.worlds[payment][-1]))


def history(worlds):
    return History(dict(zip(PAYMENTS, worlds, strict=True)))


THREE = st.tuples(worlds(), worlds(), worlds())


@settings(max_examples=60)
@given(worlds=THREE, deeds=st.lists(DEEDS, max_size=25))
def test_each_payment_is_booked_once_whatever_is_heard_of_it_and_in_what_order(worlds, deeds):
    story = history(worlds)
    for deed in deeds:
        story.play(*deed)
    story.last_words()
    till, book = story.gate.state.till, story.gate.state.book
    expected, foreign = 0, 0
    expected += sum(each.price_microcny for each in till.payments.values() if each.auto and each.lot_id)
    for payment in map(till.payments.get, PAYMENTS):
        last = {"refunded": 0, "charged_back": 0, "reinstated": 0, **story.worlds[payment.payment_id][-1]}
        aside = till.suspense.get(f"stripe/{payment.payment_id}")
        assert not (payment.aside and payment.lot_id), "never both"
        assert (aside is not None) == payment.aside
        if last["state"] == "paid":
            assert payment.lot_id or payment.aside
        if payment.lot_id:
            assert last["state"] == "paid"
            expected += PRICE - last["refunded"] - last["charged_back"] + last["reinstated"]
        elif aside is not None and not aside.settled:
            expected += aside.amount if aside.currency == "CNY" else 0
            foreign += aside.amount if aside.currency != "CNY" else 0
    unknown = till.suspense.get("stripe/unknown")
    if unknown is not None:
        expected += unknown.amount if unknown.currency == "CNY" else 0
        foreign += unknown.amount if unknown.currency != "CNY" else 0
    assert story.cash["cash/stripe", "CNY"] == expected
    assert story.cash["cash/stripe", "USD"] == foreign
    lots = [part.lot_id for payment in till.payments.values() if payment.lot_id for part in payment.parts]
    assert len(lots) == len(set(lots))
    ledgers = (book, *book.packages.values())
    bought = [lot for each in ledgers for lot in each.lots.values() if lot.terms.channel == "stripe"]
    assert sorted(lot.lot_id for lot in bought) == sorted(lots), "its lots for each, and none beside"
    aside_cny = sum(each.amount for each in till.suspense.values() if each.currency == "CNY" and not each.settled)
    due = sum(payment.refunds_due_microcny for payment in till.payments.values())
    assert story.cash["suspense/stripe", "CNY"] == -aside_cny - due, "what stands aside is named"


@settings(max_examples=40)
@given(worlds=THREE, deeds=st.lists(DEEDS, max_size=15))
def test_what_was_heard_before_changes_nothing_when_it_is_heard_again(worlds, deeds):
    story = history(worlds)
    for deed in deeds:
        story.play(*deed)
    story.last_words()
    said = [deed for deed in deeds if deed[0] == "word"]
    before = msgspec.msgpack.decode(story.gate.snapshot())
    for deed in [*said, *reversed(said)]:
        story.play(*deed)
    story.last_words()
    assert msgspec.msgpack.decode(story.gate.snapshot()) == before


@settings(max_examples=40)
@given(worlds=THREE, deeds=st.lists(DEEDS, max_size=15))
def test_what_a_reconciled_list_says_is_booked_and_the_next_one_finds_nothing(worlds, deeds):
    story = history(worlds)
    for deed in deeds:
        if deed[0] != "altered":
            story.play(*deed)
    auto = [told(each.payment_id, {"state": "paid"}, each.price_microcny).said for each in story.autos_paid()]
    listed = (*(told(payment, story.worlds[payment][-1]).said for payment in PAYMENTS), *auto)
    event = ReconcilePayments(provider="stripe", from_us=T0, until_us=story.now + 1, listed=listed)
    story.do(event)
    again = story.do(event).outcome.facts
    paid = sum(said.state == "paid" for said in listed)
    assert again == {"matched": paid, "missing_here": 0, "missing_there": 0, "different": 0}


@settings(max_examples=40)
@given(worlds=THREE, order=st.permutations(range(9)))
def test_the_order_of_what_is_heard_makes_no_difference_to_the_money(worlds, order):
    words = [(payment, number) for payment in PAYMENTS for number in range(3)]
    one, other = history(worlds), history(worlds)
    for payment, number in words:
        one.play("word", payment, number)
    for place in order:
        other.play("word", *words[place])
    one.last_words(), other.last_words()
    assert one.cash["cash/stripe", "CNY"] == other.cash["cash/stripe", "CNY"]
    free, reversed_free = (each.gate.state.book.accounts["ada"].charged_back_uhs for each in (one, other))
    assert free == reversed_free == 0, "nothing was used"
