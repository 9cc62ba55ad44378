"""Lots: tokens with an origin, a price, a life and a scope, and the order in which they burn.

A lot knows nothing of holds but how much of it is held. The burn order is OpenMeter's and Stripe's (priority, soonest
expiry, promotional first), made total: narrower scope, cheaper, older, id.
"""

from enum import StrEnum

import msgspec

from fabric.ledger.scopes import ANYTHING, Scope, Use
from fabric.units import INT64_MAX, UHS_PER_CT


class Origin(StrEnum):
    """Where a lot's tokens came from."""

    TOP_UP = "top_up"
    BUNDLE = "bundle"
    SUBSCRIPTION = "subscription"
    PROMOTION = "promotion"
    TRANSFER = "transfer"
    REFUND = "refund"
    EXCHANGE = "exchange"


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a lot is granted under."""

    origin: Origin
    tier: str
    priority: int = 0
    """Lower burns first, before anything else is looked at: how a seller overrides the order."""
    scope: Scope = ANYTHING
    effective_at_us: int
    expires_at_us: int | None
    """The first moment at which the lot is worth nothing. None = never."""
    price_microcny: int = 0
    """What was paid for all of it."""
    parent_lots: tuple[str, ...] = ()
    """The lots whose value it carries on (rollover, transfer)."""
    channel: str = ""
    """Where the money came in: a cash channel, "receivable" for on account, "" for no money at all."""


BurnKey = tuple[int, int, bool, int, int, int, str]


class Lot(msgspec.Struct, kw_only=True):
    """Tokens of one account: granted = free + held + captured + expired + voided + frozen, always."""

    lot_id: str
    account_id: str
    terms: Terms
    granted_at_us: int
    granted_uhs: int
    effective_at_us: int
    expires_at_us: int | None
    restricted: bool
    """Whether the scope restricts anything: spares most lots the look at it."""
    free_uhs: int = 0
    held_uhs: int = 0
    captured_uhs: int = 0
    expired_uhs: int = 0
    voided_uhs: int = 0
    """Taken back before it was used, because it had been booked by mistake or was refunded."""
    frozen_uhs: int = 0
    """Unused when its payment was charged back: out of the account's reach, and given back if that is undone."""
    charged_back: bool = False
    """Whether its payment was charged back, so that what comes free of it pays what is owed for that."""

    @property
    def burn_key(self) -> BurnKey:
        """Sorts lots into the order in which they burn. "Cheaper" goes by whole 10⁻⁶ CNY a token."""
        terms = self.terms
        return (
            terms.priority,
            INT64_MAX if self.expires_at_us is None else self.expires_at_us,
            terms.origin is not Origin.PROMOTION,
            -terms.scope.narrowness,
            terms.price_microcny * UHS_PER_CT // self.granted_uhs,
            self.granted_at_us,
            self.lot_id,
        )

    def alive(self, now_us: int) -> bool:
        """Whether it has not expired: at its very expiry it has."""
        return self.expires_at_us is None or now_us < self.expires_at_us

    def spendable(self, now_us: int, use: Use | None) -> bool:
        """Whether a new hold for `use` may take from it now; None asks for no use in particular."""
        return (
            self.effective_at_us <= now_us
            and (self.expires_at_us is None or now_us < self.expires_at_us)
            and (use is None or not self.restricted or self.terms.scope.admits(use))
        )


def new_lot(account_id: str, *, lot_id: str, amount_uhs: int, terms: Terms, now_us: int) -> Lot:
    """A lot with everything free."""
    return Lot(
        lot_id=lot_id,
        account_id=account_id,
        terms=terms,
        granted_at_us=now_us,
        granted_uhs=amount_uhs,
        effective_at_us=terms.effective_at_us,
        expires_at_us=terms.expires_at_us,
        restricted=terms.scope.narrowness > 0,
        free_uhs=amount_uhs,
    )
