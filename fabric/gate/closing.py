"""Suspending, resuming and closing accounts, alone or all of an organisation.

Suspended: keys look and pay and do nothing else, what runs saves and is parked, and goes on when the account is resumed.
Closed: keys are dead, jobs save and are cancelled, and what is left of the balance goes back to where it came from or is
forfeited, as it becomes free; what was used and what is owed stays in the books, for the operator to read.
"""

from typing import Final

from fabric.gate import account_steps, organisations, paybacks, refusals, standing
from fabric.gate.account_events import CloseAccount, ResumeAccount, SuspendAccount
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.organisation_state import Standing
from fabric.gate.payment_events import RefundPayment
from fabric.gate.payments import TAKING
from fabric.gate.state import Account
from fabric.gate.treasury import REASON_MAX
from fabric.ledger import funding
from fabric.ledger import paybacks as going_back
from fabric.ledger.state import Ledger
from fabric.units import AccountId

CLOSED: Final = "account closed"
REFUND: Final = "refund"
FORFEIT: Final = "forfeit"
BALANCES: Final = (REFUND, FORFEIT)


def suspend(core: Core, event: SuspendAccount) -> Outcome:
    """Nothing new starts; what runs is asked to save, and parked."""
    meant = _meant(core, event.account_id, whole=event.organisation)
    if isinstance(meant, Refusal):
        return meant
    if refusal := _bad_reason(event.reason):
        return refusal
    for account in meant:
        account_steps.suspend(core, account, event.reason)
    return Accepted(facts={"accounts": len(meant)})


def resume(core: Core, event: ResumeAccount) -> Outcome:
    """Open again: jobs that the suspension parked go on, in their order, as far as the tokens last."""
    meant = _meant(core, event.account_id, whole=event.organisation)
    if isinstance(meant, Refusal):
        return meant
    for account in meant:
        account_steps.resume(core, account)
    return Accepted(facts={"accounts": len(meant)})


def close(core: Core, event: CloseAccount) -> Outcome:
    """For good. What is free of the balance goes now, what is still held when it is free."""
    meant = _meant(core, event.account_id, whole=event.organisation)
    if isinstance(meant, Refusal):
        return meant
    if event.balance not in BALANCES:
        return refusals.invalid(
            f"what is left of the balance is to be {' or '.join(BALANCES)}, not {event.balance!r}",
            code="invalid_balance",
        )
    if refusal := _bad_reason(event.reason):
        return refusal
    for account in meant:
        account_steps.begin_to_close(core, account, event.reason, refunds=event.balance == REFUND)
    follow(core)
    return Accepted(facts={"accounts": len(meant)})


def follow(core: Core) -> None:
    """Accounts that close let go of what has become free; one with nothing left is closed."""
    if not core.state.closing:
        return
    for account_id in tuple(core.state.closing):
        account = core.state.accounts[account_id]
        _let_go(core, account)
        held = any(ledger.accounts[account_id].held_uhs for ledger in _ledgers(core) if account_id in ledger.accounts)
        at_work = held or any(not job.settled for job in core.jobs_of.get(account_id, ()))
        if not at_work:
            account.standing = Standing.CLOSED
            del core.state.closing[account_id]


def _ledgers(core: Core) -> tuple[Ledger, ...]:
    return (core.book, *core.book.packages.values())


def _let_go(core: Core, account: Account) -> None:
    """What is free goes: to its source; what no provider took, to the operator to pay out; or nowhere."""
    if account.refunds:
        _refund(core, account)
    for ledger in _ledgers(core):
        own = ledger.accounts.get(account.account_id)
        for lot in [ledger.lots[lot_id] for lot_id in own.burning] if own is not None else ():
            if lot.free_uhs and account.refunds and lot.terms.channel not in TAKING:
                funding.void(ledger, lot.lot_id, amount_uhs=lot.free_uhs, now_us=core.now_us)
            elif lot.free_uhs:
                free_uhs = lot.free_uhs
                going_back.take_back(ledger, lot.lot_id, amount_uhs=free_uhs, amount_microcny=0, now_us=core.now_us)


def _refund(core: Core, account: Account) -> None:
    """What providers took of it; parts that are worth less than can be paid back are left."""
    for payment in core.state.till.payments.values():
        if payment.account_id == account.account_id and payment.lot_id:
            event = RefundPayment(payment_id=payment.payment_id, account_id=account.account_id, reason=CLOSED)
            paybacks.refund(core, event)


def _meant(core: Core, account_id: AccountId, *, whole: bool) -> list[Account] | Refusal:
    """The accounts that are meant, of which none is closed."""
    account = core.state.accounts.get(account_id)
    if account is None:
        return refusals.not_found("account", account_id)
    wallets = organisations.of(core, account_id).wallets if whole else [account_id]
    for wallet in wallets:
        found = core.state.accounts[wallet]
        if refusal := standing.takes_nothing(found):
            return refusal
        if any(key.operator for key in core.keys_of.get(wallet, ())):
            return refusals.conflict(
                f"account {wallet} is the operator's own: its keys are those that the fabric runs with",
                code="operators_account",
            )
    return [core.state.accounts[wallet] for wallet in wallets]


def _bad_reason(reason: str) -> Refusal | None:
    if 0 < len(reason.strip()) <= REASON_MAX:
        return None
    return refusals.invalid(
        f"say why, in 1 to {REASON_MAX} characters: the customer is told, and it is kept for ever",
        code="invalid_reason",
    )
