"""The notice that nodes give before they go, against the grace that a job was found to need.

A node may be known to give less notice than others: a spot offer that is withdrawn within 30 s, a rack that is drained
within a minute. The nodes of one type in one pool count as giving the least that any of them does. A job whose save takes
longer is not placed there while others could ever take it; where none can, it is placed all the same and told to expect
that every eviction is a loss, so that it saves ahead. Either is said in its reason.
"""

import msgspec

from fabric.errors import Fact
from fabric.gate import grace
from fabric.gate.core import Core
from fabric.gate.state import Job
from fabric.ledger.scopes import Service
from fabric.placement import Request as PlacementRequest


def heeded(core: Core, job: Job, request: PlacementRequest) -> PlacementRequest:
    """The request, with the notice that the job needs where nodes that give less are to be left alone."""
    if not job.saves_us:
        return request
    needed_us = grace.needed_us(job.saves_us)
    least_us = core.planner.least_notice_us()
    if needed_us is None or least_us is None or least_us >= needed_us:
        return request
    choosy = msgspec.structs.replace(request, notice_us=needed_us)
    return request if core.planner.check(choosy) is not None else choosy


def waits(job: Job, request: PlacementRequest) -> str:
    """Why a job that heeds the notice waits; "" if it doesn't."""
    if not request.notice_us or not job.saves_us:
        return ""
    return f"waiting_for_capacity with {_seconds(request.notice_us)} of notice: its saves take that long"


def barred(core: Core, request: PlacementRequest) -> dict[str, Fact]:
    """What a submission is told of pools that its grace keeps it out of."""
    pools = core.planner.barred(request)
    if not pools:
        return {}
    return {
        "barred_pools": ", ".join(pool for pool, _ in pools),
        "grace_max_us": max(longest_us for _, longest_us in pools),
    }


def not_lent(core: Core, request: PlacementRequest) -> str:
    """What to tell a job whose grace keeps it out of pools that would take it otherwise; "" if none does."""
    barred = core.planner.barred(request)
    if not barred:
        return ""
    where = {"reserved": "lent devices", "spot": "spot devices", "dedicated": "its own nodes"}
    names = " nor on ".join(where[pool] for pool, _ in barred)
    longest_us = max(longest_us for _, longest_us in barred)
    return (
        f"waiting_for_capacity, but not on {names}: they give {_seconds(longest_us)} of grace, and it asks for"
        f" {_seconds(request.grace_us)}"
    )


def grace_us(core: Core, job: Job) -> int:
    """The grace it asked for; no more than its pool gives, if others may have to wait for its devices."""
    if not job.spec.preemptible or job.spec.service is Service.INFERENCE:
        return job.spec.grace_us
    return min(job.spec.grace_us, core.planner.longest_grace_us(job.nodes))


def given_us(core: Core, job: Job) -> int:
    """The notice that the job gets where it is: its grace, or what one of its nodes gives if that is less."""
    least_us = core.planner.least_notice_us(job.nodes)
    longest_us = grace_us(core, job)
    return longest_us if least_us is None else min(longest_us, least_us)


def outlasts(core: Core, job: Job) -> bool:
    """Whether a save takes longer than the notice that the job gets where it is."""
    needed_us = grace.needed_us(job.saves_us) if job.saves_us else None
    return needed_us is not None and needed_us > given_us(core, job)


def short(core: Core, job: Job) -> str:
    """What to say of a job that runs with less notice than it needs; "" if it has enough."""
    if not job.saves_us or not outlasts(core, job):
        return ""
    needed_us = grace.needed_us(job.saves_us) or 0
    return (
        f"saves ahead: a save needs {_seconds(needed_us)} of notice and gets {_seconds(given_us(core, job))}; a longer "
        "--grace, or nodes that give more notice, would spare that"
    )


def _seconds(us: int) -> str:
    return f"{-(-us // 1_000_000)} s"
