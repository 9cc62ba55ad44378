"""Calls about payments that providers take: asked for, seen, booked by hand, refunded, reconciled; and providers' notices."""

import hashlib
from typing import Any

import msgspec

from fabric.api.keys import Caller
from fabric.api.messages import accepted, amount, at_least, facts_json, reference, request_id, short
from fabric.api.service import ApiService
from fabric.errors import InvalidRequest
from fabric.gate.payment_events import (
    AskPayment,
    PaymentState,
    PaymentTold,
    RefundPayment,
    Said,
    SetAutoTopUp,
    SettleSuspense,
)
from fabric.gate.payment_views import PaymentView
from fabric.gate.payments import OPERATOR
from fabric.gate.questions import NoticesOf, PaymentsOf, SuspenseOf
from fabric.payments.port import NOTICE_BYTES_MAX
from fabric.units import AccountId
from fabric.wire import fabric_pb2 as pb

SHOWN_MAX = 1_000
HEADERS_MAX = 16


async def ask_payment(door: ApiService, caller: Caller, request: pb.AskPaymentRequest) -> pb.Document:
    """Asked again with the same request id, it is the same payment, at the same place."""
    named = request_id(request.request_id)
    bundle, subscription = short("bundle", request.bundle), short("subscription", request.subscription)
    if sum(map(bool, (request.amount_uhs, bundle, subscription))) > 1:
        raise InvalidRequest("pay for tokens, a bundle or a subscription: for one of them", code="invalid_payment")
    made = hashlib.sha256(f"{caller.account}/{named}".encode()).hexdigest()
    event = AskPayment(
        payment_id=f"pay-{made[:24]}",
        account_id=caller.account,
        provider=short("provider", request.provider) or door.desk.chosen,
        amount_uhs=0 if bundle or subscription else amount("amount_uhs", request.amount_uhs),
        bundle=bundle,
        subscription=subscription,
        request_id=named,
    )
    return _shown(*await door.desk.pay(event))


async def get_payment(door: ApiService, caller: Caller, request: pb.GetPaymentRequest) -> pb.Document:
    return _shown(*await door.desk.link(caller.scope, short("payment_id", request.payment_id)))


async def list_payments(door: ApiService, caller: Caller, request: pb.ListPaymentsRequest) -> pb.Document:
    """An account's, and what it is to hear of; an operator that acts for nobody sees everybody's, and its own notices."""
    limit = min(request.limit or SHOWN_MAX, SHOWN_MAX)
    found: Any = await door.port.ask(PaymentsOf(account_id=caller.scope, limit=limit))
    heard: Any = await door.port.ask(NoticesOf(account_id=caller.scope or AccountId("")))
    return pb.Document(json=msgspec.json.encode({"payments": found, "notices": heard}))


async def set_auto_top_up(door: ApiService, caller: Caller, request: pb.SetAutoTopUpRequest) -> pb.Accepted:
    event = SetAutoTopUp(
        account_id=caller.account,
        on=request.on,
        threshold_uhs=request.threshold_uhs if request.HasField("threshold_uhs") else None,
        runway_us=request.runway_us if request.HasField("runway_us") else None,
        amount_uhs=request.amount_uhs,
        month_max_uhs=request.month_max_uhs,
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def book_payment(door: ApiService, _: Caller, request: pb.BookPaymentRequest) -> pb.Accepted:
    """What a customer asked the operator for has come in."""
    said = Said(
        provider=OPERATOR,
        payment_id=short("payment_id", request.payment_id),
        provider_ref=reference("payment_ref", request.payment_ref),
        state=PaymentState.PAID,
        amount=at_least(1, "amount_microcny", request.amount_microcny),
    )
    return accepted(await door.gate.decide(PaymentTold(said=said)))


async def refund_payment(door: ApiService, _: Caller, request: pb.RefundPaymentRequest) -> pb.Accepted:
    """Take back what is unused; its price is paid back by the provider, a moment later."""
    payment = await door.desk.payment(None, short("payment_id", request.payment_id))
    event = RefundPayment(
        payment_id=payment.payment_id,
        account_id=AccountId(payment.account_id),
        amount_uhs=amount("amount_uhs", request.amount_uhs) if request.HasField("amount_uhs") else None,
        reason=short("reason", request.reason),
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def list_suspense(door: ApiService, _: Caller, request: pb.ListSuspenseRequest) -> pb.Document:
    return pb.Document(json=msgspec.json.encode(await door.port.ask(SuspenseOf(settled=request.settled))))


async def settle_suspense(door: ApiService, _: Caller, request: pb.SettleSuspenseRequest) -> pb.Accepted:
    event = SettleSuspense(
        suspense_id=short("suspense_id", request.suspense_id),
        how=short("how", request.how),
        reason=short("reason", request.reason),
        account_id=AccountId(short("account_id", request.account_id)),
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def reconcile_payments(door: ApiService, _: Caller, request: pb.ReconcilePaymentsRequest) -> pb.Accepted:
    """Against the provider's own list; what was found."""
    if not 0 <= request.from_us < request.until_us:
        raise InvalidRequest("a time to reconcile begins before it ends", code="invalid_time")
    found = await door.desk.reconcile(request.from_us, request.until_us)
    return pb.Accepted(facts_json=facts_json({**found}))


async def payment_notice(door: ApiService, _: Caller, request: pb.PaymentNoticeRequest) -> pb.PaymentNoticeReply:
    """What came in at a gateway, from anybody: believed only where its provider has signed it."""
    if len(request.body) > NOTICE_BYTES_MAX or len(request.headers) > HEADERS_MAX:
        raise InvalidRequest(f"a notice has at most {NOTICE_BYTES_MAX} bytes", code="too_large")
    answer = await door.desk.hear(request.provider, dict(request.headers), request.body)
    return pb.PaymentNoticeReply(answer=answer)


def _shown(payment: PaymentView, url: str) -> pb.Document:
    return pb.Document(json=msgspec.json.encode({"payment": payment, "url": url}))
