"""What an owner can ask for a job: submit, cancel, pause, resume, raise its limit."""

from collections.abc import Callable
from typing import Final

from fabric.gate import backoff, deadlines, holds, keys, leases, notice, parked, refusals, requests, standing, why_never
from fabric.gate.core import Core
from fabric.gate.events import (
    Cancel,
    ForgetJobs,
    HoldMode,
    JobKind,
    JobSpec,
    Pause,
    RaiseLimit,
    Resume,
    RolledBack,
    SaveNow,
    Submit,
)
from fabric.gate.instructions import Accepted, Outcome, Refusal, SaveLease
from fabric.gate.lifecycle import AFTER_STOP, TERMINAL, JobState, StopReason, Trigger
from fabric.gate.specs import NAME_MAX, malformed
from fabric.gate.state import Job
from fabric.ledger.scopes import Service
from fabric.placement import Request as PlacementRequest
from fabric.units import AMOUNT_UHS_MAX, INT64_MAX, AccountId, JobId, KeyId, format_ct

GANGS_KEPT: Final = 65_536


UNRUN_MAX: Final = 4_096
"""Jobs of one account that ended without ever having run: beyond, its oldest are forgotten."""
UNRUN_KEPT: Final = 3_072
"""Of those, when some are forgotten."""


def submit(core: Core, event: Submit) -> Outcome:
    """Hold the job's tokens and put it in the queue, or refuse it as a whole."""
    if refusal := standing.no_job(core, event.account_id):
        return refusal
    if not 0 < len(event.job_id) <= NAME_MAX:
        return refusals.invalid(
            f"a job's id has 1 to {NAME_MAX} characters, not {len(event.job_id)}", code="invalid_job_id"
        )
    if event.job_id in core.state.jobs:
        return refusals.conflict(
            f"there is a job {event.job_id!r} already: use a new id", code="job_exists", job=event.job_id
        )
    job = draft(event.job_id, event.account_id, event.key_id, keys.marked(core, event), now_us=core.now_us)
    request = requests.request_of(core, job)
    if refusal := why_not(core, job, request):
        return refusal
    if refusal := holds.take(core, job):
        return refusal
    core.keep(job)
    core.touch(job)
    requests.enqueue(core, job, request)
    facts = notice.barred(core, request) if request.grace_us > core.planner.shortest_grace_us else {}
    return Accepted(granted_uhs=job.held_uhs, held_uhs=job.held_uhs, facts=facts)


def draft(job_id: JobId, account_id: AccountId, key_id: KeyId | None, spec: JobSpec, *, now_us: int) -> Job:
    """A job as it would be queued, before anything is held for it."""
    return Job(
        job_id=job_id,
        account_id=account_id,
        key_id=key_id,
        spec=spec,
        limit_uhs=spec.limit_uhs,
        submitted_at_us=now_us,
        reason=requests.WAITS_FOR_CAPACITY,
    )


def why_not(core: Core, job: Job, request: PlacementRequest) -> Refusal | None:
    """What is wrong with a job as written, whatever the balance: None if nothing is."""
    spec = job.spec
    if refusal := malformed(spec):
        return refusal
    if job.key_id is not None and (refusal := keys.no_jobs(core, job.key_id, account_id=job.account_id)):
        return refusal
    if not spec.preemptible and (refusal := _may_stay(core, job)):
        return refusal
    known = core.prices.accelerators
    for name in spec.accelerators:
        if name not in known:
            return refusals.unknown_accelerator(name, tuple(known))
    return _never_fits(core, request)


def _may_stay(core: Core, job: Job) -> Refusal | None:
    """A job that can't be evicted keeps its devices from everybody: that is a right of a plan. Inference is never outranked."""
    if job.spec.service is Service.INFERENCE:
        return None
    if any(plan.may_stay for plan in core.plans_of(job.account_id)):
        return None
    plan = core.plan_of(job.account_id)
    others = ", ".join(each.name for each in core.catalogue.plans if each.may_stay)
    way_out = f", or submit it from an account on one of the plans that have it: {others}" if others else ""
    return refusals.forbidden(
        f"the plan {plan.name} has no right to jobs that are never evicted: leave preemptible=False (--no-preemptible)"
        f" out{way_out}",
        code="plan_is_preemptible",
        plan=plan.name,
    )


