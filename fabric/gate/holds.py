"""The tokens behind jobs: how much is held, when more is asked for, and when a job must stop because it ends.

A job has at most one hold. FULL holds the whole limit before the job is queued; ROLLING holds ten minutes at the worst
burn and renews when a fifth is left. Either way the job is asked to checkpoint while what is held still covers the
grace at the worst burn, and its deadline is the moment when the hold would be empty: it can't overdraw, whatever it does.
"""

from typing import Final

from fabric.charging.rating import hold_for
from fabric.gate import limits, prices_then, refusals, standing
from fabric.gate.core import Core
from fabric.gate.events import HoldMode, JobSpec
from fabric.gate.instructions import Refusal
from fabric.gate.organisation_state import Standing
from fabric.gate.prices import PriceList
from fabric.gate.state import Job, Key, LeaseRecord
from fabric.ledger import Refused
from fabric.ledger.scopes import Use

QUANTUM_US: Final = 600_000_000
"""What a rolling hold covers at the worst burn."""
RENEW_BELOW: Final = 5
"""A rolling hold is renewed when one part in this many is left."""
MARGIN_PART: Final = 5
"""At most one part in this many of a job's limit is kept back for its grace."""


def use_of(spec: JobSpec) -> Use:
    """What the job's hold is for. "Any accelerator" may only be paid with tokens that are good on any."""
    return Use(service=spec.service, accelerators=spec.accelerators)


def worst_uhs(core: Core, job: Job, *, duration_us: int) -> int:
    """The most that the job can burn in so long on the dearest of the types it accepts, at the dearest hour and by the dearest prices
    that are known to begin meanwhile.
    """
    now = _worst_uhs(core, job, core.prices, duration_us=duration_us)
    if not core.coming:
        return now
    later = core.prices_until(core.now_us + duration_us)[1:]
    return max([now, *[_worst_uhs(core, job, prices, duration_us=duration_us) for prices in later]])


def _worst_uhs(core: Core, job: Job, prices: PriceList, *, duration_us: int) -> int:
    spec, plan = job.spec, core.state.accounts[job.account_id].plan
    return hold_for(
        devices=spec.devices,
        duration_us=duration_us,
        weight_ppm=prices.worst_ppm(spec.accelerators, service=spec.service, tier=plan),
        curve=prices.curve,
        fraction=spec.fraction,
    )


def weight_of(core: Core, job: Job, accelerator: str) -> int:
    plan = core.state.accounts[job.account_id].plan
    return core.prices.weight_ppm(accelerator, service=job.spec.service, tier=plan, at_us=core.now_us)


def quantum_uhs(core: Core, job: Job) -> int:
    """What a rolling hold is filled up to: ten minutes, or more for a job whose grace is long, because a fifth of it
    has to last for the grace.
    """
    return worst_uhs(core, job, duration_us=max(QUANTUM_US, 2 * RENEW_BELOW * job.spec.grace_us))


def wanted_uhs(core: Core, job: Job) -> int:
    """What the job's next hold must be."""
    left_uhs = job.limit_uhs - job.burned_uhs
    if job.spec.hold is HoldMode.FULL:
        return left_uhs
    return min(left_uhs, quantum_uhs(core, job))


def take(core: Core, job: Job) -> Refusal | None:
    """Hold the tokens for the job's next attempts, or say why not. A refusal changes nothing."""
    account = core.state.accounts[job.account_id]
    if account.standing is not Standing.OPEN:
        return standing.why(account)
    wanted = wanted_uhs(core, job)
    key = core.state.keys.get(job.key_id) if job.key_id else None
    has_limits = key is not None or core.state.limits
    if has_limits and (refusal := limits.within(core, job.account_id, job.key_id or "", wanted)):
        return refusal
    hold_id = f"{job.job_id}#{job.holds + 1}"
    answer = core.book.authorize(
        job.account_id,
        hold_id=hold_id,
        amount_uhs=wanted,
        use=use_of(job.spec),
        now_us=core.now_us,
        expires_at_us=None,
    )
    if isinstance(answer, Refused):
        return refusals.from_ledger(answer, remedy="tokens=")
    job.hold_id, job.holds = hold_id, job.holds + 1
    _held(core, job, key, wanted)
    core.held.append(job)
    return None


def wait(core: Core, job: Job) -> int:
    """The job is on no lease (any more): no expired lot is kept good for it. How much less it holds for that."""
    assert job.hold_id is not None
    short_uhs = core.book.wait(job.hold_id, now_us=core.now_us)
    shrink(core, job, short_uhs)
    return short_uhs


def wait_if_queued(core: Core, job: Job) -> None:
    """The job was not placed in the event in which its tokens were held: they wait with it."""
    if job.lease_id is None and job.hold_id is not None:
        core.book.note_waiting(core.book.holds[job.hold_id], now_us=core.now_us)


def note_waiting(core: Core) -> None:
    """Of a snapshot from before holds knew whether anything runs on them: those of jobs on no lease wait."""
    for job in core.state.jobs.values():
        hold = core.book.holds.get(job.hold_id) if job.hold_id and job.lease_id is None else None
        if hold is not None and not hold.waiting:
            core.book.note_waiting(hold, now_us=core.now_us)


def run(core: Core, job: Job) -> None:
    """The job has a lease: what it holds stays good until that ends."""
    assert job.hold_id is not None
    core.book.run(job.hold_id)


