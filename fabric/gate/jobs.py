"""What an owner can ask for a job: submit, cancel, pause, resume, raise its limit."""

from collections.abc import Callable
from typing import Final

from fabric.gate import holds, leases, refusals
from fabric.gate.core import Core
from fabric.gate.events import Cancel, HoldMode, JobSpec, Pause, RaiseLimit, Resume, Submit
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.lifecycle import TERMINAL, JobState, StopReason, Trigger
from fabric.gate.state import Job
from fabric.placement import Unplaceable
from fabric.units import INT64_MAX, AccountId, JobId

NAME_MAX: Final = 200
DEVICES_MAX: Final = 1_000_000
WAITS_FOR_TOKENS: Final = (StopReason.OUT_OF_TOKENS.value, StopReason.LIMIT_REACHED.value)


def submit(core: Core, event: Submit) -> Outcome:
    """Hold the job's tokens and put it in the queue, or refuse it as a whole."""
    account = core.state.accounts.get(event.account_id)
    if account is None:
        return refusals.not_found("account", event.account_id)
    if event.job_id in core.state.jobs:
        return refusals.conflict(f"there is a job {event.job_id!r} already", job=event.job_id)
    spec = event.spec
    job = Job(
        job_id=event.job_id,
        account_id=event.account_id,
        key_id=event.key_id,
        spec=spec,
        limit_uhs=spec.limit_uhs,
        submitted_at_us=core.now_us,
        reason="waiting_for_capacity",
    )
    if refusal := why_not(core, job):
        return refusal
    if refusal := holds.take(core, job):
        return refusal
    core.state.jobs[job.job_id] = job
    core.touch(job)
    core.planner.enqueue(leases.request_of(core, job), now_us=core.now_us)
    leases.apply_plan(core)
    return Accepted(granted_uhs=job.held_uhs, held_uhs=job.held_uhs)


def why_not(core: Core, job: Job) -> Refusal | None:
    """What is wrong with a job as written, whatever the balance: None if nothing is."""
    if refusal := _malformed(job.spec):
        return refusal
    known = core.tariffs.accelerators
    for name in job.spec.accelerators:
        if name not in known:
            return refusals.unknown_accelerator(name, known)
    impossible = core.planner.check(leases.request_of(core, job))
    return None if impossible is None else unplaceable(impossible)


def unplaceable(impossible: Unplaceable) -> Refusal:
    facts = impossible.facts
    match impossible.code:
        case "unknown_accelerator":
            return refusals.unknown_accelerator(str(facts.get("given", "")), (str(facts.get("known", "")),))
        case "gang_too_large":
            return refusals.invalid(
                f"a gang of {facts.get('devices')} can never be placed: the largest that fits is "
                f"{facts.get('largest')} × {facts.get('accelerator')}: ask for fewer devices or another type",
                code="gang_too_large",
                **facts,
            )
        case _:
            return refusals.invalid(f"no pool here takes such a job ({impossible.code})", code=impossible.code, **facts)


def cancel(core: Core, event: Cancel) -> Outcome:
    return _with_job(core, event.job_id, event.account_id, _cancel)


def pause(core: Core, event: Pause) -> Outcome:
    return _with_job(core, event.job_id, event.account_id, _pause)


def resume(core: Core, event: Resume) -> Outcome:
    return _with_job(core, event.job_id, event.account_id, _resume)


def raise_limit(core: Core, event: RaiseLimit) -> Outcome:
    """A higher `tokens=`: held at once where the job holds all of its limit; a job parked at its limit resumes."""
    job = _owned(core, event.job_id, event.account_id)
    if job is None:
        return refusals.not_found("job", event.job_id)
    if job.state in TERMINAL:
        return _too_late(job)
    more_uhs = event.limit_uhs - job.limit_uhs
    if more_uhs <= 0 or event.limit_uhs > INT64_MAX:
        return refusals.invalid(
            f"the limit is {job.limit_uhs} µHs already: it can only be raised", limit_uhs=job.limit_uhs
        )
    if job.hold_id is not None and job.spec.hold is HoldMode.FULL:
        answer = holds.extend(core, job, amount_uhs=more_uhs)
        if isinstance(answer, Refusal):
            return answer
    before, job.limit_uhs = job.limit_uhs, event.limit_uhs
    core.touch(job)
    if job.state is JobState.PARKED and job.reason in WAITS_FOR_TOKENS and job.lease_id is None:
        refusal = _requeue(core, job)
        if refusal is not None:
            job.limit_uhs = before
            return refusal
    return Accepted(granted_uhs=more_uhs, held_uhs=job.held_uhs)


def resume_waiting(core: Core, account_id: AccountId) -> None:
    """Tokens have become free: jobs of this account that wait for them go on, oldest first, as far as they last."""
    for job_id in tuple(core.state.parked.get(account_id, ())):
        job = core.state.jobs[job_id]
        wanted = job.resume_asked or job.reason == StopReason.OUT_OF_TOKENS
        raised = job.reason == StopReason.LIMIT_REACHED and job.limit_uhs > job.parked_limit_uhs
        if (wanted or raised) and _requeue(core, job) is not None:
            break


