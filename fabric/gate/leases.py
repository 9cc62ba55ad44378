"""Leases: how a placed job gets its devices, is metered on them, and leaves them.

An attempt ends in two steps. `finish` is when the job's code has ended (or lost the right to go on): its owner sees the
result at once. `removed` is when nothing of the lease is left: only then is the last sample charged, the charging record
closed, the rest of the hold freed, and are the devices anybody else's. Between the two lies no gap in which a device
could be leased twice or a µHs escape.
"""

from typing import Final

from fabric.gate import (
    attempts,
    backoff,
    burning,
    deadlines,
    elastic,
    grace,
    hazards,
    holds,
    limits,
    mixture,
    notice,
    said,
    stays,
    why,
)
from fabric.gate.core import Core
from fabric.gate.events import (
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    LeaseTooLarge,
    Metered,
    Sample,
)
from fabric.gate.instructions import Lease, RemoveLease, StartLease, StopLease
from fabric.gate.lifecycle import AFTER_STOP, TERMINAL, JobState, StopReason, Trigger
from fabric.gate.state import Job, LeaseRecord
from fabric.gate.timeline import Moment, amended, noted, restored
from fabric.placement import Evict, Placed
from fabric.units import PPM, LeaseId

UNFINISHED: Final = (LeaseOutcome.LOST, LeaseOutcome.INTERRUPTED, LeaseOutcome.NO_ROOM, LeaseOutcome.FAILED)
OVERDUE_MAX: Final = 128
"""So many leases a tick looks after, so that none takes long, however many fall due at once: the rest in the next ones."""
IDLE_BELOW_PPM: Final = 50_000
"""A lease whose devices are in use for less than this part of a window is idle in it."""


def apply_plan(core: Core) -> None:
    """Carry out what the planner decides now: new leases, and victims asked to make room."""
    for step in core.planner.plan(now_us=core.now_us):
        match step:
            case Placed():
                _start(core, core.state.jobs[step.job_id], step)
            case Evict():
                why.note(core, step)
                job = core.state.jobs[step.job_id]
                assert job.lease_id is not None
                stop(core, core.state.leases[job.lease_id], StopReason.EVICTED)


def started(core: Core, event: LeaseStarted) -> None:
    """From here on it burns."""
    record = core.state.leases.get(event.lease_id)
    if record is None or record.state != "starting":
        return
    job = core.state.jobs[record.lease.job_id]
    record.state, record.started_at_us = "running", core.now_us
    job.unstarted = 0
    if job.started_at_us is None:
        job.started_at_us = core.now_us
        core.begun.append(job)
    stays.started(job.ran, at_us=core.now_us)
    core.state.sessions[event.lease_id] = burning.opened(core, job, record)
    core.planner.note_started(job.job_id, now_us=core.now_us)
    core.move(job, Trigger.STARTED, reason=notice.short(core, job) if job.saves_us else "")
    deadlines.note(core, record, runs_low_us=watch_runway(core, record))


def metered(core: Core, event: Metered) -> None:
    """Charge what the node agents saw, renew what runs low, stop what would run out."""
    for sample in event.samples:
        record = core.state.leases.get(sample.lease_id)
        if record is None or record.started_at_us is None:
            continue
        burning.charge_sample(core, record, sample)
        runs_low_us = watch_runway(core, record)
        _watch_idleness(core, record, sample)
        deadlines.note(core, record, runs_low_us=runs_low_us)


def watch_runway(core: Core, record: LeaseRecord) -> int | None:
    """Ask for more, or ask the job to checkpoint while what is held still covers its grace; when that is, if it runs."""
    if record.state != "running":
        return None
    job = core.state.jobs[record.lease.job_id]
    holds.renew(core, job)
    runs_low_us = holds.runs_low_us(core, job, record)
    if core.now_us >= runs_low_us:
        at_limit = job.burned_uhs + job.held_uhs >= job.limit_uhs
        stop(core, record, StopReason.LIMIT_REACHED if at_limit else limits.lacking(core, job))
    return runs_low_us


