"""A statement reckoned plainly, from every entry of the account since the journal's beginning: what the fabric's are held against."""

from collections.abc import Iterable

import msgspec

from fabric.audit.records import Balances, Line
from fabric.audit.statements import after, assert_explained, moves_of
from fabric.charging.records import Cdr
from fabric.ledger.transfers import Transfer


class Booked(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a leaf that is about amounts: decodes from its bytes directly."""

    seq: int
    at_us: int
    transfers: tuple[Transfer, ...] = ()
    records: tuple[Cdr, ...] = ()


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to one account in a period, and which entries lie around it."""

    account_id: str
    from_us: int
    until_us: int | None
    opening: Balances
    closing: Balances
    lines: tuple[Line, ...]
    records: tuple[Cdr, ...]
    first_seq: int | None
    """The account's first entry in the period. None = there is none."""
    next_seq: int | None
    """The account's first entry after the period. None = there is none yet."""


def summarise(entries: Iterable[Booked], *, account_id: str, from_us: int = 0, until_us: int | None = None) -> Period:
    """What happened to the account with from_us <= at_us < until_us.

    Args:
        entries: in order, from the journal's beginning, every one that touches the account. Others do no harm.
        account_id: whose.
        from_us: µs since the epoch. An entry belongs to the period in which it was written, whatever it is about.
        until_us: None = up to now.
    """
    opening = closing = Balances()
    lines: list[Line] = []
    records: list[Cdr] = []
    first_seq = next_seq = None
    for entry in entries:
        if until_us is not None and entry.at_us >= until_us:
            next_seq = entry.seq
            break
        moves = list(moves_of(entry.transfers, account_id, seq=entry.seq))
        for _, moved in moves:
            closing = after(closing, moved)
        if entry.at_us < from_us:
            opening = closing
            continue
        first_seq = entry.seq if first_seq is None else first_seq
        lines += [line for line, _ in moves]
        records += [record for record in entry.records if record.account_id == account_id]
    assert_explained(opening, closing, lines)
    return Period(
        account_id=account_id,
        from_us=from_us,
        until_us=until_us,
        opening=opening,
        closing=closing,
        lines=tuple(lines),
        records=tuple(records),
        first_seq=first_seq,
        next_seq=next_seq,
    )
