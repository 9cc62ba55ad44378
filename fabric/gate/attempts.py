"""How often a job is tried again, and given back what it burned: never for ever, if it gets nowhere.

Only the platform's own faults are refunded, and even those not without end: whoever could bring them about would compute for
nothing. What counts is kept with the job, so that neither a start nor a restart forgets it.
"""

from typing import Final

from fabric.charging.sessions import ChargingSession
from fabric.gate.events import LeaseOutcome
from fabric.gate.lifecycle import StopReason
from fabric.gate.state import Job, LeaseRecord

LOSSES_IN_A_ROW: Final = 5
"""How often an attempt may be lost, or end by itself where the last one did, until the job is not tried again by itself."""
UNSAVED_IN_A_ROW: Final = 2
"""How often one may end by itself that saved nothing: it begins where the last one did, and its owner pays for it each time."""
LOST_TOO_OFTEN: Final = "lost_too_often"
"""Why a job is parked whose attempts were lost so often: it keeps what it saved, and goes on when its owner says so."""
PLATFORM_FAULT: Final = (None, StopReason.EVICTED, StopReason.DRAINED, StopReason.FABRIC_DOWN)
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


def is_one_too_many(job: Job, record: LeaseRecord, outcome: LeaseOutcome) -> bool:
    """Count an attempt that is over: was it lost, or interrupted, once too often to try it again without its owner's word?

    Not counted is an end that the owner asked for, and one before the start that made room for others: nothing was tried.
    """
    if outcome not in (LeaseOutcome.LOST, LeaseOutcome.INTERRUPTED) or record.stop_reason not in PLATFORM_FAULT:
        return False
    if record.stop_reason is not None and record.started_at_us is None:
        return False
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


def is_refunded(job: Job, record: LeaseRecord) -> bool:
    """Whether what this attempt lost is given back: the platform was at fault, and not for longer than is believable."""
    lost = record.outcome is LeaseOutcome.LOST and record.stop_reason in PLATFORM_FAULT
    return lost and job.losses <= LOSSES_IN_A_ROW


def lost_too_often(error: str) -> str:
    """What its owner is told."""
    remedy = "save more often or let it go elsewhere, and say `fabric resume` (`job.resume()`): it goes on from what it saved"
    return f"{error}\nlost {LOSSES_IN_A_ROW} times in a row: {remedy}".strip()
