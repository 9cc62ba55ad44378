"""What the book answers: a grant, a settlement, a refusal, a balance. Values, never exceptions.

A refusal is an expected no and has changed nothing. Amounts are µHs.
"""

from typing import Final

import msgspec

Fact = str | int | bool | None

INSUFFICIENT_TOKENS: Final = "insufficient_tokens"
UNKNOWN_ACCOUNT: Final = "unknown_account"
UNKNOWN_HOLD: Final = "unknown_hold"
ACCOUNT_EXISTS: Final = "account_exists"
LOT_EXISTS: Final = "lot_exists"
HOLD_EXISTS: Final = "hold_exists"
HOLD_ENDED: Final = "hold_ended"
PERIOD_CLOSED: Final = "period_closed"
STALE_SEQ: Final = "stale_seq"
INVALID_AMOUNT: Final = "invalid_amount"
INVALID_TERMS: Final = "invalid_terms"
BEYOND_INT64: Final = "beyond_int64"
IMPLAUSIBLE_USAGE: Final = "implausible_usage"


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """No, and nothing has changed. `code` is one of this module's constants."""

    code: str
    facts: dict[str, Fact] = {}


class Granted(msgspec.Struct, frozen=True, tag="granted", gc=False):
    """Yes: so much more is held."""

    granted_uhs: int
    """What this call added. For an update it may be 0: what was used is booked all the same."""
    held_uhs: int
    """What the hold holds now."""
    final: bool
    """Less was granted than asked: there is no more (the *final unit* of RFC 8506)."""
    written_off_uhs: int = 0
    """Used, and covered by nothing: the operator bears it."""


class Settled(msgspec.Struct, frozen=True, tag="settled", gc=False):
    """How a hold ended."""

    captured_uhs: int
    """Booked as used by this call."""
    released_uhs: int
    """No longer held: free again, or expired where its lot has expired meanwhile."""
    debt_uhs: int = 0
    """The part of `captured_uhs` that no lot covered: met from credit."""
    over_hold: bool = False
    """More was used than was held."""
    late: bool = False
    """The hold's validity had already ended."""
    written_off_uhs: int = 0
    """Used, and covered by nothing: the operator bears it. Not in `captured_uhs`."""


Answer = Granted | Settled | Refused


class LotBalance(msgspec.Struct, frozen=True, kw_only=True):
    """One lot that still has something in it."""

    lot_id: str
    origin: str
    tier: str
    scope: str
    granted_uhs: int
    free_uhs: int
    held_uhs: int
    effective_at_us: int
    expires_at_us: int | None
    price_microcny: int


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """An account as of a time: posted = free + held, and what is held on credit counts as held."""

    account_id: str
    posted_uhs: int
    free_uhs: int
    """In lots that are in force, whatever their scope."""
    pending_uhs: int
    """In lots that are not yet in force."""
    held_uhs: int
    credit_held_uhs: int
    """The part of `held_uhs` that no lot covers: debt when it is captured."""
    debt_uhs: int
    """Used on credit, or beyond what was held, and not yet invoiced or repaid."""
    credit_limit_uhs: int
    credit_free_uhs: int
    receivable_microcny: int
    """Invoiced and not yet paid."""
    invoiced_uhs: int = 0
    """What that was used for: it counts against the credit limit until it is paid."""
    lots: tuple[LotBalance, ...]
    """In burn order."""