def stop(
    core: Core, record: LeaseRecord, reason: StopReason, *, grace_us: int | None = None, save: bool = True
) -> None:
    """Ask the job to checkpoint by a deadline that what it holds still covers. A cancellation overrides other reasons."""
    job = core.state.jobs[record.lease.job_id]
    if record.state == "removing" or (record.state == "stopping" and reason is not StopReason.CANCELLED):
        return
    job.stopping_for = record.stop_reason = reason
    if reason is StopReason.LIMIT_REACHED:
        job.parked_limit_uhs = job.limit_uhs
    if record.state == "starting":
        finish(core, record, LeaseOutcome.LOST)
        return
    allowed_us = notice.grace_us(core, job)
    grace_us = allowed_us if grace_us is None else min(grace_us, allowed_us)
    deadline_us = min(core.now_us + grace_us, max(holds.covered_until_us(core, job, record), core.now_us))
    record.deadline_us = deadline_us if record.deadline_us is None else min(record.deadline_us, deadline_us)
    record.state, record.stop_asked_at_us, record.stop_unsaved = "stopping", core.now_us, not save
    deadlines.note(core, record)
    core.planner.note_leaving(job.job_id)
    core.replan = True  # what leaves may be claimed
    core.move(job, Trigger.STOP, reason=reason.value)
    core.instructions.append(
        StopLease(lease_id=record.lease.lease_id, reason=reason.value, deadline_us=record.deadline_us, save=save)
    )


def end_now(core: Core, record: LeaseRecord, reason: StopReason) -> None:
    """End it without a notice: nobody wants what it would save."""
    if record.state != "removing":
        core.state.jobs[record.lease.job_id].stopping_for = record.stop_reason = reason
        record.stop_unsaved = True
        finish(core, record, LeaseOutcome.LOST)


def too_large(core: Core, event: LeaseTooLarge) -> None:
    """It takes room that others need: it saves, and waits for its owner."""
    record = core.state.leases.get(event.lease_id)
    if record is None or record.state not in ("starting", "running"):
        return
    core.state.jobs[record.lease.job_id].error = event.error
    stop(core, record, StopReason.NO_ROOM)


def finished(core: Core, event: LeaseFinished) -> None:
    record = core.state.leases.get(event.lease_id)
    if record is not None and record.state != "removing":
        job = core.state.jobs[record.lease.job_id]
        if event.outcome is LeaseOutcome.SAVED and job.stopping_for is None:
            if attempts.gets_on(job, record):
                job.stopping_for = StopReason.ASKED
            else:
                job.stopping_for = StopReason.STOPPED_TOO_OFTEN
                job.error = attempts.stopped_too_often(job, record, event.error)
            why = said.code(event.error) or StopReason.ASKED.value
            noted(job.timeline, Moment(at_us=core.now_us, what="lost", why=why))
        job.exit_code = event.exit_code
        finish(core, record, event.outcome, error=event.error, result_ref=event.result_ref)
        _note_step(job, event.step or (job.saved_step if record.saved else 0))


def finish(core: Core, record: LeaseRecord, outcome: LeaseOutcome, *, error: str = "", result_ref: str = "") -> None:
    """The attempt is over: decide what becomes of the job, and clear the devices."""
    job = core.state.jobs[record.lease.job_id]
    never_started = record.started_at_us is None
    given_up = outcome in UNFINISHED and _came_to_nothing(core, job, record, outcome)
    record.state, record.outcome, record.ended_at_us = "removing", outcome, core.now_us
    stays.ended(job.ran, at_us=core.now_us, how=str(record.stop_reason or outcome))
    core.instructions.append(RemoveLease(lease_id=record.lease.lease_id))
    core.planner.note_leaving(job.job_id)
    core.replan = True
    match outcome:
        case LeaseOutcome.SUCCEEDED:
            job.error, job.result_ref = "", result_ref
            core.move(job, Trigger.SUCCEEDED)
        case LeaseOutcome.FAILED if job.stopping_for is not StopReason.CANCELLED:
            job.failures += 1
            job.error, job.result_ref = error, result_ref
            if job.failures > job.spec.max_retries:
                core.move(job, Trigger.FAILED, reason=said.first_line(error))
            elif job.stopping_for is None:
                core.move(job, Trigger.REQUEUE, reason="retried")
            else:
                core.move(job, AFTER_STOP[job.stopping_for], reason=job.stopping_for.value)
        case LeaseOutcome.LOST | LeaseOutcome.INTERRUPTED if given_up and _goes_on(job):
            if attempts.is_its_own_start(job, outcome):
                job.error = error
                core.move(job, Trigger.FAILED, reason=said.first_line(error))
            else:
                job.error = attempts.lost_too_often(job, error)
                core.move(job, Trigger.PARK, reason=attempts.LOST_TOO_OFTEN)
        case LeaseOutcome.LOST | LeaseOutcome.INTERRUPTED if job.stopping_for is None:
            job.error = error if never_started else job.error
            was_lost = outcome is LeaseOutcome.LOST and not never_started
            core.move(job, Trigger.REQUEUE, reason="node_lost" if was_lost else said.first_line(error))
            backoff.set_back(core, job)
        case _:
            if outcome is LeaseOutcome.NO_ROOM:
                _note_no_room(job, error)
            assert job.stopping_for is not None  # so PAUSED is only what somebody paused
            why = said.first_line(error) if job.stopping_for is StopReason.ASKED else ""
            core.move(job, AFTER_STOP[job.stopping_for], reason=why or job.stopping_for.value)
    job.stopping_for = None
    if job.state in TERMINAL:
        job.ended_at_us = core.now_us


