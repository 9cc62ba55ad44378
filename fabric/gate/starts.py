"""When a job that waits is likely to start: learned from the jobs that started last and from those that wait.

Reckoned when somebody asks, at most once a minute for all who do: no event pays for it, and nothing of it is kept in the state.
"""

from itertools import islice
from typing import Final

from fabric.gate.core import Core
from fabric.gate.state import Job
from fabric.placement import Request as PlacementRequest
from fabric.placement import forecast
from fabric.placement.forecast import Fact, Kind, Range, Starts
from fabric.placement.jobs import class_of
from fabric.placement.state import Queued

_EVERY_US: Final = 60_000_000
_WAITING_MAX: Final = 500
"""Of those that wait, the ones that have waited longest are learned from."""


def of(core: Core, job: Job, now_us: int) -> Range | None:
    """When a job that waits starts, from now on; None if it doesn't wait, or too little is known."""
    queued = core.planner.queued(job.job_id)
    if queued is None:
        return None
    since_us = job.submitted_at_us if job.started_at_us is None else queued.queued_at_us
    return _expected(core, _kind(core, job), job.submitted_at_us, waited_us=now_us - since_us, now_us=now_us)


def of_request(core: Core, request: PlacementRequest, now_us: int) -> Range | None:
    """When one would start that were submitted now."""
    kind = forecast.kind_of(class_of(request.service, request.tier_rank), request.accelerators, request.least)
    return _expected(core, kind, now_us, waited_us=0, now_us=now_us)


def _expected(core: Core, kind: Kind, submitted_us: int, *, waited_us: int, now_us: int) -> Range | None:
    ahead = sum(
        queued.request.submitted_at_us < submitted_us and queued.rank == kind.rank and _kind_of(queued) == kind
        for queued in core.planner.waiting()
    )
    return _learned(core, now_us).expect(kind, ahead=ahead, waited_us=max(waited_us, 0), now_us=now_us)


def _learned(core: Core, now_us: int) -> Starts:
    """What is known by the last full minute."""
    until_us = now_us - now_us % _EVERY_US
    if core.starts is None or core.starts[0] != until_us:
        core.starts = until_us, forecast.learn(_facts(core, until_us), until_us=until_us)[0]
    return core.starts[1]


def _facts(core: Core, until_us: int) -> list[Fact]:
    facts = [
        Fact(_kind(core, job), job.submitted_at_us, job.started_at_us)
        for job in core.begun
        if job.started_at_us is not None and job.started_at_us <= until_us
    ]
    facts += [
        Fact(_kind_of(queued), queued.queued_at_us, None)
        for queued in islice(core.planner.waiting(), _WAITING_MAX)
        if queued.queued_at_us == queued.request.submitted_at_us <= until_us  # for the first time
    ]
    return facts


def _kind_of(queued: Queued) -> Kind:
    return forecast.kind_of(queued.rank, queued.request.accelerators, queued.request.least)


def _kind(core: Core, job: Job) -> Kind:
    spec = job.spec
    rank = class_of(str(spec.service), core.rank_of(job.account_id))
    least = spec.devices if spec.devices_least is None else spec.devices_least
    return forecast.kind_of(rank, spec.accelerators, least)
