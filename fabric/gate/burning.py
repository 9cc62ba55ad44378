"""What a lease burns: its charging session, from the first sample to the last.

Samples of the node agents are charged as they come; time that nobody metered is charged as estimated once it is too long to
be a delay. What the hold no longer covers is the operator's loss, never the customer's debt. Knows nothing of why a lease
begins or ends.
"""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from fabric.charging.clockwork import Terms
from fabric.charging.records import Cdr
from fabric.charging.sessions import ChargingSession, Due
from fabric.gate import cadence, holds, keys, mixture, prices_then
from fabric.gate.core import Core
from fabric.gate.events import LeaseOutcome, Sample
from fabric.gate.state import Job, LeaseRecord
from fabric.gate.timeline import amended
from fabric.units import AccountId

ROUNDING_US: Final = 1_000_000
"""What the last sample may miss of the lease's time without being charged: in the customer's favour."""


def opened(core: Core, job: Job, record: LeaseRecord) -> ChargingSession:
    """From now on it burns."""
    return ChargingSession.open(
        account_id=job.account_id,
        job_id=job.job_id,
        lease_id=record.lease.lease_id,
        name=job.spec.name,
        service=str(job.spec.service),
        accelerator=record.lease.accelerator,
        devices=record.lease.devices,
        fraction=record.lease.fraction,
        terms=terms_of(core, job, record),
        started_at_us=core.now_us,
    )


def terms_of(core: Core, job: Job, record: LeaseRecord) -> tuple[Terms, ...]:
    """What a device of the lease weighs, by the clock, from now on: by the prices in force, then by those that are announced."""
    tier = core.state.accounts[job.account_id].plan
    kinds, service = mixture.kinds(record.lease), str(job.spec.service)
    if not core.coming:
        return (core.prices.terms(kinds, service=service, tier=tier, since_us=core.now_us, alone=True),)
    lists = [(core.now_us, core.prices), *core.coming]
    return tuple([prices.terms(kinds, service=service, tier=tier, since_us=since_us) for since_us, prices in lists])


def foresee(core: Core) -> None:
    """Other prices are announced than before: whatever burns pays them from their moment on."""
    for lease_id, session in core.state.sessions.items():
        record = core.state.leases[lease_id]
        if record.ended_at_us is None:
            later = terms_of(core, core.state.jobs[record.lease.job_id], record)[1:]
            session.foresee(later, now_us=core.now_us)


def charge_sample(core: Core, record: LeaseRecord, sample: Sample) -> None:
    session = core.state.sessions[record.lease.lease_id]
    from_us, until_us = session.at_us, core.now_us if record.ended_at_us is None else record.ended_at_us
    dues = session.charge(
        seq=sample.seq,
        window_us=sample.window_us,
        busy_us=sample.busy_us,
        estimated=sample.estimated,
        now_us=until_us,
        cuts=_cuts(core, session),
    )
    _charge(core, record, session, dues, from_us=from_us)


def charge_silence(core: Core, record: LeaseRecord) -> None:
    """Nobody has metered it for too long."""
    assert record.started_at_us is not None
    session = core.state.sessions[record.lease.lease_id]
    unmetered_us = core.now_us - record.started_at_us - session.metered_us
    if unmetered_us > core.silence_us:
        _charge_gap(core, record, session, unmetered_us)


def close(core: Core, job: Job, record: LeaseRecord, final: Sample | None, *, refunds: bool) -> Cdr:
    """Charge the last sample and close the record, which is returned; lost work is given back if the customer didn't ask for
    the end, as far as a job that saves as often as it should can lose it.
    """
    assert record.started_at_us is not None
    assert record.ended_at_us is not None
    if final is not None:
        charge_sample(core, record, final)
    session = core.state.sessions.pop(record.lease.lease_id)
    unmetered_us = record.ended_at_us - record.started_at_us - session.metered_us
    if unmetered_us > (0 if final is None else ROUNDING_US):
        _charge_gap(core, record, session, unmetered_us)
    if refunds:
        most_us = cadence.refundable_us(job.saves_us, loss_every_us=record.lease.loss_every_us)
        given_uhs = session.refund_lost(most_us=most_us)
        amended(job.timeline, refunded_uhs=given_uhs)
        if session.lost_uhs:  # it saved less often than it should have
            amended(job.timeline, lost_uhs=session.lost_uhs, unsaved=job.saved_at_us is None)
        job.given_back_uhs += given_uhs
        holds.refund(core, job, given_uhs)
    elif record.outcome is not LeaseOutcome.SUCCEEDED:
        amended(job.timeline, lost_uhs=session.lost_uhs, unsaved=job.saved_at_us is None)
    ended = str(record.outcome) if record.outcome else ""
    closed = session.close(ended=ended, at_us=record.ended_at_us)
    if job.key_id or job.spec.tags:
        whose = keys.worked_for(core, job.key_id or "", account_id=job.account_id)
        closed = replace(closed, tags=job.spec.tags, **whose)
    core.records.append(closed)
    job.ran_us += record.ended_at_us - record.started_at_us
    return closed


def _charge_gap(core: Core, record: LeaseRecord, session: ChargingSession, window_us: int) -> None:
    from_us = session.at_us
    dues = session.charge_gap(window_us=window_us, cuts=_cuts(core, session))
    _charge(core, record, session, dues, from_us=from_us)


def _cuts(core: Core, session: ChargingSession) -> tuple[int, ...]:
    """Where a token began to cost something else, in what isn't metered yet."""
    if not core.state.plan_prices:
        return ()
    return prices_then.turns(core, AccountId(session.account_id), after_us=session.at_us, until_us=core.now_us)


def _charge(core: Core, record: LeaseRecord, session: ChargingSession, dues: Sequence[Due], *, from_us: int) -> None:
    """Capture what is due since a moment; what the hold no longer covers is the operator's loss, never the customer's debt."""
    job = core.state.jobs[record.lease.job_id]
    for due in prices_then.by_price(core, job.account_id, dues, from_us=from_us):
        if due.uhs > 0:
            captured_uhs = holds.capture(core, job, due.uhs, from_us=from_us, until_us=due.until_us)
            session.absorb(due.uhs - captured_uhs)
            core.touch(job)
        from_us = due.until_us