def _came_to_nothing(core: Core, job: Job, record: LeaseRecord, outcome: LeaseOutcome) -> bool:
    """Note that the attempt did not end as it was to. Whether that was once too often."""
    if record.started_at_us is not None and job.stopping_for is None:
        noted(job.timeline, Moment(at_us=core.now_us, what="lost", why=outcome.value))
    return attempts.is_one_too_many(job, record, outcome, now_us=core.now_us)


def _note_no_room(job: Job, error: str) -> None:
    """It would be stopped again for the same: it waits for its owner, unless that has said what is to become of it."""
    job.error = error
    if _goes_on(job):
        job.stopping_for = StopReason.NO_ROOM


def removed(core: Core, event: LeaseRemoved) -> None:
    """Nothing of the lease is left: charge its last sample, close its record, free its devices and its hold."""
    record = core.state.leases.get(event.lease_id)
    if record is None:
        return
    if record.state != "removing":
        finish(core, record, LeaseOutcome.LOST, error="the lease was removed from outside")
    job = core.state.jobs[record.lease.job_id]
    _note_step(job, event.step)
    if record.started_at_us is not None:
        attempts.close(core, job, record, event.final)
    core.planner.release(job.job_id, now_us=core.now_us)
    core.replan = True
    del core.state.leases[event.lease_id]
    core.watch.forget(event.lease_id)
    job.lease_id = None
    core.touch(job)
    after_lease(core, job)


def _goes_on(job: Job) -> bool:
    """Whether a job whose attempt has ended so would be queued again."""
    return job.stopping_for is None or AFTER_STOP[job.stopping_for] is Trigger.REQUEUE


def _note_step(job: Job, step: int) -> None:
    """How far the attempt came, if it told: what came after its last checkpoint is lost."""
    if step:
        job.step = max(step, job.saved_step)
        amended(job.timeline, step=job.step, lost_steps=job.step - job.saved_step)


def after_lease(core: Core, job: Job) -> None:
    """What becomes of a job that has no lease (any more): back to the queue, parked without a hold, or settled."""
    if job.state is JobState.QUEUED:
        holds.renew(core, job)
        expired = holds.wait(core, job) > 0
        if job.held_uhs and not expired:
            backoff.enqueue(core, job)
            return
        _park_empty(core, job, expired=expired)
    holds.close(core, job)
    core.touch(job)
    if job.state is JobState.PARKED:
        core.state.parked.setdefault(job.account_id, []).append(job.job_id)
        if job.reason == StopReason.SPENDING_LIMIT:
            backoff.wait_until(core, job, limits.opens_us(core, job, holds.wanted_uhs(core, job)))
    else:
        core.settle(job)


def _park_empty(core: Core, job: Job, *, expired: bool) -> None:
    """Nothing runs that is not covered: a job that should go on and has nothing left waits for tokens or a limit."""
    at_limit = job.burned_uhs >= job.limit_uhs
    if at_limit:
        job.parked_limit_uhs = job.limit_uhs
    lacking = StopReason.TOKENS_EXPIRED if expired else limits.lacking(core, job)
    reason = StopReason.LIMIT_REACHED if at_limit else lacking
    job.waits_until_us = None
    core.move(job, Trigger.PARK, reason=reason.value)


