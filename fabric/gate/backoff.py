"""How long a job waits before it is tried again whose attempts come to nothing: longer with each, so that an outage uses none up.

Where the platform loses an attempt it may lose the next one for the same reason: on a node that Ray doesn't know to be gone
yet, or before a service that starts anew. So only the first is tried again at once. Its owner's word (`resume`) ends the wait.
"""

import heapq
from collections.abc import Callable
from typing import Final

from fabric.gate import requests
from fabric.gate.core import Core
from fabric.gate.lifecycle import JobState
from fabric.gate.state import Job

TRIED_MAX: Final = 128
WAITS_US: Final = (0, 2_000_000, 8_000_000, 32_000_000, 120_000_000)
"""After the first attempt in a row that came to nothing, after the second, and so on; the last one for all after it."""


def set_back(core: Core, job: Job) -> None:
    """An attempt came to nothing by itself: the job is tried again, from then on."""
    wait_us = WAITS_US[min(job.losses + job.unstarted, len(WAITS_US)) - 1]
    job.waits_until_us = core.now_us + wait_us if wait_us else None


def enqueue(core: Core, job: Job) -> None:
    """The job waits for devices: from now on, or once its wait is over."""
    if job.waits_until_us is None or job.waits_until_us <= core.now_us:
        job.waits_until_us = None
        requests.enqueue(core, job)
    else:
        heapq.heappush(core.backing_off, (job.waits_until_us, job.job_id))


def end(core: Core, job: Job) -> None:
    """Its owner says that it is to go on now."""
    if job.lease_id is None:
        enqueue(core, job)
    core.touch(job)


def wait_until(core: Core, job: Job, until_us: int | None) -> None:
    """A parked job is looked at again then, by time alone; None = only when something happens."""
    job.waits_until_us = until_us
    if until_us is not None:
        heapq.heappush(core.backing_off, (until_us, job.job_id))


def over(core: Core, try_again: Callable[[Core, Job], None]) -> None:
    """Queue those whose wait is over, and try parked ones again: of these so many that no tick takes long."""
    tried = 0
    while (first_us := next_due_us(core)) is not None and first_us <= core.now_us and tried < TRIED_MAX:
        _, job_id = heapq.heappop(core.backing_off)
        job = core.state.jobs[job_id]
        if job.state is JobState.PARKED:
            tried += 1
            try_again(core, job)
        else:
            enqueue(core, job)
            core.touch(job)


def next_due_us(core: Core) -> int | None:
    """When the first wait is over; None if nobody waits so."""
    waiting, jobs = core.backing_off, core.state.jobs
    while waiting:
        until_us, job_id = waiting[0]
        if (job := jobs.get(job_id)) is not None and job.set_back_until_us == until_us:
            return until_us
        heapq.heappop(waiting)
    return None
