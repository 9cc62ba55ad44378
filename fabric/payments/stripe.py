"""Stripe: Checkout for what a customer pays, signed webhooks, refunds, disputes, through its official library.

A payment's id is `client_reference_id` and metadata of what Stripe makes for it, and the key that makes asking again the
same request. What Stripe calls it is its Checkout session, or the payment intent where a saved card was charged.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import stripe
from stripe import SignatureVerificationError

from fabric.errors import Unavailable
from fabric.gate.payment_events import PaymentState, Said
from fabric.gate.payment_views import PaymentView, RefundView
from fabric.payments.port import SOON_US, TIMEOUT_S, Forged, Started, fen_of

T = TypeVar("T")

NAME: Final = "stripe"
_API: Final = "https://api.stripe.com"
_WHOLE: Final = frozenset(
    ["BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"]
)
"""Currencies that Stripe counts in whole units, and those in thousandths; all others it counts in hundredths."""
_THOUSANDTHS: Final = frozenset(["BHD", "JOD", "KWD", "OMR", "TND"])
_SESSION_S: Final = (1_860, 82_800)
"""A Checkout session lives 30 minutes at least and 24 hours at most, as Stripe counts: a little within."""
_SESSIONS: Final = frozenset(
    f"checkout.session.{what}" for what in ("completed", "async_payment_succeeded", "async_payment_failed", "expired")
)
_PAID: Final = ("paid", "no_payment_required")
_REINSTATED: Final = ("won", "warning_closed", "prevented")
_NO_FUNDS_MOVED: Final = ("warning_needs_response", "warning_under_review", "warning_closed")


class Stripe:
    """One account there. Its library blocks, so each call of it has a thread."""

    name = NAME
    thanks = b"{}"
    listed_after_us = SOON_US

    def __init__(
        self,
        *,
        api_key: str,
        webhook_secret: str,
        return_url: str,
        save_cards: bool = False,
        api: str = _API,
    ) -> None:
        """Say whose account it is.

        Args:
            api_key: secret, or restricted to Checkout, payment intents, refunds and disputes.
            webhook_secret: of the endpoint that Stripe sends its notices to.
            return_url: where a customer comes back to.
            save_cards: keep cards for top-ups that nobody is there for.
            api: where its API is.
        """
        self._client = stripe.StripeClient(
            api_key,
            base_addresses={"api": api},
            http_client=stripe.RequestsClient(timeout=TIMEOUT_S),
            max_network_retries=1,
        )
        self._secret = webhook_secret
        self._return_url = return_url
        self._save_cards = save_cards

    async def start(self, payment: PaymentView, *, before: PaymentView | None) -> Started:
        if payment.provider_ref.startswith("cs_"):
            session = await self._ask(lambda v1: v1.checkout.sessions.retrieve(payment.provider_ref))
            return Started(session.id, session.url or "")
        if payment.auto and self._save_cards and before is not None:
            charged = await self._charge_saved(payment, before)
            if charged is not None:
                return charged
        session = await self._ask(
            lambda v1: v1.checkout.sessions.create(self._session(payment), _once(payment.payment_id))
        )
        return Started(session.id, session.url or "")

    async def confirm(self, payment: PaymentView) -> Said | None:
        if payment.provider_ref.startswith("pi_"):
            return await self._totals(payment.provider_ref)
        if not payment.provider_ref.startswith("cs_"):
            return None
        session = await self._ask(lambda v1: v1.checkout.sessions.retrieve(payment.provider_ref))
        said = _of_session(session)
        if said is not None and said.state is PaymentState.PAID and session.payment_intent:
            return await self._totals(_id(session.payment_intent), ref=session.id)
        return said

    async def refund(self, payment: PaymentView, refund: RefundView) -> Said | None:
        intent = await self._intent_of(payment)
        params = {
            "payment_intent": intent,
            "amount": fen_of(refund.amount_microcny),
            "metadata": {"refund_id": refund.refund_id, "payment_id": payment.payment_id},
        }
        try:
            await self._ask(lambda v1: v1.refunds.create(params, _once(refund.refund_id)))
        except stripe.InvalidRequestError as error:
            if error.code != "charge_already_refunded":
                raise _refused(error) from None
        return await self._totals(intent, ref=payment.provider_ref)

    async def list(self, from_us: int, until_us: int) -> tuple[Said, ...]:
        def listed(v1: Any) -> list[Any]:
            created = {"gte": from_us // 1_000_000, "lte": until_us // 1_000_000}
            expand = ["data.latest_charge"]
            page = v1.payment_intents.list({"created": created, "limit": 100, "expand": expand})
            return [intent for intent in page.auto_paging_iter() if intent.status == "succeeded"]

        intents = await self._ask(listed)
        return tuple([await self._said_of(intent) for intent in intents])

    async def hear(self, headers: Mapping[str, str], body: bytes) -> tuple[Said, ...]:
        try:
            event: Any = stripe.Webhook.construct_event(body, headers.get("stripe-signature", ""), self._secret)
        except (SignatureVerificationError, ValueError):
            raise Forged("this notice is not signed by Stripe", code="forged_notice") from None
        found = event.data.object
        if event.type in _SESSIONS:
            said = _of_session(found, event.type)
            return () if said is None else (said,)
        if event.type.startswith(("charge.refund", "charge.dispute.", "refund.")):
            intent = _id(getattr(found, "payment_intent", None))
            return (await self._totals(intent),) if intent else ()
        if event.type in ("payment_intent.succeeded", "payment_intent.payment_failed"):
            # Of a session's own attempts the session tells: a card that was declined may be followed by another.
            own = _metadata(found)
            return (await self._totals(found.id),) if own.get("saved_card") else ()
        return ()

    # -- what Stripe has -------------------------------------------------------------------------------------------------

    def _session(self, payment: PaymentView) -> Any:
        least_s, most_s = _SESSION_S
        asked_s, until_s = payment.asked_at_us // 1_000_000, payment.until_us // 1_000_000
        mine = {"payment_id": payment.payment_id}
        params: dict[str, Any] = {
            "mode": "payment",
            "client_reference_id": payment.payment_id,
            "metadata": mine,
            "payment_intent_data": {"metadata": mine},
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": payment.currency.lower(),
                        "unit_amount": fen_of(payment.price_microcny),
                        "product_data": {"name": payment.buys},
                    },
                }
            ],
            "success_url": self._return_url,
            "cancel_url": self._return_url,
            "expires_at": asked_s + min(max(until_s - asked_s, least_s), most_s),
        }
        if self._save_cards:
            params["customer_creation"] = "always"
            params["payment_intent_data"]["setup_future_usage"] = "off_session"
        return params

    async def _charge_saved(self, payment: PaymentView, before: PaymentView) -> Started | None:
        """Charge the card that paid before; None where none was kept."""
        intent: Any
        if before.provider_ref.startswith("pi_"):
            intent = await self._ask(lambda v1: v1.payment_intents.retrieve(before.provider_ref))
        else:
            paid = {"expand": ["payment_intent"]}
            session = await self._ask(lambda v1: v1.checkout.sessions.retrieve(before.provider_ref, paid))
            intent = session.payment_intent
        if intent is None or not intent.customer or not intent.payment_method:
            return None
        params = {
            "amount": fen_of(payment.price_microcny),
            "currency": payment.currency.lower(),
            "customer": _id(intent.customer),
            "payment_method": _id(intent.payment_method),
            "off_session": True,
            "confirm": True,
            "metadata": {"payment_id": payment.payment_id, "saved_card": "1"},
        }
        try:
            made = await self._ask(lambda v1: v1.payment_intents.create(params, _once(payment.payment_id)))
        except stripe.CardError as error:
            ref = getattr(getattr(error.error, "payment_intent", None), "id", "") or payment.payment_id
            said = _said(payment.payment_id, ref, PaymentState.DECLINED, why=error.code or "card_declined")
            return Started(ref, "", said)
        return Started(made.id, "", await self._totals(made.id))

    async def _intent_of(self, payment: PaymentView) -> str:
        if payment.provider_ref.startswith("pi_"):
            return payment.provider_ref
        session = await self._ask(lambda v1: v1.checkout.sessions.retrieve(payment.provider_ref))
        return _id(session.payment_intent)

    async def _totals(self, intent_id: str, *, ref: str = "") -> Said:
        """All that is known of what was paid by an intent."""
        intent = await self._ask(lambda v1: v1.payment_intents.retrieve(intent_id, {"expand": ["latest_charge"]}))
        return await self._said_of(intent, ref=ref)

    async def _said_of(self, intent: Any, *, ref: str = "") -> Said:
        charge, currency = intent.latest_charge, intent.currency.upper()
        gone = again = 0
        if charge is not None and charge.disputed:
            found = await self._ask(lambda v1: list(v1.disputes.list({"payment_intent": intent.id}).auto_paging_iter()))
            moved = [each for each in found if each.status not in _NO_FUNDS_MOVED]
            gone = sum(_micro(each.amount, currency) for each in moved)
            again = sum(_micro(each.amount, currency) for each in moved if each.status in _REINSTATED)
        payment_id = _metadata(intent).get("payment_id", "")
        if intent.status == "succeeded":
            return _said(
                payment_id,
                ref or intent.id,
                PaymentState.PAID,
                amount=_micro(intent.amount_received, currency),
                currency=currency,
                refunded=_micro(charge.amount_refunded if charge is not None else 0, currency),
                charged_back=gone,
                reinstated=again,
            )
        if _metadata(intent).get("saved_card") and intent.status in (
            "requires_payment_method",
            "requires_action",
            "canceled",
        ):
            return _said(payment_id, intent.id, PaymentState.DECLINED, why=intent.status)
        return _said(payment_id, ref or intent.id, PaymentState.PENDING)

    async def _ask(self, call: Callable[[Any], T]) -> T:
        """Ask it on a thread, and say what went wrong in words of ours: none of its errors has a key in it.

        Raises:
            Unavailable: it didn't answer, or is busy.
        """
        try:
            return await asyncio.to_thread(call, self._client.v1)
        except (stripe.APIConnectionError, stripe.RateLimitError) as error:
            raise Unavailable(
                f"Stripe doesn't answer ({type(error).__name__}): it is asked again", code="provider_away"
            ) from None
        except stripe.APIError as error:
            raise Unavailable(f"Stripe failed ({error.http_status}): it is asked again", code="provider_away") from None
        except (stripe.AuthenticationError, stripe.PermissionError) as error:
            raise _refused(error) from None


def _once(name: str) -> Any:
    return {"idempotency_key": f"fabric-{name}"}


def _refused(error: stripe.StripeError) -> Unavailable:
    return Unavailable(
        f"Stripe refuses: {error.code or type(error).__name__}. See its dashboard", code="provider_refuses"
    )


def _of_session(session: Any, event: str = "") -> Said | None:
    """What a Checkout session says. A completed one may still wait for a bank."""
    ours = session.client_reference_id or _metadata(session).get("payment_id", "")
    currency = (session.currency or "").upper()
    if session.payment_status in _PAID:
        amount = _micro(session.amount_total or 0, currency)
        return _said(ours, session.id, PaymentState.PAID, amount=amount, currency=currency)
    if event == "checkout.session.async_payment_failed":
        return _said(ours, session.id, PaymentState.DECLINED, why="the bank refused it")
    if session.status == "expired":
        return _said(ours, session.id, PaymentState.EXPIRED)
    return None


def _said(payment_id: str, ref: str, state: PaymentState, **more: Any) -> Said:
    return Said(provider=NAME, payment_id=payment_id, provider_ref=ref, state=state, **more)


def _micro(amount: int, currency: str) -> int:
    """An amount as Stripe counts it, in millionths of the currency."""
    return amount * (1_000_000 if currency in _WHOLE else 1_000 if currency in _THOUSANDTHS else 10_000)


def _metadata(found: Any) -> Mapping[str, str]:
    return dict(found.metadata.to_dict()) if getattr(found, "metadata", None) else {}


def _id(found: Any) -> str:
    """Of what is named, or there as a whole."""
    return found if isinstance(found, str) else getattr(found, "id", "")
