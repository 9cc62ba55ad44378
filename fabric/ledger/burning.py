"""Which lots of an account still burn, in their order: those with anything free or held."""

from bisect import insort
from functools import partial

from fabric.ledger.accounts import Account
from fabric.ledger.lots import BurnKey, Lot
from fabric.ledger.state import Ledger


def burn_again(ledger: Ledger, account: Account, lot: Lot) -> None:
    """Put a lot (back) into its place in the burn order."""
    if lot.lot_id not in account.burning:
        insort(account.burning, lot.lot_id, key=partial(_burn_key, ledger))


def drop_if_spent(account: Account, lot: Lot) -> None:
    """Take a lot out of the burn order that has nothing left."""
    if not lot.free_uhs and not lot.held_uhs:
        account.burning.remove(lot.lot_id)


def _burn_key(ledger: Ledger, lot_id: str) -> BurnKey:
    return ledger.lots[lot_id].burn_key
