"""Jobs that are parked, and go on: when tokens come, a limit is raised or begins anew, or their owner says so."""

from typing import Final

from fabric.gate import backoff, holds, limit_texts, limits, refusals, requests, standing
from fabric.gate.core import Core
from fabric.gate.instructions import Refusal
from fabric.gate.lifecycle import StopReason, Trigger
from fabric.gate.state import Job
from fabric.units import AccountId, format_ct

NEEDS_TOKENS: Final = (StopReason.OUT_OF_TOKENS.value, StopReason.TOKENS_EXPIRED.value)
WAITS_FOR_TOKENS: Final = (*NEEDS_TOKENS, StopReason.LIMIT_REACHED.value, StopReason.SPENDING_LIMIT.value)


def resume_waiting(core: Core, account_id: AccountId) -> None:
    """Tokens have become free: jobs of this account that wait for them go on, oldest first, as far as they last.

    One that needs more, or other tokens, than there are lets those behind it pass.
    """
    if standing.barred(core, account_id) is not None:
        return
    for job_id in tuple(core.state.parked.get(account_id, ())):
        job = core.state.jobs[job_id]
        wanted = job.resume_asked or job.reason in NEEDS_TOKENS or job.reason == StopReason.SPENDING_LIMIT
        raised = job.reason == StopReason.LIMIT_REACHED and job.limit_uhs > job.parked_limit_uhs
        if not (wanted or raised):
            continue
        refusal = requeue(core, job)
        if refusal is None:
            continue
        if refusal.code == limit_texts.REACHED or job.reason == StopReason.SPENDING_LIMIT:
            _wait_for(core, job, refusal)
        elif job.resume_asked or raised:
            _wait_for_tokens(core, job)


def try_again(core: Core, job: Job) -> None:
    """A limit that it waited for has begun anew: it goes on, or waits for what it lacks now."""
    job.waits_until_us = None
    refusal = requeue(core, job)
    if refusal is not None:
        _wait_for(core, job, refusal)


def at_limit(job: Job) -> Refusal | None:
    """A job that may burn nothing more needs a higher limit."""
    if job.limit_uhs > max(job.burned_uhs, job.parked_limit_uhs):
        return None
    return refusals.conflict(
        f"the job has reached its limit of {format_ct(job.limit_uhs)} tokens: raise it (`fabric raise-limit`,"
        " `job.raise_limit`) to go on",
        code="limit_reached",
        limit_uhs=job.limit_uhs,
        burned_uhs=job.burned_uhs,
    )


def requeue(core: Core, job: Job) -> Refusal | None:
    """Hold tokens again and go back to the queue. A refusal changes nothing."""
    if refusal := at_limit(job) or holds.take(core, job):
        return refusal
    unpark(core, job)
    job.waits_until_us = None
    if job.reason == StopReason.TIME_LIMIT:
        job.ran_us = 0
    job.unstarted = 0
    core.move(job, Trigger.RESUME, reason=requests.WAITS_FOR_CAPACITY)
    requests.enqueue(core, job)
    return None


def _wait_for(core: Core, job: Job, refusal: Refusal) -> None:
    """It is to go on and lacks something: by time alone where that is what a limit leaves."""
    if refusal.code != limit_texts.REACHED:
        _wait_for_tokens(core, job)
        return
    job.resume_asked = False
    until_us = limits.opens_us(core, job, holds.wanted_uhs(core, job))
    if (job.reason, job.waits_until_us) != (StopReason.SPENDING_LIMIT.value, until_us):
        job.reason = StopReason.SPENDING_LIMIT.value
        backoff.wait_until(core, job, until_us)
        core.touch(job)


def _wait_for_tokens(core: Core, job: Job) -> None:
    """It was promised to go on and can't yet: it does when tokens come, or its limit is raised."""
    reached = at_limit(job) is not None
    job.resume_asked, job.waits_until_us = False, None
    job.reason = (StopReason.LIMIT_REACHED if reached else StopReason.OUT_OF_TOKENS).value
    core.touch(job)


def unpark(core: Core, job: Job) -> None:
    job.resume_asked = False
    waiting = core.state.parked.get(job.account_id, [])
    if job.job_id in waiting:
        waiting.remove(job.job_id)
        if not waiting:
            del core.state.parked[job.account_id]
