"""What the gate remembers of payments that providers take. Part of its state: `fabric.gate.state`."""

from dataclasses import dataclass, field

import msgspec

from fabric.charging.catalogue import Bundle, Subscription
from fabric.gate.payment_events import CNY, OPEN, PaymentState
from fabric.units import AccountId


class Refund(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Money that is to go back for tokens that were taken back."""

    refund_id: str
    """What its provider is asked with, as often as it takes."""
    amount_uhs: int
    amount_microcny: int
    total_microcny: int
    """With all refunds of the payment before it: done when the provider says that so much was refunded."""
    asked_at_us: int
    reason: str = ""


class Part(msgspec.Struct, kw_only=True, gc=False):
    """One more lot of a payment that bought several."""

    lot_id: str
    frozen_uhs: int = 0
    owed_uhs: int = 0


class Payment(msgspec.Struct, kw_only=True, gc=False):
    """One payment, from the wish to pay on."""

    payment_id: str
    account_id: AccountId
    provider: str
    amount_uhs: int
    price_microcny: int
    asked_at_us: int
    until_us: int
    bundle: Bundle | None = None
    """What it is for, as it was offered when it was asked; None = no bundle."""
    offer: Subscription | None = None
    """The subscription whose next cycle it is for, as it was offered then; None = none."""
    state: PaymentState = PaymentState.ASKED
    provider_ref: str = ""
    auto: bool = False
    """Whether nobody asked for it but the account's rule for topping up, or its subscription."""
    currency: str = CNY
    lot_id: str = ""
    """What it bought, or the first lot of it; "" = nothing."""
    more: list[Part] = []
    """The other lots that it bought."""
    aside: bool = False
    """Whether its money stands in suspense, so that it never buys anything any more."""
    paid_at_us: int | None = None
    refunds: tuple[Refund, ...] = ()
    refunded_microcny: int = 0
    """What has gone back, as its provider said last."""
    dropped_microcny: int = 0
    """What was to be refunded when it was charged back."""
    charged_back_microcny: int = 0
    reinstated_microcny: int = 0
    frozen_uhs: int = 0
    owed_uhs: int = 0
    """What was frozen of its first lot and owed for that for charge-backs, less what was given back."""
    told_refunded: int = 0
    told_charged_back: int = 0
    told_reinstated: int = 0
    """The most that its provider has said, whether or not it was paid by then."""
    why: str = ""

    @property
    def subscription(self) -> str:
        """Its name; "" = it is for something else."""
        return "" if self.offer is None else self.offer.name

    @property
    def parts(self) -> "list[Payment | Part]":
        """Its lots, with what became of each."""
        return [self, *self.more]

    @property
    def is_unfinished(self) -> bool:
        """Whether its provider is still to do something: start it, say what became of it, refund it."""
        return (self.state in OPEN and not self.aside) or self.refunds_due_microcny > 0

    @property
    def refunds_due_microcny(self) -> int:
        """What is to be refunded, and nobody has said that it was."""
        return max(0, self.refunds_microcny - self.dropped_microcny - self.refunded_microcny)

    @property
    def refunds_microcny(self) -> int:
        """All that was asked back of it, or went back by itself."""
        return self.refunds[-1].total_microcny if self.refunds else 0


class Suspense(msgspec.Struct, kw_only=True, gc=False):
    """Money that a provider has, or gave away, and that nothing could be booked for."""

    suspense_id: str
    provider: str
    provider_ref: str
    payment_id: str
    account_id: AccountId
    """"" = nobody knows whose it is."""
    amount: int
    """In 10⁻⁶ of the currency; below 0 = it went out. 0 where only what was said differs."""
    currency: str
    why: str
    """unknown_payment | other_amount | other_currency | other_provider | not_bookable | beyond_unused | said_otherwise |
    missing_there
    """
    at_us: int
    settled: str = ""
    """How; "" = not yet."""
    reason: str = ""


class Notice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Something that an account, or the operator, is to hear of."""

    at_us: int
    what: str
    about: str
    """The payment, or what stands in suspense."""
    text: str


class AutoTopUp(msgspec.Struct, kw_only=True, gc=False):
    """By which rule an account tops itself up, and how that goes."""

    account_id: AccountId
    threshold_uhs: int | None
    runway_us: int | None
    amount_uhs: int
    month_max_uhs: int
    on: bool = True
    month: int = 0
    """Which month is counted, as 202611."""
    month_uhs: int = 0
    """What was asked for in it, and not refused."""
    is_capped: bool = False
    """Whether its owner was told that this month has no more."""
    failures: int = 0
    """In a row."""
    not_before_us: int = 0
    payment_id: str = ""
    """What is under way; "" = nothing."""


class Reconciliation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What came of one comparison with a provider's list."""

    provider: str
    at_us: int
    from_us: int
    until_us: int
    matched: int
    missing_here: int
    missing_there: int
    different: int


@dataclass(slots=True, kw_only=True)
class Till:
    """All of it."""

    payments: dict[str, Payment] = field(default_factory=dict)
    payments_of: dict[AccountId, list[str]] = field(default_factory=dict)
    """Each account's, oldest first."""
    suspense: dict[str, Suspense] = field(default_factory=dict)
    notices: dict[AccountId, list[Notice]] = field(default_factory=dict)
    """The newest of each account's, oldest first; under "" the operator's."""
    auto: dict[AccountId, AutoTopUp] = field(default_factory=dict)
    auto_made: int = 0
    """Payments that were asked for by these rules."""
    reconciled: list[Reconciliation] = field(default_factory=list)
    """The newest, oldest first."""
