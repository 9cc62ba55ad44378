"""Alipay by its own protocol, against a stateful stand-in with key pairs of its own: each payment booked once."""

import base64
import contextlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fabric.errors import InvalidConfig, Unavailable
from fabric.gate.payment_events import RefundPayment
from fabric.payments.alipay import Alipay
from fabric.payments.port import Forged
from tests.gate.world import DAY, S
from tests.payments.alipay_stand_in import APP_ID, AlipayStandIn, pair, pem_of, public_of, row
from tests.payments.conftest import PRICE, TOKENS, Killed, Till

FEN = PRICE // 10_000


@pytest.fixture
def till():
    return Till("alipay")


@pytest.fixture(scope="module")
def stand_in():
    made = AlipayStandIn()
    yield made
    made.close()


@pytest.fixture
def api(stand_in):
    stand_in.trades, stand_in.refunds, stand_in.rows = {}, {}, []
    stand_in.down, stand_in.signs_with = False, stand_in.theirs
    return stand_in


def taker_of(api, till, **more):
    keys = {"private_key": pem_of(api.ours), "alipay_public_key": public_of(api.theirs)}
    pages = {"notify_url": "https://op.example/payments/alipay", "return_url": "https://op.example"}
    return Alipay(**{"app_id": APP_ID, **keys, **pages, "now_us": till.now_us, "gateway": api.url, **more})


@pytest.fixture
def taker(api, till):
    return taker_of(api, till)


@pytest.fixture
def desk(till, taker):
    return till.desk(taker)


async def paid(desk, till, api, payment_id="p1"):
    _, url = await desk.pay(till.asks(payment_id))
    await desk.hear("alipay", {}, api.pays(api.opens(url)))


async def test_a_customer_gets_a_signed_link_pays_there_and_has_its_tokens_once(desk, till, api):
    payment, url = await desk.pay(till.asks())
    assert (payment.state, payment.provider_ref) == ("pending", "p1")
    notice = api.pays(api.opens(url))
    assert api.trades["p1"]["amount"] == "1.00"
    for _ in range(3):
        assert await desk.hear("alipay", {}, notice) == b"success"
    assert (till.free(), till.cash["cash/alipay"]) == (TOKENS, PRICE)
    assert (await desk.payment("ada", "p1")).provider_ref == api.trades["p1"]["trade_no"]


async def test_a_payment_whose_notice_is_lost_is_asked_about(desk, till, api):
    _, url = await desk.pay(till.asks())
    await desk.carry_on(at_once=True)
    assert (await desk.payment("ada", "p1")).state == "pending", "nobody has opened the page"
    api.pays(api.opens(url))
    await desk.carry_on(at_once=True)
    assert (till.free(), till.cash["cash/alipay"]) == (TOKENS, PRICE)


async def test_what_nobody_paid_expires_there_or_by_its_time(desk, till, api):
    _, url = await desk.pay(till.asks())
    await desk.hear("alipay", {}, api.closes(api.opens(url)))
    await desk.pay(till.asks("p2"))
    till.now += 2 * DAY
    await desk.carry_on(at_once=True)
    assert [(await desk.payment("ada", name)).state for name in ("p1", "p2")] == ["expired", "expired"]
    await desk.hear("alipay", {}, api.pays("p1"))
    assert till.free() == TOKENS, "late, and paid all the same"


async def test_a_forged_or_altered_notice_is_refused_before_it_is_read(desk, till, api):
    _, url = await desk.pay(till.asks())
    body = api.pays(api.opens(url))
    forged = [
        body.replace(b"1.00", b"9.00"),
        body.replace(b"p1", b"p2"),
        body + b"&extra=1",
        body.replace(b"sign=", b"sign=A"),
        b"",
        b"\xff\xfe",
        b"sign=&out_trade_no=p1",
        api.notice("p1", key=pair()),
        api.notice("p1", app_id="2021000000000002"),
    ]
    before = till.gate.snapshot()
    for each in forged:
        with pytest.raises(Forged):
            await desk.hear("alipay", {}, each)
    assert till.gate.snapshot() == before


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"total_amount": "0.99"}, "other_amount"), ({"out_trade_no": "nobodys"}, "unknown_payment")],
)
async def test_another_amount_or_payment_stands_in_suspense(desk, till, api, changed, why):
    _, url = await desk.pay(till.asks())
    api.pays(api.opens(url))
    await desk.hear("alipay", {}, api.notice("p1", **changed))
    assert (till.free(), till.suspense()) == (0, [why])


async def test_an_answer_that_is_not_signed_by_it_counts_for_nothing(desk, till, api):
    _, url = await desk.pay(till.asks())
    api.pays(api.opens(url))
    api.signs_with = pair()
    await desk.carry_on(at_once=True)
    assert till.free() == 0
    api.signs_with, api.down = api.theirs, True
    await desk.carry_on(at_once=True)
    assert till.free() == 0
    api.down = False
    await desk.carry_on(at_once=True)
    assert till.free() == TOKENS


