"""Payments through the door: asked for, paid at a provider, booked by hand, refunded, reconciled; and who may what."""

import json

import msgspec
import pytest

from fabric.errors import Conflict, FabricError, InvalidRequest, NotFound, PermissionDenied
from fabric.gate.events import Configure, VoidLot
from fabric.gate.key_scopes import KeyScope
from fabric.gate.payment_events import PaymentState, PaymentTold, Said
from fabric.gate.serving_events import Authorize, SettleHold
from fabric.ledger import Service, Use
from fabric.payments.by_hand import Operator
from fabric.payments.stripe import Stripe
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from tests.doors.conftest import CATALOGUE, TARIFFS
from tests.payments.stripe_stand_in import KEY, SECRET, StripeStandIn

CT = UHS_PER_CT


@pytest.fixture
def api():
    made = StripeStandIn()
    yield made
    made.close()


@pytest.fixture
def shop(make_house, api):
    """Payments are taken by Stripe."""
    taker = Stripe(api_key=KEY, webhook_secret=SECRET, return_url="https://shop.example", api=api.url)
    house = make_house(payments=(taker, Operator(lambda: 0)))
    house.port.seed(Configure(tariffs=TARIFFS, catalogue=CATALOGUE, payments="stripe"))
    return house


def document(client, request):
    return json.loads(client.call(request, pb.Document).json)


def asks(request_id="r1", **more):
    return pb.AskPaymentRequest(request_id=request_id, amount_uhs=2 * CT, **more)


def notice(house, headers, body, provider="stripe", key=None):
    client = house.client(key or house.key("op", "gw", scopes=(KeyScope.GATEWAY,), operator=True))
    request = pb.PaymentNoticeRequest(provider=provider, headers=headers, body=body)
    return client.call(request, pb.PaymentNoticeReply).answer


def test_a_customer_asks_pays_and_has_its_tokens_once(shop, api):
    acme = shop.client()
    found = document(acme, asks())
    assert document(acme, asks()) == found, "asked again it is the same"
    payment = found["payment"]
    assert found["url"].endswith(payment["provider_ref"])
    signed = api.pays(payment["provider_ref"])
    gateway = shop.key("op", "gw", scopes=(KeyScope.GATEWAY,), operator=True)
    for _ in range(2):
        assert notice(shop, *signed, key=gateway) == b"{}"
    balance = acme.call(pb.BalanceRequest(), pb.BalanceReply)
    assert balance.free_uhs == 102 * CT
    shown = document(acme, pb.ListPaymentsRequest())
    assert [each["state"] for each in shown["payments"]] == ["paid"]
    assert [each["what"] for each in shown["notices"]] == ["payment_paid"]
    with pytest.raises(PermissionDenied) as caught:
        notice(shop, signed[0], signed[1] + b" ", key=gateway)
    assert caught.value.code == "forged_notice"
    with pytest.raises(NotFound):
        notice(shop, *signed, provider="alipay", key=gateway)


def test_a_program_asks_to_pay_and_waits(shop, api):
    fabric = shop.fabric()
    asked = [fabric.pay("2", request_id="once"), fabric.pay(bundle="edge"), fabric.pay(subscription="monthly")]
    assert fabric.pay("2", request_id="once").id == asked[0].id, "asked again it is the same"
    gateway = shop.key("op", "gw", scopes=(KeyScope.GATEWAY,), operator=True)
    for payment in asked:
        assert payment.state == "pending"
        assert payment.url.endswith(payment.document()["provider_ref"])
        with pytest.raises(TimeoutError):
            payment.wait(timeout=0)
        notice(shop, *api.pays(payment.document()["provider_ref"]), key=gateway)
        assert payment.wait(timeout=5).state == "paid"
    assert fabric.payment(asked[1].id).buys == asked[1].buys
    assert shop.port.gate.state.subscriptions[0].is_renewed
    for wrong in ({}, {"tokens": "1", "bundle": "edge"}):
        with pytest.raises(InvalidRequest):
            fabric.pay(**wrong)


