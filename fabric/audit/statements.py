"""Statements: the lines of one account's, from nothing but the transfers in the journal's entries.

Pure. Lines must explain the difference between opening and closing, transfer by transfer; that is asserted each time, because
a bill that doesn't add up must never be shown.
"""

from collections.abc import Iterable, Iterator, Sequence

from fabric.audit.records import Balances, Line
from fabric.ledger.transfers import CNY, CT, Transfer


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
