"""Stripe through its official library, against a stateful stand-in: every way that a payment can go, each booked once."""

import contextlib
import json

import pytest
import stripe

from fabric.errors import NotFound, Unavailable
from fabric.gate.payment_events import RefundPayment
from fabric.gate.serving_events import Authorize, SettleHold
from fabric.ledger import Service, Use
from fabric.payments.port import Forged
from fabric.payments.stripe import Stripe
from tests.gate.tills import rule
from tests.gate.world import DAY, S
from tests.payments.conftest import PRICE, TOKENS, Killed, Till
from tests.payments.stripe_stand_in import KEY, SECRET

FEN = PRICE // 10_000


@pytest.fixture
def till():
    return Till("stripe")


@pytest.fixture
def taker(stripe_api):
    return Stripe(
        api_key=KEY, webhook_secret=SECRET, return_url="https://shop.example", api=stripe_api.url, save_cards=True
    )


@pytest.fixture
def desk(till, taker):
    return till.desk(taker)


def uses(till, seconds):
    use = Use(service=Service.INFERENCE)
    till.take(Authorize(hold_id="c", account_id="ada", amount_uhs=seconds * S, use=use, ttl_us=60 * S))
    till.take(SettleHold(hold_id="c", account_id="ada", seq=1, used_uhs=seconds * S))


async def paid(desk, till, api, payment_id="p1"):
    """Its payment intent."""
    payment, _ = await desk.pay(till.asks(payment_id))
    await desk.hear("stripe", *api.pays(payment.provider_ref))
    return api.sessions[payment.provider_ref]["payment_intent"]


# -- paying ------------------------------------------------------------------------------------------------------------


async def test_a_customer_gets_a_link_pays_there_and_has_its_tokens_once(desk, till, stripe_api):
    payment, url = await desk.pay(till.asks())
    assert url == f"https://checkout.stripe.com/{payment.provider_ref}"
    assert (payment.state, till.free()) == ("pending", 0)
    session = stripe_api.sessions[payment.provider_ref]
    assert (session["amount_total"], session["currency"], session["client_reference_id"]) == (FEN, "cny", "p1")
    notice = stripe_api.pays(payment.provider_ref)
    for _ in range(3):
        assert await desk.hear("stripe", *notice) == b"{}"
    assert (till.free(), till.cash["cash/stripe"]) == (TOKENS, PRICE)
    assert (await desk.link("ada", "p1"))[1] == "", "there is nothing more to pay"


async def test_asked_again_it_is_the_same_session(desk, till, stripe_api):
    first, url = await desk.pay(till.asks())
    for _ in range(2):
        again, same = await desk.link("ada", "p1")
        assert (again.provider_ref, same) == (first.provider_ref, url)
    assert len(stripe_api.sessions) == 1
    with pytest.raises(NotFound):
        await desk.link("bob", "p1")


async def test_a_payment_whose_notice_is_lost_is_asked_about(desk, till, stripe_api):
    payment, _ = await desk.pay(till.asks())
    stripe_api.pays(payment.provider_ref)
    till.now += 60 * S
    await desk.carry_on()
    await desk.carry_on(at_once=True)
    assert (till.free(), till.cash["cash/stripe"]) == (TOKENS, PRICE)


@pytest.mark.parametrize(("way", "state"), [("expires", "expired"), ("fails", "declined")])
async def test_what_comes_to_nothing_books_nothing_and_a_late_success_still_does(desk, till, stripe_api, way, state):
    payment, _ = await desk.pay(till.asks())
    await desk.hear("stripe", *getattr(stripe_api, way)(payment.provider_ref))
    assert ((await desk.payment("ada", "p1")).state, till.free()) == (state, 0)
    await desk.hear("stripe", *stripe_api.pays(payment.provider_ref))
    assert till.free() == TOKENS


async def test_a_notice_may_come_before_the_answer_to_the_start(desk, till, stripe_api, taker):
    till.take(till.asks())
    view = await desk.payment("ada", "p1")
    started = await taker.start(view, before=None)
    await desk.hear("stripe", *stripe_api.pays(started.ref))
    assert till.free() == TOKENS
    await desk.carry_on(at_once=True)
    assert ((await desk.payment("ada", "p1")).state, till.cash["cash/stripe"]) == ("paid", PRICE)


async def test_a_provider_that_is_away_is_asked_again(desk, till, stripe_api):
    stripe_api.down = True
    with pytest.raises(Unavailable) as caught:
        await desk.pay(till.asks())
    assert caught.value.code == "provider_away"
    assert KEY not in str(caught.value)
    stripe_api.down = False
    await desk.carry_on(at_once=True)
    payment, url = await desk.link("ada", "p1")
    assert (payment.state, bool(url), len(stripe_api.sessions)) == ("pending", True, 1)


