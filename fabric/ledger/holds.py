"""Holds: tokens set aside for something that is about to happen, lot by lot in the order they will burn.

A hold is opened once and ends once. What it has captured stays written beside what it still holds, so that a refund can
unwind it exactly.
"""

from enum import StrEnum

import msgspec

from fabric.ledger.outcomes import Answer
from fabric.ledger.scopes import Use


class HoldState(StrEnum):
    OPEN = "open"
    LAPSED = "lapsed"
    """Its validity is over and its client has said nothing: what it holds stays set aside for its report."""
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"
    """It lapsed and nobody reported in time: what it held is free again."""


class Piece(msgspec.Struct, array_like=True, gc=False):
    """What one hold has of one lot. Pieces are captured first to last and refunded last to first."""

    lot_id: str
    """"" = on credit."""
    held_uhs: int
    captured_uhs: int = 0
    good_until_us: int | None = None
    """Set once its lot has expired and the hold was renewed since: it stays good no longer than it would have without."""


def piece_of(pieces: list[Piece], lot_id: str) -> Piece:
    """The last piece if it is of this lot, else a new last one: earlier ones keep their place in the order."""
    if not pieces or pieces[-1].lot_id != lot_id:
        pieces.append(Piece(lot_id, 0))
    return pieces[-1]


class Hold(msgspec.Struct, kw_only=True, gc=False):
    """One hold. Once it has ended its pieces are gone and only what is needed to answer late words remains."""

    hold_id: str
    account_id: str
    use: Use
    opened_at_us: int
    expires_at_us: int | None
    """When it lapses by itself. None = never: a job ends it."""
    settle_by_us: int | None = None
    """Once it has lapsed: when its settlement window ends, and with it what is set aside."""
    pieces: list[Piece]
    held_uhs: int
    captured_uhs: int = 0
    seq: int = 0
    """The last client word that was heard; 0 is the authorisation itself."""
    answer: Answer
    """What that word was answered."""
    state: HoldState = HoldState.OPEN
    ended_at_us: int | None = None
    lapsed_uhs: int = 0
    """What it still held when it expired: a late settlement is measured against it."""
    waiting: bool = False
    """Nothing runs on it yet: what it holds of a lot is good as long as the lot is."""
    stale_at_us: int | None = None
    """When a part of what it holds stops being good, and is held anew of what is."""
    key_id: str = ""
    """The API key whose limit it counts against; the ledger only remembers it."""