def _never_fits(core: Core, request: PlacementRequest) -> Refusal | None:
    planner = core.planner
    if (over_quota := planner.beyond_quotas(request)) is not None:
        return why_never.refusal(over_quota)
    gang = (
        request.account_id if request.account_id in planner.owners else None,
        request.least,
        request.devices_per_node,
        request.accelerators,
        request.service,
        request.preemptible,
        request.mixtures,
        request.fraction,
        core.state.placement.policy.barred(request.grace_us) if request.grace_us > planner.shortest_grace_us else (),
    )
    if core.placeable_in != (layout := planner.layout):
        core.placeable.clear()
        core.placeable_in = layout
    if gang in core.placeable:
        return None
    impossible = planner.check(request)
    if impossible is not None:
        return why_never.refusal(impossible)
    if len(core.placeable) >= GANGS_KEPT:
        core.placeable.clear()
    core.placeable[gang] = None
    return None


def cancel(core: Core, event: Cancel) -> Outcome:
    """End it, with a checkpoint of its last state if that is wanted."""

    def act(core: Core, job: Job) -> Outcome:
        return cancel_job(core, job, save=event.save, at_once=event.at_once)

    return _with_job(core, event.job_id, event.account_id, act)


def save_now(core: Core, event: SaveNow) -> Outcome:
    return _with_job(core, event.job_id, event.account_id, _save_now)


def pause(core: Core, event: Pause) -> Outcome:
    return _with_job(core, event.job_id, event.account_id, pause_job)


def resume(core: Core, event: Resume) -> Outcome:
    return _with_job(core, event.job_id, event.account_id, _resume)


def rolled_back(core: Core, event: RolledBack) -> Outcome:
    """What was saved after that step counts no more: for what is shown, and for what a loss would cost."""
    job = _owned(core, event.job_id, event.account_id)
    if job is None:
        return refusals.not_found("job", event.job_id)
    if job.lease_id is not None:
        return refusals.conflict(
            f"job {job.job_id} is {job.state}: pause it, roll back, then resume it",
            code="job_runs",
            state=job.state.value,
        )
    if not (0 <= event.step <= INT64_MAX and 0 <= event.bytes <= INT64_MAX):
        return refusals.invalid(
            f"steps and bytes count from 0 to {INT64_MAX}, not {event.step} and {event.bytes}", code="invalid_step"
        )
    job.step = job.saved_step = event.step
    job.saved_bytes, job.again_step = event.bytes, min(job.again_step, event.step)
    core.touch(job)
    return Accepted(held_uhs=job.held_uhs)


def raise_limit(core: Core, event: RaiseLimit) -> Outcome:
    """A higher `tokens=`: held at once where the job holds all of its limit; a job parked at its limit resumes."""
    job = _owned(core, event.job_id, event.account_id)
    if job is None:
        return refusals.not_found("job", event.job_id)
    if job.state in TERMINAL:
        return _too_late(job)
    more_uhs = event.limit_uhs - job.limit_uhs
    if more_uhs <= 0 or event.limit_uhs > AMOUNT_UHS_MAX:
        return refusals.invalid(
            f"the limit is {format_ct(job.limit_uhs)} tokens already and can only be raised, to at most"
            f" {format_ct(AMOUNT_UHS_MAX)}: name more",
            code="invalid_amount",
            limit_uhs=job.limit_uhs,
        )
    if job.hold_id is not None and job.spec.hold is HoldMode.FULL:
        answer = holds.extend(core, job, amount_uhs=more_uhs)
        if isinstance(answer, Refusal):
            return answer
    before, job.limit_uhs = job.limit_uhs, event.limit_uhs
    if job.state is JobState.PARKED and job.reason in parked.WAITS_FOR_TOKENS and job.lease_id is None:
        refusal = parked.requeue(core, job)
        if refusal is not None:
            job.limit_uhs = before
            return refusal
    if job.lease_id is not None:
        deadlines.note(core, core.state.leases[job.lease_id])
    core.touch(job)
    return Accepted(granted_uhs=more_uhs, held_uhs=job.held_uhs)


def forget(core: Core, event: ForgetJobs) -> None:
    """Let go of jobs that ended without ever having run, but the newest; what ran stays for its owner to look at."""
    own = core.jobs_of.get(event.account_id, [])
    unrun = [job.job_id for job in own if job.has_ended_unrun]
    core.forget(dict.fromkeys(unrun[: max(len(unrun) - max(event.keep, 0), 0)]), event.account_id)


