"""What follows from an event for those who had no part in it.

Time goes first: whatever fell due since the last event happens as if it had been seen to on the dot, so that no answer
depends on how often anybody ticks. Last come those whom the event's transfers concern: who used tokens stands further
back in line, and where tokens have become free, jobs that waited for them go on.
"""

from typing import Final

from fabric.charging import plans
from fabric.gate import (
    auto_top_up,
    closing,
    credit,
    dated_prices,
    holds,
    invoices,
    jobs,
    keys,
    leases,
    parked,
    subscriptions,
)
from fabric.gate.core import Core
from fabric.ledger.expiry import count_due
from fabric.ledger.transfers import CT
from fabric.units import AccountId, JobId

PORTION: Final = 256
"""So much of what falls due by time alone a tick sees to, so that no decision takes long: the rest in the next ones."""
_FREES: Final = frozenset(
    {"top_up", "bundle", "subscription", "grant", "release", "payment", "credit_note", "reinstate"}
)
"""Transfers that leave their account with more to hold than before."""


def let_time_pass(core: Core, *, most: int | None = None) -> bool:
    """Let prices begin, renew subscriptions, let holds lapse and lots expire: each dated when it fell due. Whether anything had.

    Args:
        core: whose time.
        most: so many things at most; where more is due, the core says that it is behind. None = all that is due.
    """
    now_us, prices_began = core.now_us, bool(core.state.announced) and _let_prices_begin(core)
    dunning_us, renewal_us = core.dunning_due_us, core.renewal_due_us if core.renewals else None
    is_due = (dunning_us is not None and dunning_us <= now_us) or (renewal_us is not None and renewal_us <= now_us)
    if not is_due and not core.book.is_due(now_us):
        return prices_began
    left = subscriptions.renew(core, most=most)
    invoices.follow(core)
    renewal_us = core.renewal_due_us
    until_us = now_us if renewal_us is None or renewal_us > now_us else renewal_us - 1
    given_up = core.book.sweep(now_us=until_us, most=left)
    core.behind = until_us < now_us or core.book.due_count(now_us, most=1) > 0
    if not given_up:
        return True
    keys.let_go(core)
    for hold, short_uhs in core.book.take_shrunk():
        job = core.state.jobs.get(JobId(hold.hold_id.rpartition(credit.OF_JOBS)[0]))
        if job is None or job.hold_id != hold.hold_id:
            keys.holds(core, hold.key_id, -short_uhs)
        else:
            holds.shrink(core, job, short_uhs)
            jobs.park_expired(core, job)
    return True


def _let_prices_begin(core: Core) -> bool:
    """Whether any that were announced have. What is due of invoices before is done by the terms of before."""
    now_us, have_begun = core.now_us, False
    while (since_us := dated_prices.due_us(core)) is not None and since_us <= now_us:
        invoices.follow(core, until_us=since_us - 1)
        core.now_us, have_begun = since_us, True
        dated_prices.take_effect(core)
        core.now_us = now_us
    return have_begun


def is_behind(core: Core, now_us: int) -> bool:
    """Whether more is due than one tick sees to: whoever has an event for the gate lets it tick first, so that none takes long."""
    due, renewal_us = 0, core.renewal_due_us
    if renewal_us is not None and renewal_us <= now_us:  # no cycle is shorter than a day
        due = count_due(core.renewals, now_us, most=PORTION + 1, again_us=plans.DAY_US)
    return due + core.book.due_count(now_us, most=PORTION + 1 - due) > PORTION


def follow(core: Core) -> None:
    """Note who used what, let jobs go on that waited for tokens, and place what can be placed now."""
    for transfer in core.book.pending:
        if transfer.kind == "capture" and transfer.postings[0].asset == CT:
            core.planner.note_usage(
                AccountId(transfer.account_id),
                uhs=transfer.postings[-1].amount,
                now_us=core.now_us,
                job_id=JobId(transfer.ref.rpartition(credit.OF_JOBS)[0]),
            )
        elif transfer.kind in _FREES:
            core.freed[AccountId(transfer.account_id)] = None
    for account_id in core.freed:
        if account_id in core.state.parked:
            parked.resume_waiting(core, account_id)
    if core.replan:
        leases.apply_plan(core)
    for job in core.held:
        if job.lease_id is None:
            holds.wait_if_queued(core, job)
    closing.follow(core)
    if core.state.till.auto:
        auto_top_up.follow(core)
