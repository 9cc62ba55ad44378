"""Whether a book is sound: everything it must satisfy at any time, recomputed the slow way."""

from collections.abc import Iterator

from fabric.ledger.holds import Hold
from fabric.ledger.state import Ledger
from fabric.ledger.vault import CREDIT


def check(book: Ledger) -> None:
    """Look at every account, lot and hold.

    Raises:
        AssertionError: naming every invariant that is broken. That is always our own mistake.
    """
    faults = [*_faults(book)]
    for asset, package in book.packages.items():
        faults += [f"{asset}: {fault}" for fault in (*_faults(package), *_package(book, package))]
    assert not faults, "the book is unsound:\n" + "\n".join(faults)


def _faults(book: Ledger) -> Iterator[str]:
    yield from _totals(book)
    yield from _lots(book)
    yield from _holds(book)
    yield from _accounts(book)
    yield from _credit(book)


def _package(book: Ledger, package: Ledger) -> Iterator[str]:
    """A package has no credit, no money and no transfers of its own; what is held of it is held with compute tokens."""
    if any(package.money_microcny.values()) or package.count or package.pending or package.packages:
        yield "money, transfers or packages are kept beside the book's"
    for name, account in package.accounts.items():
        if name not in book.accounts or account.owed_uhs or account.credit_limit_uhs or account.receivable_microcny:
            yield f"account {name} is unknown, or owes: {account}"
    for mine, theirs in ((package.holds, book.holds), (package.lapsed, book.lapsed)):
        for name, hold in mine.items():
            same = theirs.get(name)
            if same is None or (same.account_id, same.expires_at_us) != (hold.account_id, hold.expires_at_us):
                yield f"hold {name} is not the one of compute tokens: {hold}, {same}"


def _standing(book: Ledger) -> dict[str, Hold]:
    """The holds that hold something: open, or set aside for a report."""
    return book.holds | book.lapsed


def _totals(book: Ledger) -> Iterator[str]:
    tokens, money = book.tokens_uhs, book.money_microcny
    if sum(tokens.values()):
        yield f"tokens don't sum to zero: {tokens}"
    if sum(money.values()):
        yield f"money doesn't sum to zero: {money}"
    found = {
        "available": sum(lot.free_uhs for lot in book.lots.values()),
        "held": sum(account.held_uhs for account in book.accounts.values()),
        "debt": -sum(account.owed_uhs + account.charged_back_uhs for account in book.accounts.values()),
        "breakage": sum(lot.expired_uhs for lot in book.lots.values()),
    }
    for name, amount in found.items():
        if tokens[name] != amount:
            yield f"{name} is {tokens[name]} in the daybook and {amount} in the accounts"
    receivable = sum(account.receivable_microcny for account in book.accounts.values())
    if money["receivable"] != receivable:
        yield f"receivable is {money['receivable']} in the daybook and {receivable} in the accounts"


def _lots(book: Ledger) -> Iterator[str]:
    held = dict.fromkeys(book.lots, 0)
    for hold in _standing(book).values():
        for piece in hold.pieces:
            if piece.lot_id != CREDIT:
                held[piece.lot_id] += piece.held_uhs
    for name, lot in book.lots.items():
        parts = (lot.free_uhs, lot.held_uhs, lot.captured_uhs, lot.expired_uhs, lot.voided_uhs, lot.frozen_uhs)
        if lot.granted_uhs != sum(parts):
            yield f"lot {name} has lost or gained tokens: {lot}"
        if min(parts) < 0:
            yield f"lot {name} is below zero: {lot}"
        if lot.held_uhs != held[name]:
            yield f"lot {name} has {lot.held_uhs} held, its holds {held[name]}"


def _holds(book: Ledger) -> Iterator[str]:
    for name, hold in _standing(book).items():
        if hold.held_uhs != sum(piece.held_uhs for piece in hold.pieces):
            yield f"hold {name} holds {hold.held_uhs}, its pieces {hold.pieces}"
        if hold.captured_uhs != sum(piece.captured_uhs for piece in hold.pieces):
            yield f"hold {name} has captured {hold.captured_uhs}, its pieces {hold.pieces}"
        if any(piece.held_uhs < 0 or piece.captured_uhs < 0 for piece in hold.pieces):
            yield f"hold {name} is below zero: {hold.pieces}"


def _accounts(book: Ledger) -> Iterator[str]:
    held = dict.fromkeys(book.accounts, 0)
    on_credit = dict.fromkeys(book.accounts, 0)
    for hold in _standing(book).values():
        held[hold.account_id] += hold.held_uhs
        on_credit[hold.account_id] += sum(piece.held_uhs for piece in hold.pieces if piece.lot_id == CREDIT)
    unspent: dict[str, list[str]] = {name: [] for name in book.accounts}
    for lot in sorted(book.lots.values(), key=lambda lot: lot.burn_key):
        if lot.free_uhs or lot.held_uhs:
            unspent[lot.account_id].append(lot.lot_id)
    for name, account in book.accounts.items():
        if account.held_uhs != held[name]:
            yield f"account {name} has {account.held_uhs} held, its holds {held[name]}"
        if account.credit_held_uhs != on_credit[name]:
            yield f"account {name} has {account.credit_held_uhs} held on credit, its holds {on_credit[name]}"
        if min(account.debt_uhs, account.credit_held_uhs, account.receivable_microcny, account.charged_back_uhs) < 0:
            yield f"account {name} is below zero: {account}"
        if account.burning != unspent[name]:
            yield f"account {name} burns {account.burning}, the order is {unspent[name]}"


def _credit(book: Ledger) -> Iterator[str]:
    for name, account in book.accounts.items():
        if account.exposed_uhs > account.credit_limit_uhs + account.excused_uhs:
            yield f"account {name} owes {account.exposed_uhs}, beyond {account.credit_limit_uhs} + {account.excused_uhs}"
        if sum(invoice.unpaid_microcny for invoice in account.invoices) > account.receivable_microcny:
            yield f"account {name} has {account.receivable_microcny} receivable, its invoices more: {account.invoices}"
        if min((invoice.unpaid_microcny for invoice in account.invoices), default=1) <= 0:
            yield f"account {name} keeps an invoice that is paid: {account.invoices}"
        if sum(each.amount_uhs for each in account.priced) > account.debt_uhs:
            yield f"account {name} owes {account.debt_uhs}, and more at earlier prices: {account.priced}"
