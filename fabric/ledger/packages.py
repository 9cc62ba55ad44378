"""Packages: lots of other assets than compute tokens, each asset in a ledger of its own that is a part of the book.

So an asset keeps what the book keeps, by the same code: its lots, its deadlines, its double entry, what is held of it. A hold
in a package has the name, the validity and the client's words of the one of compute tokens beside which it stands.
"""

from fabric.ledger import balances
from fabric.ledger.accounts import Account
from fabric.ledger.lots import Lot
from fabric.ledger.scopes import Use
from fabric.ledger.state import Ledger


def package_of(ledger: Ledger, asset: str) -> Ledger:
    """The ledger of an asset: the book itself, or a part of it, which is made where there is none yet."""
    if asset == ledger.asset:
        return ledger
    package = ledger.packages.get(asset)
    if package is None:
        package = ledger.packages[asset] = Ledger(
            operator=ledger.operator,
            asset=asset,
            refund_margin_us=ledger.refund_margin_us,
            settlement_window_us=ledger.settlement_window_us,
        )
        package.daybook = ledger
    return package


def join(ledger: Ledger, asset: str, account_id: str) -> Ledger:
    """As `package_of`; an account of the book has one in it from now on."""
    package = package_of(ledger, asset)
    if account_id in ledger.accounts and account_id not in package.accounts:
        package.accounts[account_id] = Account(
            account_id=account_id, opened_at_us=ledger.accounts[account_id].opened_at_us
        )
    return package


def with_lot(ledger: Ledger, lot_id: str) -> Ledger | None:
    """The ledger that a lot is in."""
    return next((each for each in (ledger, *ledger.packages.values()) if lot_id in each.lots), None)


def settings(ledger: Ledger, *, operator: str, settlement_window_us: int) -> None:
    """What a configuration says, for the book and its packages."""
    for each in (ledger, *ledger.packages.values()):
        each.operator, each.settlement_window_us = operator, settlement_window_us


def free(package: Ledger, account_id: str, *, use: Use | None, now_us: int) -> int:
    """What an account has free in a package, for a use or (None) for any."""
    account = package.accounts.get(account_id)
    return 0 if account is None else balances.free_uhs(package, account, now_us=now_us, use=use)


def burns_next(package: Ledger, account_id: str, *, use: Use, now_us: int) -> Lot | None:
    """The lot that a new hold of an account takes from first, for a use; None where it has nothing free for that."""
    account = package.accounts.get(account_id)
    lots = (package.lots[lot_id] for lot_id in account.burning) if account is not None else ()
    return next((lot for lot in lots if lot.free_uhs and lot.spendable(now_us, use)), None)


def for_use(ledger: Ledger, account_id: str, *, use: Use, now_us: int) -> list[tuple[Ledger, int]]:
    """The packages that an account has something free in for a use, and how much: the one whose next lot burns first first."""
    found = []
    for package in ledger.packages.values():
        lot = burns_next(package, account_id, use=use, now_us=now_us)
        if lot is not None:
            free = balances.free_uhs(package, package.accounts[account_id], now_us=now_us, use=use)
            found.append((lot.burn_key, package, free))
    return [(package, free) for _, package, free in sorted(found, key=lambda each: each[0])]
