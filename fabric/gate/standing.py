"""How an account stands: open, suspended, closing or closed, and what it may not do so."""

from fabric.gate import refusals
from fabric.gate.core import Core
from fabric.gate.instructions import Refusal
from fabric.gate.lifecycle import JobState
from fabric.gate.organisation_state import Standing
from fabric.gate.state import Account
from fabric.units import AccountId


def barred(core: Core, account_id: AccountId) -> Refusal | None:
    """Why nothing of the account's may start, or be held for it; None if it may."""
    account = core.state.accounts.get(account_id)
    return None if account is None or account.standing is Standing.OPEN else why(account)


def why(account: Account) -> Refusal:
    """The same of one that isn't open."""
    if account.standing is Standing.SUSPENDED and account.dunned:
        return refusals.forbidden(
            f"account {account.account_id} is suspended ({account.standing_why}): its jobs are saved and wait, and all goes on"
            " when its invoices are paid (fabric balance lists them)",
            code="account_suspended",
        )
    if account.standing is Standing.SUSPENDED:
        return refusals.forbidden(
            f"account {account.account_id} is suspended ({account.standing_why}): its jobs are saved and wait, and it can still"
            " be looked at and topped up; ask the operator to resume it",
            code="account_suspended",
        )
    return closed(account)


def closed(account: Account) -> Refusal:
    return refusals.forbidden(
        f"account {account.account_id} is closed ({account.standing_why}): ask the operator for another one",
        code="account_closed",
    )


def takes_nothing(account: Account) -> Refusal | None:
    """Why nothing can be booked for it any more; None if it can."""
    return closed(account) if account.standing in (Standing.CLOSING, Standing.CLOSED) else None


def no_job(core: Core, account_id: AccountId) -> Refusal | None:
    """Why the account can't have one more job; None if it can."""
    account, caps = core.state.accounts.get(account_id), core.state.caps
    if account is None:
        return refusals.not_found("account", account_id)
    if account.standing is not Standing.OPEN:
        return why(account)
    if caps is None or (most := caps.queued_jobs) is None:
        return None
    own = core.jobs_of.get(account_id, ())
    if len(own) < most or sum(1 for job in own if job.state is JobState.QUEUED) < most:
        return None
    return refusals.conflict(
        f"{most} jobs of account {account_id} wait for devices, which is all that may: submit more when some have started,"
        " cancel some, or ask the operator for more (limits.queued_jobs)",
        code="too_many_queued_jobs",
        limit=most,
    )