# -- who may say so ----------------------------------------------------------------------------------------------------


async def test_a_forged_altered_or_old_notice_is_refused_before_it_is_read(desk, till, stripe_api):
    payment, _ = await desk.pay(till.asks())
    headers, body = stripe_api.pays(payment.provider_ref)
    session = stripe_api.sessions[payment.provider_ref]
    forged = [
        (headers, body.replace(b"100", b"101")),
        (headers, body + b" "),
        ({}, body),
        ({"stripe-signature": "t=1,v1=00"}, body),
        (headers, b"\xff\xfe"),
        stripe_api.notice("checkout.session.completed", session, secret="whsec_other"),
        stripe_api.notice("checkout.session.completed", session, at=1_700_000_000),
    ]
    before = till.gate.snapshot()
    for each in forged:
        with pytest.raises(Forged):
            await desk.hear("stripe", *each)
    with pytest.raises(NotFound):
        await desk.hear("alipay", headers, body)
    with pytest.raises(Forged):
        await desk.hear("operator", headers, body)
    assert till.gate.snapshot() == before


async def test_its_own_library_makes_the_signature_that_is_believed(desk, till, stripe_api):
    payment, _ = await desk.pay(till.asks())
    headers, body = stripe_api.pays(payment.provider_ref)
    stripe.WebhookSignature.verify_header(body, headers["stripe-signature"], SECRET, 300)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"amount_total": FEN + 1}, "other_amount"),
        ({"currency": "usd"}, "other_currency"),
        ({"client_reference_id": "nobodys"}, "unknown_payment"),
    ],
)
async def test_another_amount_currency_or_payment_stands_in_suspense(desk, till, stripe_api, change, why):
    payment, _ = await desk.pay(till.asks())
    stripe_api.pays(payment.provider_ref)
    session = stripe_api.sessions[payment.provider_ref] | change
    await desk.hear("stripe", *stripe_api.notice("checkout.session.completed", session))
    assert (till.free(), till.suspense()) == (0, [why])


async def test_yen_are_counted_whole(desk, till, stripe_api):
    payment, _ = await desk.pay(till.asks())
    session = stripe_api.sessions[payment.provider_ref] | {
        "payment_status": "paid",
        "currency": "jpy",
        "amount_total": 7,
    }
    await desk.hear("stripe", *stripe_api.notice("checkout.session.completed", session))
    (found,) = till.gate.state.till.suspense.values()
    assert (found.amount, found.currency) == (7_000_000, "JPY")


# -- what goes back ----------------------------------------------------------------------------------------------------


