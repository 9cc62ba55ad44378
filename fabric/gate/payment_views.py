"""Payments, money in suspense and notices, as they are shown: plain frozen records."""

import msgspec


class RefundView(msgspec.Struct, frozen=True, kw_only=True):
    """What goes back of a payment, in one part."""

    refund_id: str
    amount_uhs: int
    amount_microcny: int
    is_done: bool
    """Whether its provider has said that it went back."""
    asked_at_us: int
    reason: str


class PaymentView(msgspec.Struct, frozen=True, kw_only=True):
    """A payment that a provider takes."""

    payment_id: str
    account_id: str
    provider: str
    provider_ref: str
    """What it is called there; "" = it was not started yet."""
    state: str
    """asked | pending | paid | declined | expired | refunded | charged_back"""
    aside: bool
    """Whether its money stands in suspense, because it could not be booked."""
    auto: bool
    amount_uhs: int
    price_microcny: int
    currency: str
    asked_at_us: int
    until_us: int
    paid_at_us: int | None
    lot_id: str
    refunded_microcny: int
    charged_back_microcny: int
    refunds_due_microcny: int
    """What is to be paid back and isn't yet."""
    refunds: tuple[RefundView, ...] = ()
    why: str = ""
    buys: str = ""
    """In words."""
    bundle: str = ""
    subscription: str = ""


class SuspenseView(msgspec.Struct, frozen=True, kw_only=True):
    """Money that could not be booked."""

    suspense_id: str
    provider: str
    provider_ref: str
    payment_id: str
    account_id: str
    amount: int
    """In 10⁻⁶ of the currency; below 0 = it went out."""
    currency: str
    why: str
    at_us: int
    settled: str
    reason: str


class NoticeView(msgspec.Struct, frozen=True, kw_only=True):
    """Something that an account, or the operator, is to hear of."""

    at_us: int
    what: str
    about: str
    text: str
