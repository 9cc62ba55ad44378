"""Statements: what happened to one account, from nothing but the journal's entries.

A pure function over entries in order. What it adds up must explain the difference between opening and closing, transfer
by transfer; that is asserted each time, because a bill that doesn't add up must never be shown.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from fabric.audit.records import Balances, Line, Statement
from fabric.charging.records import Cdr
from fabric.ledger.transfers import CNY, CT, Transfer


class Booked(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a leaf that is about amounts: decodes from its bytes directly."""

    seq: int
    at_us: int
    transfers: tuple[Transfer, ...] = ()
    records: tuple[Cdr, ...] = ()


class Enclosed(msgspec.Struct, frozen=True, kw_only=True):
    """A tree head at one end of a period."""

    size: int
    root: bytes


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

    def enclosed(self, first: Enclosed, last: Enclosed) -> Statement:
        """The statement, between the two tree heads that lie around its entries."""
        return Statement(
            account_id=self.account_id,
            from_us=self.from_us,
            until_us=self.until_us,
            opening=self.opening,
            closing=self.closing,
            lines=self.lines,
            from_size=first.size,
            from_root=first.root.hex(),
            until_size=last.size,
            until_root=last.root.hex(),
            records=self.records,
        )


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


def moves_of(transfers: Iterable[Transfer], account_id: str, *, seq: int) -> Iterator[tuple[Line, Balances]]:
    """The account's side of each transfer of entry `seq` that touches it, with what each of its balances changed by."""
    for transfer in transfers:
        legs = _legs(transfer, account_id)
        charged = _charged(transfer, account_id)
        lost, paid = _written_off(transfer, account_id), _paid(transfer, account_id)
        if not (legs or charged or lost or paid):
            continue
        moved = Balances(free_uhs=legs.get("available", 0), held_uhs=legs.get("held", 0), debt_uhs=-legs.get("debt", 0))
        line = Line(
            at_us=transfer.at_us,
            kind=transfer.kind,
            ref=transfer.ref,
            amount_uhs=_worth(moved),
            held_uhs=moved.held_uhs,
            cny_microcny=charged,
            paid_microcny=paid,
            transfer_id=transfer.transfer_id,
            seq=seq,
            written_off_uhs=lost,
            flags=transfer.flags,
        )
        yield line, moved


def _legs(transfer: Transfer, account_id: str) -> dict[str, int]:
    """Token postings into the customer's own accounts, by their last name."""
    legs: dict[str, int] = {}
    prefix = f"cust/{account_id}/"
    for posting in transfer.postings:
        if posting.asset == CT and posting.account.startswith(prefix):
            name = posting.account[len(prefix) :]
            legs[name] = legs.get(name, 0) + posting.amount
    return legs


def _charged(transfer: Transfer, account_id: str) -> int:
    """Money that came in from the customer, or that it owes from now on. Paying an invoice moves one into the other: 0."""
    if transfer.account_id != account_id:
        return 0
    return sum(
        posting.amount
        for posting in transfer.postings
        if posting.asset == CNY and posting.account.startswith(("cash/", "receivable/"))
    )


def _written_off(transfer: Transfer, account_id: str) -> int:
    """What the account used and the operator bore."""
    mine = transfer.kind == "write_off" and transfer.account_id == account_id
    return sum(posting.amount for posting in transfer.postings if posting.amount > 0) if mine else 0


def _paid(transfer: Transfer, account_id: str) -> int:
    """Money that came in for invoices."""
    mine = transfer.kind == "payment" and transfer.account_id == account_id
    return sum(leg.amount for leg in transfer.postings if leg.amount > 0) if mine else 0


def after(standing: Balances, moved: Balances) -> Balances:
    """Where an account stands after a change of its balances."""
    return Balances(
        free_uhs=standing.free_uhs + moved.free_uhs,
        held_uhs=standing.held_uhs + moved.held_uhs,
        debt_uhs=standing.debt_uhs + moved.debt_uhs,
    )


def _worth(balances: Balances) -> int:
    return balances.free_uhs + balances.held_uhs - balances.debt_uhs


def assert_explained(opening: Balances, closing: Balances, lines: Sequence[Line]) -> None:
    """Assert that the lines lead from one to the other."""
    amount = sum(line.amount_uhs for line in lines)
    held = sum(line.held_uhs for line in lines)
    assert _worth(opening) + amount == _worth(closing), (
        f"the lines add {amount} µHs to {opening}, which gives {closing}"
    )
    assert opening.held_uhs + held == closing.held_uhs, f"the lines hold {held} µHs, from {opening} to {closing}"
