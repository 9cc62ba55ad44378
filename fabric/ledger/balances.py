"""What an account has, as of a time. Reading changes nothing, and filters by time what has not been swept yet."""

from fabric.ledger.accounts import Account
from fabric.ledger.lots import Lot
from fabric.ledger.outcomes import Balance, LotBalance
from fabric.ledger.scopes import Use
from fabric.ledger.state import Ledger


def free_uhs(ledger: Ledger, account: Account, *, now_us: int, use: Use | None) -> int:
    """What a hold for `use` (None: for any) could get now, credit included."""
    spending = account.spending_for(use)
    lots = (ledger.lots[lot_id] for lot_id in account.burning)
    free = sum(lot.free_uhs for lot in lots if lot.spendable(now_us, use) and spending.admits(lot))
    return free + account.credit_free_uhs if spending.credit else free


def barred_uhs(ledger: Ledger, account: Account, *, now_us: int, use: Use) -> int:
    """What the scope of a lot would let `use` have, and the account's rules of spending don't; credit included."""
    spending = account.spending_for(use)
    lots = (ledger.lots[lot_id] for lot_id in account.burning)
    barred = sum(lot.free_uhs for lot in lots if lot.spendable(now_us, use) and not spending.admits(lot))
    return barred if spending.credit else barred + account.credit_free_uhs


def balance(ledger: Ledger, account: Account, *, now_us: int) -> Balance:
    """An account with its unspent lots, in burn order."""
    lots = [lot for lot in (ledger.lots[lot_id] for lot_id in account.burning) if lot.held_uhs or lot.alive(now_us)]
    free = sum(lot.free_uhs for lot in lots if lot.spendable(now_us, None))
    pending = sum(lot.free_uhs for lot in lots if lot.effective_at_us > now_us)
    return Balance(
        account_id=account.account_id,
        posted_uhs=free + account.held_uhs,
        free_uhs=free,
        pending_uhs=pending,
        held_uhs=account.held_uhs,
        credit_held_uhs=account.credit_held_uhs,
        debt_uhs=account.debt_uhs,
        credit_limit_uhs=account.credit_limit_uhs,
        credit_free_uhs=account.credit_free_uhs,
        receivable_microcny=account.receivable_microcny,
        invoiced_uhs=account.invoiced_uhs,
        lots=tuple(lot_balance(lot, now_us=now_us) for lot in lots),
    )


def lot_balance(lot: Lot, *, now_us: int) -> LotBalance:
    """One lot, whatever is left of it."""
    return LotBalance(
        lot_id=lot.lot_id,
        origin=lot.terms.origin.value,
        tier=lot.terms.tier,
        scope=lot.terms.scope.text,
        granted_uhs=lot.granted_uhs,
        free_uhs=lot.free_uhs if lot.alive(now_us) else 0,
        held_uhs=lot.held_uhs,
        effective_at_us=lot.effective_at_us,
        expires_at_us=lot.expires_at_us,
        price_microcny=lot.terms.price_microcny,
    )
