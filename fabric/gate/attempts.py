"""How often a job is tried again, and given back what it burned: never for ever, if it gets nowhere.

Only the platform's own faults are refunded, and even those not without end: whoever could bring them about would compute for
nothing. A job can: what it runs may end the node that it is on. What counts is kept with the job, and over all of a
customer's jobs with the account, so that neither a start nor a restart nor a new job forgets it.
"""

from typing import Final

from fabric.charging.sessions import ChargingSession
from fabric.gate import burning, hazards
from fabric.gate.core import Core
from fabric.gate.events import LeaseOutcome, Sample
from fabric.gate.lifecycle import StopReason
from fabric.gate.state import Account, Job, LeaseRecord

LOSSES_IN_A_ROW: Final = 5
"""How often an attempt may be lost, or end by itself where the last one did, until the job is not tried again by itself."""
UNSAVED_IN_A_ROW: Final = 2
"""How often one may end by itself that saved nothing: it begins where the last one did, and its owner pays for it each time."""
OUTAGES_IN_A_ROW: Final = 5
"""How often an account is given back what nodes that were lost took from it, until it has paid for as much."""
OUTAGE_US: Final = 600_000_000
"""What is lost within it after the first loss was lost together, and counts once: a rack takes many jobs along."""
ROW_US: Final = 600_000_000
"""An attempt that ran for so long before it was lost is the first of a row: what ends a job's nodes again and again is faster."""
UNSTARTED_US: Final = 3_600_000_000
"""For so long a job is tried anew that the platform can't even start: nothing of it has run, so nobody but that is at fault."""
LOST_TOO_OFTEN: Final = "lost_too_often"
"""Why a job is parked whose attempts were lost so often: it keeps what it saved, and goes on when its owner says so."""
PLATFORM_FAULT: Final = (None, StopReason.EVICTED, StopReason.RESIZED, StopReason.DRAINED, StopReason.FABRIC_DOWN)
"""Stops after which work that was lost is refunded: the customer didn't ask for them."""


def gets_on(job: Job, record: LeaseRecord) -> bool:
    """Whether a job that ended saved, though nobody asked it to, is worth another try: it has got farther, or has not tried
    too often.
    """
    farther = record.saved and job.saved_step > job.again_step
    job.again_step = max(job.again_step, job.saved_step)
    job.again_in_a_row = 0 if farther else job.again_in_a_row + 1
    return job.again_in_a_row < (LOSSES_IN_A_ROW if record.saved else UNSAVED_IN_A_ROW)


def stopped_too_often(job: Job, record: LeaseRecord, error: str) -> str:
    """What the owner of a job is told that asked to be queued anew too often: the reason it gave last, if any, first."""
    what = "" if record.saved else ', and saved nothing: exit code 75 says "saved, queue me again"'
    remedy = "`fabric resume` (`job.resume()`) lets it go on from what it saved"
    return f"{error}\nstopped {job.again_in_a_row} times in a row at step {job.saved_step}{what}; {remedy}".strip()


def is_one_too_many(job: Job, record: LeaseRecord, outcome: LeaseOutcome, *, now_us: int) -> bool:
    """Count an attempt that is over: was it lost, or interrupted, once too often to try it again without its owner's word?

    Not counted is an end that the owner asked for, and one before the start that made room for others: nothing was tried.
    One that the platform lost before it had started tells nothing of the job, so those end only after a long time.
    """
    if outcome not in (LeaseOutcome.LOST, LeaseOutcome.INTERRUPTED) or record.stop_reason not in PLATFORM_FAULT:
        return False
    if record.started_at_us is None and record.stop_reason is not None:
        return False
    if record.started_at_us is None and outcome is LeaseOutcome.LOST:
        if job.unstarted == 0:
            job.unstarted_since_us = now_us
        job.unstarted += 1
        return now_us - job.unstarted_since_us >= UNSTARTED_US
    if record.started_at_us is not None and now_us - record.started_at_us >= ROW_US:
        job.losses = 0
    if job.losses == 0:
        job.given_back_uhs, job.lost_step = 0, job.saved_step
    job.losses += 1
    return job.losses >= LOSSES_IN_A_ROW


def note_save(job: Job, session: ChargingSession) -> None:
    """A checkpoint is durable: the losses are over once the job has got farther, and has paid for as much as it was given
    back. A save alone would be too cheap a word to begin anew with.
    """
    if job.losses and job.saved_step >= job.lost_step and session.durable_uhs > job.given_back_uhs:
        job.losses = job.given_back_uhs = 0


def close(core: Core, job: Job, record: LeaseRecord, final: Sample | None) -> None:
    """An attempt that has run is over: close its charging record, give back what is to be given back, and learn from it."""
    assert record.started_at_us is not None
    assert record.ended_at_us is not None
    assert record.outcome is not None
    account, by_itself = core.state.accounts[job.account_id], record.stop_reason is None
    was_lost = record.outcome is LeaseOutcome.LOST
    refunds = was_lost and _is_refunded(job, record, account, now_us=core.now_us)
    # What nobody believes the platform to be at fault for tells nothing of the pool either.
    is_doubted = was_lost and by_itself and not refunds
    hazards.note(
        core.state.hazards,
        record.pool,
        ran_us=record.ended_at_us - record.started_at_us,
        outcome=LeaseOutcome.INTERRUPTED if is_doubted else record.outcome,
        reason=record.stop_reason,
    )
    if refunds and by_itself and not (account.outages and _is_the_same(account, core.now_us)):
        account.outages += 1
        account.outage_at_us = core.now_us
    closed = burning.close(core, job, record, final, refunds=refunds)
    if account.outages:
        account.outages_gave_uhs += closed.refunded_uhs if by_itself else 0
        account.outages_paid_uhs += closed.charged_uhs
        if account.outages_paid_uhs > account.outages_gave_uhs:
            account.outages = account.outages_gave_uhs = account.outages_paid_uhs = 0


def _is_refunded(job: Job, record: LeaseRecord, account: Account, *, now_us: int) -> bool:
    """Whether what a lost attempt lost is given back: the platform was at fault, and not more often than is believable. What it
    took away itself, nobody else can have brought about.
    """
    if record.stop_reason not in PLATFORM_FAULT:
        return False
    is_believed = record.stop_reason is not None or account.outages < OUTAGES_IN_A_ROW or _is_the_same(account, now_us)
    return is_believed and job.losses <= LOSSES_IN_A_ROW


def _is_the_same(account: Account, now_us: int) -> bool:
    """Whether what is lost now was lost in the outage that was counted last."""
    return now_us - account.outage_at_us < OUTAGE_US


def is_its_own_start(job: Job, outcome: LeaseOutcome) -> bool:
    """Whether what can't be started is what the job brings along: no platform that is well again would help."""
    return outcome is LeaseOutcome.INTERRUPTED and job.started_at_us is None


def lost_too_often(job: Job, error: str) -> str:
    """What its owner is told."""
    goes_on = "`fabric resume` (`job.resume()`)"
    if job.unstarted:
        told = f"it could not be started {job.unstarted} times in a row: {goes_on} has it tried again"
    else:
        told = (
            f"lost {LOSSES_IN_A_ROW} times in a row: save more often or let it go elsewhere, and say {goes_on}: it goes on"
            " from what it saved"
        )
    return f"{error}\n{told}".strip()
