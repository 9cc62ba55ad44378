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
        legs, packages = _legs(transfer, account_id)
        charged = _charged(transfer, account_id)
        lost, paid = _written_off(transfer, account_id), _paid(transfer, account_id)
        if not (legs or packages or charged or lost or paid):
            continue
        moved = Balances(
            free_uhs=legs.get("available", 0),
            held_uhs=legs.get("held", 0),
            debt_uhs=-legs.get("debt", 0),
            packages=packages,
        )
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
            packages=packages,
        )
        yield line, moved


def _legs(transfer: Transfer, account_id: str) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
    """Postings into the customer's own accounts: of compute tokens by their last name, of packages free and held by asset."""
    legs: dict[str, int] = {}
    packages: dict[str, tuple[int, int]] = {}
    prefix = f"cust/{account_id}/"
    for posting in transfer.postings:
        if not posting.account.startswith(prefix):
            continue
        name, amount = posting.account[len(prefix) :], posting.amount
        if posting.asset == CT:
            legs[name] = legs.get(name, 0) + amount
        else:
            free, held = packages.get(posting.asset, (0, 0))
            packages[posting.asset] = (free, held + amount) if name == "held" else (free + amount, held)
    return legs, packages


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
        packages=_added(standing.packages, moved.packages),
    )


def _added(standing: dict[str, tuple[int, int]], moved: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Of packages what is left; those of which nothing is aren't kept."""
    if not moved:
        return standing
    found = dict(standing)
    for asset, (free, held) in moved.items():
        before = found.pop(asset, (0, 0))
        now = before[0] + free, before[1] + held
        if any(now):
            found[asset] = now
    return found


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
    packages = opening.packages
    for line in lines:
        packages = _added(packages, line.packages)
    assert packages == closing.packages, f"the lines lead from {opening} to {packages}, and not to {closing}"