def park_expired(core: Core, job: Job) -> None:
    """Tokens that it held in the queue have expired and there are no others: it waits for some without a hold."""
    _withdraw(core, job)
    core.move(job, Trigger.PARK, reason=StopReason.TOKENS_EXPIRED.value)
    leases.after_lease(core, job)


def _save_now(core: Core, job: Job) -> Outcome:
    match job.state:
        case JobState.RUNNING:
            assert job.lease_id is not None
            core.instructions.append(SaveLease(lease_id=job.lease_id))
        case JobState.STOPPING | JobState.PARKED if job.stopping_for is not StopReason.CANCELLED:
            pass  # it saves as it stops, or has
        case JobState.QUEUED | JobState.STARTING:
            return refusals.conflict(
                f"the job is {job.state} and has nothing to save yet: ask again when it runs",
                code="not_running",
                state=job.state.value,
            )
        case _:
            return _too_late(job)
    return Accepted(held_uhs=job.held_uhs, facts={"saved_step": job.saved_step})


def cancel_job(core: Core, job: Job, *, save: bool, at_once: bool) -> Outcome:
    match job.state:
        case JobState.STARTING | JobState.RUNNING | JobState.STOPPING:
            assert job.lease_id is not None
            record = core.state.leases[job.lease_id]
            if at_once and not save and job.spec.kind is not JobKind.LEASE:
                leases.end_now(core, record, StopReason.CANCELLED)
            else:
                leases.stop(core, record, StopReason.CANCELLED, save=save)
        case JobState.QUEUED | JobState.PARKED:
            _withdraw(core, job)
            parked.unpark(core, job)
            core.move(job, Trigger.CANCELLED, reason=StopReason.CANCELLED.value)
            job.ended_at_us = core.now_us
            if job.lease_id is None:
                leases.after_lease(core, job)
        case _:
            return _too_late(job)
    return Accepted(held_uhs=job.held_uhs)


def pause_job(core: Core, job: Job, reason: StopReason = StopReason.PAUSED) -> Outcome:
    match job.state:
        case JobState.STARTING | JobState.RUNNING:
            assert job.lease_id is not None
            leases.stop(core, core.state.leases[job.lease_id], reason)
        case JobState.QUEUED:
            _withdraw(core, job)
            core.move(job, Trigger.PARK, reason=reason.value)
            if job.lease_id is None:
                leases.after_lease(core, job)
        case JobState.STOPPING if job.stopping_for is not StopReason.CANCELLED:
            job.stopping_for, job.resume_asked, job.reason = reason, False, reason.value
            core.touch(job)
        case JobState.PARKED:
            job.resume_asked, job.reason, job.waits_until_us = False, reason.value, None
            core.touch(job)
        case _:
            return _too_late(job)
    return Accepted(held_uhs=job.held_uhs)


def _resume(core: Core, job: Job) -> Outcome:
    if job.state in TERMINAL:
        return _too_late(job)
    leaves = job.stopping_for is not None and AFTER_STOP[job.stopping_for] is Trigger.PARK
    if job.state is JobState.QUEUED and job.waits_until_us is not None:
        job.waits_until_us = None
        backoff.end(core, job)
    if job.state is not JobState.PARKED and not leaves:
        return Accepted(held_uhs=job.held_uhs)
    if job.lease_id is None:
        return parked.requeue(core, job) or Accepted(granted_uhs=job.held_uhs, held_uhs=job.held_uhs)
    if refusal := parked.at_limit(job):
        return refusal
    job.resume_asked = True
    core.touch(job)
    return Accepted(held_uhs=job.held_uhs)


def _withdraw(core: Core, job: Job) -> None:
    """Out of the queue, if it is there: what was set aside for it is others'."""
    job.waits_until_us = None
    if core.planner.withdraw(job.job_id):
        core.replan = True


def _with_job(core: Core, job_id: JobId, account_id: AccountId, act: Callable[[Core, Job], Outcome]) -> Outcome:
    job = _owned(core, job_id, account_id)
    return refusals.not_found("job", job_id) if job is None else act(core, job)


def _owned(core: Core, job_id: JobId, account_id: AccountId) -> Job | None:
    """The job, if it is this account's: another tenant's job is answered like one that doesn't exist."""
    job = core.state.jobs.get(job_id)
    return job if job is not None and job.account_id == account_id else None


def _too_late(job: Job) -> Refusal:
    how = "is being cancelled" if job.state is JobState.STOPPING else f"has ended already: it is {job.state}"
    return refusals.conflict(f"the job {how}; submit it anew to run it again", code="job_ended", state=job.state.value)