async def test_a_refund_goes_to_its_source_once(desk, till, stripe_api):
    intent = await paid(desk, till, stripe_api)
    uses(till, 3_600)
    refund = till.take(RefundPayment(payment_id="p1", account_id="ada", reason="asked"))
    assert refund.facts["amount_microcny"] == PRICE // 2
    for _ in range(2):
        await desk.carry_on(at_once=True)
    assert stripe_api.intents[intent]["latest_charge"]["amount_refunded"] == FEN // 2
    assert (till.cash["cash/stripe"], till.cash["suspense/stripe"], len(stripe_api.refunds)) == (PRICE // 2, 0, 1)
    (made,) = stripe_api.refunds.values()
    assert made["metadata"]["refund_id"] == "p1-r1"


async def test_a_refund_while_it_is_away_is_paid_when_it_is_back(desk, till, stripe_api):
    await paid(desk, till, stripe_api)
    till.take(RefundPayment(payment_id="p1", account_id="ada", reason="asked"))
    stripe_api.down = True
    await desk.carry_on(at_once=True)
    assert (till.cash["cash/stripe"], till.cash["suspense/stripe"]) == (PRICE, -PRICE)
    stripe_api.down = False
    await desk.carry_on(at_once=True)
    assert (till.cash["cash/stripe"], till.cash["suspense/stripe"]) == (0, 0)


async def test_a_refund_in_the_dashboard_is_heard_of(desk, till, stripe_api):
    intent = await paid(desk, till, stripe_api)
    notice = stripe_api.gives_back(intent, FEN // 4)
    for _ in range(2):
        await desk.hear("stripe", *notice)
    assert (till.free(), till.cash["cash/stripe"]) == (TOKENS * 3 // 4, PRICE * 3 // 4)


async def test_a_dispute_freezes_and_one_that_is_won_gives_back(desk, till, stripe_api):
    intent = await paid(desk, till, stripe_api)
    uses(till, 2_000)
    for _ in range(2):
        await desk.hear("stripe", *stripe_api.disputes_it(intent))
    assert (till.free(), till.cash["cash/stripe"]) == (0, 0)
    assert till.gate.state.book.accounts["ada"].charged_back_uhs == 2_000 * S
    late = stripe_api.disputes_it(intent)
    await desk.hear("stripe", *stripe_api.disputes_it(intent, "won"))
    await desk.hear("stripe", *late)
    assert (till.free(), till.cash["cash/stripe"]) == (5_200 * S, PRICE)


# -- the list, and cards that are kept ---------------------------------------------------------------------------------


async def test_a_day_is_reconciled_against_its_own_list(desk, till, stripe_api):
    await paid(desk, till, stripe_api)
    lost, _ = await desk.pay(till.asks("p2"))
    stripe_api.pays(lost.provider_ref)
    stripe_api.intent(500, "cny", {})
    only_here, _ = await desk.pay(till.asks("p3"))
    await desk.hear("stripe", *stripe_api.pays(only_here.provider_ref))
    del stripe_api.intents[stripe_api.sessions[only_here.provider_ref]["payment_intent"]]
    found = await desk.reconcile(till.now - S, till.now + S)
    assert found == {"matched": 1, "missing_here": 2, "missing_there": 1, "different": 0}
    assert (till.free(), till.cash["cash/stripe"]) == (3 * TOKENS, 3 * PRICE + 500 * 10_000)
    assert till.suspense() == ["unknown_payment", "missing_there"]
    again = await desk.reconcile(till.now - S, till.now + S)
    assert again == {"matched": 3, "missing_here": 0, "missing_there": 1, "different": 0}


async def test_each_day_that_is_over_is_reconciled_once(desk, till, stripe_api):
    await paid(desk, till, stripe_api)
    lost, _ = await desk.pay(till.asks("p2"))
    stripe_api.pays(lost.provider_ref)
    await desk.reconcile_daily()
    till.now += 2 * DAY
    for _ in range(2):
        await desk.reconcile_daily()
    assert till.free() == 2 * TOKENS
    made = [(each.matched, each.missing_here) for each in till.gate.state.till.reconciled]
    assert made == [(1, 1), (2, 0)]


async def test_a_card_that_was_kept_pays_a_top_up_that_nobody_asked_for(desk, till, stripe_api):
    await paid(desk, till, stripe_api)
    till.take(rule(account_id="ada", threshold_uhs=2 * TOKENS, amount_uhs=TOKENS, month_max_uhs=TOKENS))
    for _ in range(2):
        await desk.carry_on(at_once=True)
    assert (till.free(), till.cash["cash/stripe"], len(stripe_api.intents)) == (2 * TOKENS, 2 * PRICE, 2)


async def test_a_card_that_is_declined_counts_as_a_failure(desk, till, stripe_api):
    await paid(desk, till, stripe_api)
    stripe_api.declines = True
    till.take(rule(account_id="ada", threshold_uhs=2 * TOKENS, amount_uhs=TOKENS, month_max_uhs=TOKENS))
    await desk.carry_on(at_once=True)
    assert till.gate.state.till.auto["ada"].failures == 1
    assert till.cash["cash/stripe"] == PRICE


# -- killed between every two steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies_at", range(1, 13))
async def test_killed_between_any_two_steps_it_is_paid_and_refunded_once(till, stripe_api, taker, dies_at):
    """The desk's process ends at a step; another one carries on from what the gate has, and what Stripe says again."""
    till.dies_at = dies_at
    ask = till.asks(request_id="r1")
    notices = []

    async def tried(work):
        with contextlib.suppress(Killed):
            await work()

    async def pay():
        await till.desk(taker).pay(ask)

    async def hear():
        for notice in notices:
            await till.desk(taker).hear("stripe", *notice)

    async def carry_on():
        await till.desk(taker).carry_on(at_once=True)

    async def refund():
        await till.decide([RefundPayment(payment_id="p1", account_id="ada", reason="asked", request_id="r2")])

    for work in (pay, pay, carry_on):
        await tried(work)
    (session,) = stripe_api.sessions
    notices.append(stripe_api.pays(session))
    for work in (hear, hear, refund, refund, carry_on, carry_on):
        await tried(work)
    assert till.steps >= 12
    assert (till.free(), till.cash["cash/stripe"], till.cash["suspense/stripe"]) == (0, 0, 0)
    assert (len(stripe_api.sessions), len(stripe_api.intents), len(stripe_api.refunds)) == (1, 1, 1)
    assert json.dumps(till.suspense()) == "[]"
