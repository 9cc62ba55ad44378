"""Why a job is where it is: what it waits for, what was evicted for it, and for whom it was evicted itself.

Facts only: a door makes the sentence. Of another account's job nothing is shown to a customer but its class.
"""

from typing import Final

import msgspec

from fabric.gate import starts
from fabric.gate.core import Core
from fabric.gate.state import Eviction, Job
from fabric.gate.views import EvictionView, StartView, WhyView
from fabric.placement import Evict
from fabric.placement.why import Waits
from fabric.units import AccountId, JobId

EVICTIONS_KEPT: Final = 8
"""Of one job: the newest."""


def note(core: Core, step: Evict) -> None:
    """Keep with both jobs that one makes room for the other, and why it was that one."""
    eviction = Eviction(
        at_us=core.now_us,
        job_id=step.job_id,
        for_job_id=step.for_job_id,
        why=step.reason,
        rank=step.rank,
        loss_us=step.loss_us,
        among=step.among,
    )
    for job_id in (step.job_id, step.for_job_id):
        job = core.state.jobs[job_id]
        job.evictions = (*job.evictions, eviction)[-EVICTIONS_KEPT:]


def of(core: Core, job: Job, account_id: AccountId | None, now_us: int) -> WhyView:
    """Why the job is where it is, as this account (None = an operator) may know it."""
    record = core.state.leases.get(job.lease_id) if job.lease_id else None
    found = core.planner.waits(job.job_id, now_us=now_us) if job.lease_id is None else None
    return WhyView(
        job_id=job.job_id,
        state=job.state.value,
        reason=job.reason,
        error=job.error,
        now_us=now_us,
        preemptible=job.spec.preemptible,
        accelerators=job.spec.accelerators,
        waits=None if found is None else _without_others(core, found, account_id),
        leaving_until_us=_last_deadline_us(core, found.leaving) if found is not None else None,
        until_us=record.deadline_us if record is not None and record.state == "stopping" else None,
        starts=_starts(core, job, now_us) if found is not None and found.code in ("line", "reserved", "room") else None,
        again_us=job.waits_until_us,
        setbacks=job.losses + job.unstarted,
        evictions=tuple(_shown(core, each, account_id) for each in job.evictions),
        because=None if record is None else record.because,
    )


def _starts(core: Core, job: Job, now_us: int) -> StartView | None:
    found = starts.of(core, job, now_us)
    return None if found is None else StartView(p50_us=found.p50_us, p90_us=found.p90_us, known=found.known)


def _without_others(core: Core, waits: Waits, account_id: AccountId | None) -> Waits:
    """Of those who leave for it, other accounts' jobs are not named."""
    named = [job_id if _sees(core, job_id, account_id) else JobId("") for job_id in waits.leaving]
    return msgspec.structs.replace(waits, leaving=tuple(named))


def _sees(core: Core, job_id: JobId, account_id: AccountId | None) -> bool:
    job = core.state.jobs.get(job_id)
    return job is not None and account_id in (None, job.account_id)


def _last_deadline_us(core: Core, leaving: tuple[JobId, ...]) -> int | None:
    """When the last of those that leave is gone, at the latest."""
    leases = [core.state.jobs[job_id].lease_id for job_id in leaving]
    deadlines_us = [
        record.deadline_us
        for lease_id in leases
        if lease_id and (record := core.state.leases.get(lease_id)) is not None and record.deadline_us is not None
    ]
    return max(deadlines_us, default=None)


def _shown(core: Core, eviction: Eviction, account_id: AccountId | None) -> EvictionView:
    return EvictionView(
        at_us=eviction.at_us,
        job_id=eviction.job_id if _sees(core, eviction.job_id, account_id) else "",
        for_job_id=eviction.for_job_id if _sees(core, eviction.for_job_id, account_id) else "",
        why=eviction.why,
        rank=eviction.rank,
        loss_us=eviction.loss_us,
        among=eviction.among,
    )