def saved(core: Core, event: LeaseSaved) -> None:
    """A checkpoint is durable: what was burned until now is no longer at risk."""
    record = core.state.leases.get(event.lease_id)
    session = core.state.sessions.get(event.lease_id)
    if record is None or session is None:
        return
    session.mark_durable()
    job = core.state.jobs[record.lease.job_id]
    took_us = event.write_us
    if record.state == "stopping" and record.stop_asked_at_us is not None:
        durable_us = core.now_us - record.stop_asked_at_us
        took_us = max(took_us, durable_us)
        amended(job.timeline, durable_us=durable_us)
    job.saves_us = grace.with_one_more(job.saves_us, took_us)
    record.saved = True
    job.saved_step, job.saved_bytes, job.saved_at_us, job.saved_on = event.step, event.bytes, core.now_us, job.nodes
    attempts.note_save(job, session)
    if event.restore_us:
        job.restore_us = event.restore_us
        restored(job.timeline, event.restore_us)
    needed_us = grace.needed_us(job.saves_us) or 0
    core.planner.note_checkpoint(job.job_id, now_us=core.now_us, write_us=needed_us, restore_us=job.restore_us)
    core.touch(job)
    if elastic.should_grow(core, job, record):
        stop(core, record, StopReason.RESIZED)


def overdue(core: Core) -> None:
    """Deadlines that have passed, time limits, and leases that nobody has metered for too long: those due first, as many as a
    tick looks after.
    """
    leases = core.state.leases
    for lease_id in core.watch.take_due(
        core.now_us, lambda lease_id: deadlines.due_us(core, leases[lease_id]), most=OVERDUE_MAX
    ):
        record = leases[lease_id]
        due_us = deadlines.due_us(core, record)
        if due_us is None or due_us > core.now_us:  # else whatever a tick found would depend on who ticks
            deadlines.note(core, record)
            continue
        if record.state == "stopping":
            finish(core, record, LeaseOutcome.LOST, error="did not end within its grace")
            continue
        burning.charge_silence(core, record)
        if core.now_us >= holds.runs_low_us(core, core.state.jobs[record.lease.job_id], record):
            watch_runway(core, record)
        _watch_time_limit(core, record)
        deadlines.note(core, record)


def _start(core: Core, job: Job, placed: Placed) -> None:
    core.state.leases_made += 1
    job.attempts += 1
    job.nodes = tuple([node_id for node_id, _ in placed.shares])
    pool = f"{placed.pool}/{placed.accelerator}"
    lease = Lease(
        lease_id=LeaseId(f"{job.job_id}.{job.attempts}"),
        job_id=job.job_id,
        account_id=job.account_id,
        name=job.spec.name,
        kind=job.spec.kind,
        epoch=job.attempts,
        accelerator=mixture.name(placed) if placed.kinds else placed.accelerator,
        shares=mixture.shares(placed),
        payload=job.spec.payload,
        data=tuple([each.prefix for each in job.spec.data]) if job.spec.data else (),
        mix=job.spec.mix,
        loss_every_us=hazards.loss_every_us(
            core.state.hazards, pool, outlasts_notice=bool(job.saves_us) and notice.outlasts(core, job)
        ),
        fraction=job.spec.fraction,
    )
    core.state.leases[lease.lease_id] = LeaseRecord(
        lease=lease,
        account_id=job.account_id,
        weight_ppm=mixture.weight_ppm(core, job, placed)
        if placed.kinds
        else holds.weight_of(core, job, placed.accelerator),
        pool=pool,
        because=placed.because,
    )
    core.watch.add(lease.lease_id)
    job.lease_id, job.accelerator, job.exit_code = lease.lease_id, lease.accelerator, None
    stays.placed(job.ran, lease)
    holds.run(core, job)
    core.move(job, Trigger.PLACE, reason=notice.short(core, job) if job.saves_us else "")
    core.instructions.append(StartLease(lease=lease))


def _watch_time_limit(core: Core, record: LeaseRecord) -> None:
    job = core.state.jobs[record.lease.job_id]
    assert record.started_at_us is not None
    if job.spec.time_limit_us is None:
        return
    if job.ran_us + core.now_us - record.started_at_us >= job.spec.time_limit_us:
        stop(core, record, StopReason.TIME_LIMIT)


def _watch_idleness(core: Core, record: LeaseRecord, sample: Sample) -> None:
    """Note since when the devices are idle, by the meters alone; park the job if its owner wants that."""
    if record.state != "running" or sample.estimated:
        return
    if sample.busy_us * PPM >= IDLE_BELOW_PPM * record.lease.devices * max(sample.window_us, 1):
        record.idle_since_us = None
        return
    if record.idle_since_us is None:
        record.idle_since_us = core.now_us - min(sample.window_us, core.now_us - (record.started_at_us or 0))
    dwell_us = core.state.jobs[record.lease.job_id].spec.auto_park_us
    if dwell_us is not None and core.now_us - record.idle_since_us >= dwell_us:
        stop(core, record, StopReason.IDLE)