def _cancel(core: Core, job: Job) -> Outcome:
    match job.state:
        case JobState.STARTING | JobState.RUNNING | JobState.STOPPING:
            assert job.lease_id is not None
            leases.stop(core, core.state.leases[job.lease_id], StopReason.CANCELLED)
        case JobState.QUEUED | JobState.PARKED:
            core.planner.withdraw(job.job_id)
            _unpark(core, job)
            core.move(job, Trigger.CANCELLED, reason=StopReason.CANCELLED.value)
            job.ended_at_us = core.now_us
            if job.lease_id is None:
                leases.after_lease(core, job)
        case _:
            return _too_late(job)
    return Accepted(held_uhs=job.held_uhs)


def _pause(core: Core, job: Job) -> Outcome:
    match job.state:
        case JobState.STARTING | JobState.RUNNING:
            assert job.lease_id is not None
            leases.stop(core, core.state.leases[job.lease_id], StopReason.PAUSED)
        case JobState.QUEUED:
            core.planner.withdraw(job.job_id)
            core.move(job, Trigger.PARK, reason=StopReason.PAUSED.value)
            if job.lease_id is None:
                leases.after_lease(core, job)
        case JobState.PARKED:
            pass
        case _:
            return _too_late(job)
    return Accepted(held_uhs=job.held_uhs)


def _resume(core: Core, job: Job) -> Outcome:
    if job.state in TERMINAL:
        return _too_late(job)
    if job.state is not JobState.PARKED:
        return Accepted(held_uhs=job.held_uhs)
    if job.lease_id is not None:
        job.resume_asked = True
        return Accepted(held_uhs=job.held_uhs)
    return _requeue(core, job) or Accepted(granted_uhs=job.held_uhs, held_uhs=job.held_uhs)


def _requeue(core: Core, job: Job) -> Refusal | None:
    """Hold tokens again and go back to the queue; a job that may burn nothing more needs a higher limit."""
    if job.limit_uhs <= max(job.burned_uhs, job.parked_limit_uhs):
        return refusals.conflict(
            "the job has reached its limit: raise it (`fabric raise-limit`, `job.raise_limit`) to go on",
            code="limit_reached",
            limit_uhs=job.limit_uhs,
            burned_uhs=job.burned_uhs,
        )
    if refusal := holds.take(core, job):
        return refusal
    _unpark(core, job)
    core.move(job, Trigger.RESUME, reason="waiting_for_capacity")
    core.planner.enqueue(leases.request_of(core, job), now_us=core.now_us)
    leases.apply_plan(core)
    return None


def _unpark(core: Core, job: Job) -> None:
    job.resume_asked = False
    waiting = core.state.parked.get(job.account_id, [])
    if job.job_id in waiting:
        waiting.remove(job.job_id)
        if not waiting:
            del core.state.parked[job.account_id]


def _with_job(core: Core, job_id: JobId, account_id: AccountId, act: Callable[[Core, Job], Outcome]) -> Outcome:
    job = _owned(core, job_id, account_id)
    return refusals.not_found("job", job_id) if job is None else act(core, job)


def _owned(core: Core, job_id: JobId, account_id: AccountId) -> Job | None:
    """The job, if it is this account's: another tenant's job is answered like one that doesn't exist."""
    job = core.state.jobs.get(job_id)
    return job if job is not None and job.account_id == account_id else None


def _too_late(job: Job) -> Refusal:
    return refusals.conflict(f"the job has ended already: it {job.state}", code="job_ended", state=job.state.value)


def _malformed(spec: JobSpec) -> Refusal | None:
    if not spec.name or len(spec.name) > NAME_MAX:
        return refusals.invalid(f"a job's name has 1 to {NAME_MAX} characters, not {len(spec.name)}")
    if not 1 <= spec.devices <= DEVICES_MAX:
        return refusals.invalid(
            f"a job needs 1 to {DEVICES_MAX} devices, not {spec.devices}", code="invalid_devices", devices=spec.devices
        )
    if spec.devices_per_node is not None and (spec.devices_per_node < 1 or spec.devices % spec.devices_per_node):
        return refusals.invalid(
            f"{spec.devices} devices can't be split into {spec.devices_per_node} a node: choose a divisor",
            code="invalid_devices",
            devices=spec.devices,
            devices_per_node=spec.devices_per_node,
        )
    if not 0 < spec.limit_uhs <= INT64_MAX:
        return refusals.invalid(
            "tokens= must be more than 0 and at most 2⁶³-1 µHs", code="invalid_amount", limit_uhs=spec.limit_uhs
        )
    if spec.grace_us < 0 or spec.max_retries < 0 or (spec.time_limit_us is not None and spec.time_limit_us <= 0):
        return refusals.invalid("grace and retries can't be negative, and a time limit must be more than 0")
    return None