async def test_a_refund_goes_to_its_source_once(desk, till, api):
    await paid(desk, till, api)
    half = RefundPayment(payment_id="p1", account_id="ada", amount_uhs=TOKENS // 2, reason="asked")
    till.take(half)
    for _ in range(2):
        await desk.carry_on(at_once=True)
    assert (till.cash["cash/alipay"], api.refunds) == (PRICE // 2, {"p1-r1": FEN // 2})
    till.take(half)
    await desk.carry_on(at_once=True)
    await desk.hear("alipay", {}, api.notice("p1"))
    assert (till.cash["cash/alipay"], till.cash["suspense/alipay"], till.free()) == (0, 0, 0)
    assert api.refunds == {"p1-r1": FEN // 2, "p1-r2": FEN // 2}


async def test_a_refund_on_its_own_pages_is_heard_of(desk, till, api):
    await paid(desk, till, api)
    notice = api.gives_back("p1", FEN)
    for _ in range(2):
        await desk.hear("alipay", {}, notice)
    assert (till.free(), till.cash["cash/alipay"]) == (0, 0)


async def test_a_day_is_reconciled_against_its_bill(desk, till, api):
    begins = till.now - S
    till.now += 2 * DAY
    assert (await desk.reconcile(begins, begins + 2 * S))["matched"] == 0, "a day without a bill"
    till.now -= 2 * DAY
    await paid(desk, till, api)
    _, url = await desk.pay(till.asks("p2"))
    api.pays(api.opens(url))
    api.gives_back("p1", 25)
    till.now += 2 * DAY
    found = await desk.reconcile(begins, begins + 2 * S)
    assert found == {"matched": 0, "missing_here": 1, "missing_there": 0, "different": 1}
    assert (till.free(), till.cash["cash/alipay"]) == (TOKENS * 7 // 4, 2 * PRICE - 250_000)
    begins = till.now - S
    till.now += 2 * DAY
    assert (await desk.reconcile(begins - 2 * DAY, begins + 2 * S))["matched"] == 2


async def test_a_bill_that_is_not_written_yet_is_no_day_without_sales(desk, till, api):
    """Asked for early it is said not to exist: what was paid that day was then told to be missing there."""
    day_us = till.now // DAY * DAY
    till.now = day_us + 20 * 3_600 * S
    await paid(desk, till, api)
    bill, api.rows = api.rows, []
    for hours in (24 + 13, 24 + 25):
        till.now = day_us + hours * 3_600 * S
        with pytest.raises(Unavailable) as caught:
            await desk.reconcile(day_us, day_us + DAY)
        assert caught.value.code == "not_listed_yet"
        await desk.reconcile_daily()
    assert till.suspense() == []
    api.rows, till.now = bill, day_us + (24 + 27) * 3_600 * S
    await desk.reconcile_daily()
    assert till.suspense() == []
    assert [each.matched for each in till.gate.state.till.reconciled][-1] == 1


async def test_a_refund_that_is_younger_than_the_list_is_no_difference(desk, till, api):
    await paid(desk, till, api)
    bill = list(api.rows)
    begins, till.now = till.now - S, till.now + 2 * DAY
    till.take(RefundPayment(payment_id="p1", account_id="ada", reason="asked"))
    await desk.carry_on(at_once=True)
    api.rows = bill
    found = await desk.reconcile(begins, begins + 60 * S)
    assert found == {"matched": 1, "missing_here": 0, "missing_there": 0, "different": 0}


async def test_a_list_that_is_longer_than_an_event_is_reconciled_in_parts(till, api, desk, monkeypatch):
    monkeypatch.setattr("fabric.payments.desk._HALF", 2)
    for number in range(5):
        till.now += S
        await paid(desk, till, api, f"p{number}")
    api.rows.pop(2)
    for name in ("x1", "x2", "x3"):
        api.rows.append(row(name, name, "交易", "1.00"))
    begins, till.now = till.now - 60 * S, till.now + 2 * DAY
    found = await desk.reconcile(begins, begins + 61 * S)
    assert found == {"matched": 4, "missing_here": 3, "missing_there": 1, "different": 0}


def test_a_key_that_is_none_is_refused_at_the_start(till, api):
    for wrong in ({"private_key": "abc"}, {"alipay_public_key": ""}, {"private_key": public_of(api.ours)}):
        with pytest.raises(InvalidConfig):
            taker_of(api, till, **wrong)
    short = rsa.generate_private_key(public_exponent=65_537, key_size=1_024)
    with pytest.raises(InvalidConfig):
        taker_of(api, till, private_key=pem_of(short))
    der = api.ours.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    taker_of(api, till, private_key=base64.b64encode(der).decode())


async def test_it_is_away_and_that_is_said_without_a_key(desk, till, api):
    await paid(desk, till, api)
    api.down, begins, till.now = True, till.now - S, till.now + 2 * DAY
    with pytest.raises(Unavailable) as caught:
        await desk.reconcile(begins, begins + 2 * S)
    assert "PRIVATE" not in str(caught.value)


@pytest.mark.parametrize("dies_at", range(1, 13))
async def test_killed_between_any_two_steps_it_is_paid_and_refunded_once(till, api, taker, dies_at):
    till.dies_at = dies_at
    notices = []

    async def pay():
        await till.desk(taker).pay(till.asks(request_id="r1"))

    async def hear():
        for notice in notices:
            await till.desk(taker).hear("alipay", {}, notice)

    async def carry_on():
        await till.desk(taker).carry_on(at_once=True)

    async def refund():
        await till.decide([RefundPayment(payment_id="p1", account_id="ada", reason="asked", request_id="r2")])

    for work in (pay, pay, carry_on):
        with contextlib.suppress(Killed):
            await work()
    _, url = await till.desk(taker).link("ada", "p1")
    notices.append(api.pays(api.opens(url)))
    for work in (hear, hear, refund, refund, carry_on, carry_on):
        with contextlib.suppress(Killed):
            await work()
    assert till.steps >= 12
    assert (till.free(), till.cash["cash/alipay"], till.cash["suspense/alipay"]) == (0, 0, 0)
    assert (api.refunds, till.suspense()) == ({"p1-r1": FEN}, [])
