"""What it takes to suspend an account, to open it again, and to begin to close it: whoever says so, an operator or its plan's terms."""

from fabric.gate import jobs
from fabric.gate.core import Core
from fabric.gate.lifecycle import AFTER_STOP, TERMINAL, JobState, StopReason, Trigger
from fabric.gate.organisation_state import Standing
from fabric.gate.state import Account, Job


def suspend(core: Core, account: Account, why: str, *, dunned: bool = False) -> None:
    """Nothing new starts; what runs is asked to save, and parked."""
    account.standing, account.standing_why, account.dunned = Standing.SUSPENDED, why, dunned
    for job in tuple(core.jobs_of.get(account.account_id, ())):
        if job.state not in TERMINAL:
            _suspend(core, job)


def resume(core: Core, account: Account) -> None:
    """Those of its jobs that were suspended go on, or will as soon as they have saved."""
    account.standing, account.standing_why, account.dunned = Standing.OPEN, "", False
    for job in core.jobs_of.get(account.account_id, ()):
        if job.stopping_for is StopReason.SUSPENDED or (
            job.state is JobState.PARKED and job.reason == StopReason.SUSPENDED
        ):
            job.resume_asked = True
    core.freed[account.account_id] = None


def begin_to_close(core: Core, account: Account, why: str, *, refunds: bool) -> None:
    """Its jobs save and end, nothing renews; what is left goes as it becomes free (`closing.follow`)."""
    account.standing, account.standing_why, account.dunned = Standing.CLOSING, why, False
    account.refunds = refunds
    core.state.closing[account.account_id] = None
    for record in core.subscribed_by.get(account.account_id, ()):
        record.ending = True
        record.ahead.clear()
    rule = core.state.till.auto.get(account.account_id)
    if rule is not None:
        rule.on = False
    for job in tuple(core.jobs_of.get(account.account_id, ())):
        if job.state not in TERMINAL:
            jobs.cancel_job(core, job, save=True, at_once=False)


def _suspend(core: Core, job: Job) -> None:
    """It saves and waits for its account; one that wouldn't go on by itself anyway keeps its reason."""
    leaves = job.stopping_for is not None and AFTER_STOP[job.stopping_for] is not Trigger.REQUEUE
    if not leaves and job.state is not JobState.PARKED:
        jobs.pause_job(core, job, StopReason.SUSPENDED)