def shrink(core: Core, job: Job, short_uhs: int) -> None:
    """Lots have expired of which its hold had so much, and nothing else covers it."""
    _held(core, job, core.state.keys.get(job.key_id) if job.key_id else None, -short_uhs)


def within_key(core: Core, job: Job, amount_uhs: int, *, now_us: int) -> int:
    """As much of an amount as the limits of the job's key and account leave."""
    found = limits.room(core, job.account_id, job.key_id or "", now_us=now_us)
    return amount_uhs if found is None else min(amount_uhs, found.left_uhs)


def extend(core: Core, job: Job, *, amount_uhs: int, minimum_uhs: int | None = None) -> Refusal | int:
    """More for the open hold: what was granted, which may be less where a minimum is given."""
    assert job.hold_id is not None
    account = core.state.accounts[job.account_id]
    if account.standing is not Standing.OPEN:
        return standing.why(account)
    key = core.state.keys.get(job.key_id) if job.key_id else None
    found = limits.room(core, job.account_id, job.key_id or "")
    if found is not None:
        if found.left_uhs < (minimum_uhs or amount_uhs):
            return limits.refused(core, found, needed_uhs=amount_uhs, key_id=job.key_id or "")
        amount_uhs = min(amount_uhs, found.left_uhs)
    answer = core.book.extend(job.hold_id, amount_uhs=amount_uhs, now_us=core.now_us, minimum_uhs=minimum_uhs)
    if isinstance(answer, Refused):
        return refusals.from_ledger(answer, remedy="tokens=")
    _held(core, job, key, answer.granted_uhs)
    return answer.granted_uhs


def capture(core: Core, job: Job, amount_uhs: int, *, from_us: int, until_us: int) -> int:
    """Take what was burned between two moments off the hold: at most what is held. What was captured."""
    if amount_uhs <= 0 or job.hold_id is None:
        return 0
    account = core.book.accounts[job.account_id]
    owed_uhs = account.debt_uhs
    captured = core.book.capture(job.hold_id, amount_uhs=min(amount_uhs, job.held_uhs), now_us=core.now_us)
    if account.debt_uhs > owed_uhs:
        prices_then.note_debt(core, job.account_id, [(captured, from_us)], owed_uhs=owed_uhs)
        prices_then.note_on_credit(core, job, from_us=from_us, owed_uhs=owed_uhs)
    _spent(core, job, captured, from_us=from_us, until_us=until_us)
    return captured


def refund(core: Core, job: Job, amount_uhs: int) -> None:
    """Give lost work back to the open hold, lot by lot in reverse."""
    if amount_uhs > 0 and job.hold_id is not None:
        refunded = core.book.refund(
            job.hold_id,
            amount_uhs=amount_uhs,
            now_us=core.now_us,
            used_at=job.on_credit,
            todays=core.plan_of(job.account_id).price_microcny_per_ct,
        )
        assert refunded == amount_uhs, f"{job.job_id} was charged {amount_uhs - refunded} µHs outside its hold"
        _spent(core, job, -refunded, from_us=core.now_us, until_us=core.now_us)


def close(core: Core, job: Job) -> None:
    """The job no longer needs its hold: what is left is free again."""
    if job.hold_id is None:
        return
    core.book.close(job.hold_id, now_us=core.now_us)
    key = core.state.keys.get(job.key_id) if job.key_id else None
    _held(core, job, key, -job.held_uhs)
    job.hold_id = None
    core.freed[job.account_id] = None


def covered_until_us(core: Core, job: Job, record: LeaseRecord) -> int:
    """When the hold would be empty if the job burned at its worst since it was last metered."""
    return core.state.sessions[record.lease.lease_id].covered_until_us(job.held_uhs)


def runs_low_us(core: Core, job: Job, record: LeaseRecord) -> int:
    """When the job is asked to checkpoint: before its hold is empty by its grace, but at most by a fifth of its limit."""
    covered_us, worst_per_s = core.state.sessions[record.lease.lease_id].covered(job.held_uhs)
    margin_us = min(job.spec.grace_us, job.limit_uhs * 1_000_000 // (MARGIN_PART * worst_per_s))
    return covered_us - margin_us


def renew(core: Core, job: Job) -> None:
    """Ask for the next quantum of a rolling hold when a fifth or less is left of this one."""
    if job.spec.hold is not HoldMode.ROLLING:
        return
    left_uhs = job.limit_uhs - job.burned_uhs - job.held_uhs
    if left_uhs <= 0:
        return
    quantum = quantum_uhs(core, job)
    if job.held_uhs * RENEW_BELOW <= quantum:
        extend(core, job, amount_uhs=min(quantum, left_uhs), minimum_uhs=1)


def _held(core: Core, job: Job, key: Key | None, delta_uhs: int) -> None:
    job.held_uhs += delta_uhs
    core.note_held(job, delta_uhs)
    if key is not None:
        key.held_uhs += delta_uhs


def _spent(core: Core, job: Job, delta_uhs: int, *, from_us: int, until_us: int) -> None:
    job.held_uhs -= delta_uhs
    job.burned_uhs += delta_uhs
    core.note_held(job, -delta_uhs)
    key = core.state.keys.get(job.key_id) if job.key_id else None
    if key is not None:
        key.held_uhs -= delta_uhs
        key.spent_uhs += delta_uhs
    if core.state.limits:
        limits.count(core, job.account_id, job.key_id or "", delta_uhs, from_us=from_us, until_us=until_us)
