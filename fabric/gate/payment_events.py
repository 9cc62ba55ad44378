"""Events of payments that a provider takes: what is asked for, what the provider says became of it, and what goes back.

A payment has an id of ours, which its provider is given and says again. What a provider says is in totals (paid, refunded,
charged back, so far), so that nothing depends on the order in which it is heard, or on how often. Amounts of money are
millionths of their currency.
"""

from enum import StrEnum

import msgspec

from fabric.gate.event import Event
from fabric.units import AccountId

CNY = "CNY"


class PaymentState(StrEnum):
    """Where a payment stands."""

    ASKED = "asked"
    """The customer wants to pay; its provider has not been told, or nobody knows that it was."""
    PENDING = "pending"
    """The provider waits for the customer."""
    PAID = "paid"
    DECLINED = "declined"
    EXPIRED = "expired"
    REFUNDED = "refunded"
    """All of it, or a part."""
    CHARGED_BACK = "charged_back"


UNPAID = frozenset({PaymentState.ASKED, PaymentState.PENDING, PaymentState.DECLINED, PaymentState.EXPIRED})
OPEN = frozenset({PaymentState.ASKED, PaymentState.PENDING})


class AskPayment(Event, frozen=True, kw_only=True, tag="ask_payment"):
    """A customer wants to pay at a provider for tokens, a bundle, or the next cycle of a subscription, with which it begins if it
    doesn't run: the price is that of now, and stays that.
    """

    payment_id: str
    """Unique for ever, and never guessed: chosen where it is asked."""
    account_id: AccountId
    provider: str
    amount_uhs: int
    """Of a top-up; 0 where something else is bought:"""
    bundle: str = ""
    subscription: str = ""
    """One of the two."""
    valid_us: int = 86_400_000_000
    """How long the provider is to take it."""
    request_id: str = ""


class PaymentStarted(Event, frozen=True, kw_only=True, tag="payment_started"):
    """Its provider waits for the customer."""

    payment_id: str
    provider_ref: str
    """What it is called there."""


class Said(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a provider says about one payment, in totals so far. It has been verified; nothing of it is a customer's word."""

    provider: str
    payment_id: str
    """Ours, as it was told; "" = it knows none."""
    provider_ref: str
    state: PaymentState
    """pending | paid | declined | expired"""
    amount: int = 0
    """Paid, in 10⁻⁶ of the currency."""
    currency: str = CNY
    refunded: int = 0
    charged_back: int = 0
    reinstated: int = 0
    """What came again of what was charged back."""
    why: str = ""


class PaymentTold(Event, frozen=True, kw_only=True, tag="payment_told"):
    """A provider has said something. Said again it changes nothing."""

    said: Said


class RefundPayment(Event, frozen=True, kw_only=True, tag="refund_payment"):
    """Take back what is unused of what a payment bought; its price goes to where it came from."""

    payment_id: str
    account_id: AccountId
    amount_uhs: int | None = None
    """None = all that is unused."""
    reason: str = ""
    request_id: str = ""


class SettleSuspense(Event, frozen=True, kw_only=True, tag="settle_suspense"):
    """What becomes of money that could not be booked."""

    suspense_id: str
    how: str
    """returned (it went to where it came from) | kept (it is the operator's) | booked (tokens for an account) | invoices (pays an account's)
    """
    reason: str
    account_id: AccountId = AccountId("")
    """Whose tokens it buys, at the price of the account's plan, or whose invoices it pays."""
    request_id: str = ""


class SetAutoTopUp(Event, frozen=True, kw_only=True, tag="set_auto_top_up"):
    """An account tops itself up from now on, or no more."""

    account_id: AccountId
    on: bool = True
    threshold_uhs: int | None = None
    """Below so many tokens that can be spent; None = by the runway."""
    runway_us: int | None = None
    """When what is there lasts less long than that, at the burn of now."""
    amount_uhs: int = 0
    month_max_uhs: int = 0
    """The most that it buys by itself in a month of UTC."""
    request_id: str = ""


class ReconcilePayments(Event, frozen=True, kw_only=True, tag="reconcile_payments"):
    """A provider's own list of what it took, against what is booked here as paid within that time. The list may be of longer."""

    provider: str
    from_us: int
    until_us: int
    listed: tuple[Said, ...]


AnyPaymentEvent = (
    AskPayment | PaymentStarted | PaymentTold | RefundPayment | SettleSuspense | SetAutoTopUp | ReconcilePayments
)
