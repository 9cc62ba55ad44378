"""When something is due of a lease by time alone: the end of its grace, of its tokens, of its time limit, or of its silence."""

from fabric.gate import holds
from fabric.gate.core import Core
from fabric.gate.lease_watch import LeaseWatch
from fabric.gate.state import LeaseRecord


def next_due_us(core: Core) -> int | None:
    """When `leases.overdue` next has something to do."""
    leases = core.state.leases
    return core.watch.first_us(lambda lease_id: due_us(core, leases[lease_id]))


def watch_all(core: Core) -> None:
    """Look at every lease anew: after a restart, or where what is due of all of them has changed."""
    core.watch = LeaseWatch()
    for lease_id, record in core.state.leases.items():
        core.watch.add(lease_id, due_us(core, record))


def check(core: Core) -> None:
    """Assert that no lease is looked at too late. Slow."""
    leases = core.state.leases
    assert list(core.watch.order) == list(leases), "leases are not watched in their order"
    core.watch.check(lambda lease_id: due_us(core, leases[lease_id]))


def note(core: Core, record: LeaseRecord, *, runs_low_us: int | None = None) -> None:
    """What is due of the lease may be earlier than it was. `runs_low_us`: as in `due_us`."""
    core.watch.note(record.lease.lease_id, due_us(core, record, runs_low_us=runs_low_us))


def due_us(core: Core, record: LeaseRecord, *, runs_low_us: int | None = None) -> int | None:
    """When `leases.overdue` next has something to do for this lease; None if never by time alone. `runs_low_us`: when its tokens run
    low as long as it runs, where that was just asked; None = it is asked here.
    """
    if record.state == "stopping":
        return record.deadline_us
    if record.state != "running" or record.started_at_us is None:
        return None
    job = core.state.jobs[record.lease.job_id]
    metered_us = core.state.sessions[record.lease.lease_id].metered_us
    if runs_low_us is None:
        runs_low_us = holds.runs_low_us(core, job, record)
    silent_us = record.started_at_us + metered_us + core.silence_us + 1
    if job.spec.time_limit_us is None:
        return min(runs_low_us, silent_us)
    return min(runs_low_us, silent_us, record.started_at_us + job.spec.time_limit_us - job.ran_us)