def test_nobody_sees_or_moves_anothers_payments(shop):
    payment = document(shop.client(), asks())["payment"]["payment_id"]
    globex, root = shop.client(shop.globex), shop.client(shop.root)
    with pytest.raises(NotFound):
        document(globex, pb.GetPaymentRequest(payment_id=payment))
    assert document(globex, pb.ListPaymentsRequest())["payments"] == []
    assert len(document(root, pb.ListPaymentsRequest())["payments"]) == 1
    for request, reply in (
        (pb.BookPaymentRequest(payment_id=payment, payment_ref="X", amount_microcny=1), pb.Accepted),
        (pb.RefundPaymentRequest(request_id="x", payment_id=payment, reason="x"), pb.Accepted),
        (pb.ListSuspenseRequest(), pb.Document),
        (pb.SettleSuspenseRequest(request_id="x", suspense_id="x", how="kept", reason="x"), pb.Accepted),
        (pb.ReconcilePaymentsRequest(from_us=0, until_us=1), pb.Accepted),
        (pb.PaymentNoticeRequest(provider="stripe"), pb.PaymentNoticeReply),
    ):
        with pytest.raises(PermissionDenied):
            globex.call(request, reply)
    read = shop.client(shop.key("acme", "reader", scopes=(KeyScope.READ,)))
    with pytest.raises(PermissionDenied):
        read.call(asks("r9"), pb.Document)


def test_what_was_asked_of_the_operator_is_booked_and_refunded(shop):
    payment = document(shop.client(), asks(provider="operator"))["payment"]
    root = shop.client(shop.root)
    book = {"payment_id": payment["payment_id"], "payment_ref": "INV-1"}
    with pytest.raises(FabricError) as caught:
        root.call(pb.BookPaymentRequest(amount_microcny=1, **book), pb.Accepted)
    assert caught.value.code == "other_amount"
    root.call(pb.BookPaymentRequest(amount_microcny=payment["price_microcny"], **book), pb.Accepted)
    answer = root.call(
        pb.RefundPaymentRequest(request_id="x", payment_id=payment["payment_id"], reason="twice"), pb.Accepted
    )
    assert json.loads(answer.facts_json)["amount_uhs"] == 2 * CT
    with pytest.raises(Conflict):
        root.call(
            pb.RefundPaymentRequest(request_id="y", payment_id=payment["payment_id"], reason="twice"), pb.Accepted
        )


def test_what_is_owed_for_a_charge_back_is_shown_apart_from_debt(house, run):
    """And pays first what is bought next."""
    run("topup", "2", "--pay")
    (payment,) = house.port.gate.state.till.payments.values()
    said = Said(
        provider="sandbox", payment_id=payment.payment_id, provider_ref="x", state=PaymentState.PAID,
        amount=payment.price_microcny, charged_back=payment.price_microcny,
    )  # fmt: skip
    lot = house.port.gate.state.book.lots[payment.lot_id]
    house.port.seed(VoidLot(account_id="acme", lot_id=next(iter(house.port.gate.state.book.lots)), reason="none left"))
    hold = Authorize(
        hold_id="h", account_id="acme", amount_uhs=CT, use=Use(service=Service.INFERENCE), ttl_us=60 * 10**6
    )
    house.port.seed(hold, SettleHold(hold_id="h", account_id="acme", seq=1, used_uhs=CT), PaymentTold(said=said))
    assert lot.frozen_uhs == CT
    balance = house.client().call(pb.BalanceRequest(), pb.BalanceReply)
    assert (balance.free_uhs, balance.debt_uhs, balance.charged_back_uhs) == (0, 0, CT)
    assert "and 1 CT for what was charged back" in " ".join(run("balance").output.split())
    run("topup", "3")
    balance = house.client().call(pb.BalanceRequest(), pb.BalanceReply)
    assert (balance.free_uhs, balance.charged_back_uhs) == (2 * CT, 0)


def test_a_notice_has_a_bound(shop):
    with pytest.raises(FabricError) as caught:
        notice(shop, {}, b"x" * 70_000)
    assert caught.value.code == "too_large"


def test_commands_pay_show_and_top_up_by_themselves(run, house):
    paid = run("topup", "2", "--pay")
    assert "2 tokens bought for 1.00 CNY" in paid.output
    assert "bought for" in run("bundle", "edge", "--pay").output
    assert "a cycle of monthly bought for" in run("subscribe", "monthly", "--pay").output
    assert "paid" in run("payments").output
    assert "tops up" in run("auto-topup", "10", "--below", "1", "--month-max", "20").output
    assert json.loads(run("payments", "--json").output)["payments"][0]["state"] == "paid"
    assert "no suspense" in run("ops", "payments", "suspense", key=house.root).output
    run("auto-topup", "0")
    assert msgspec.to_builtins(house.port.gate.state.till.auto["acme"])["on"] is False
