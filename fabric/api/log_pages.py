"""A job's log as a stream of the pages that the gate hands out, whichever way the gate is reached."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from fabric.gate.questions import AnyAnswer, JobOf
from fabric.gate.views import JobView, LogChunk
from fabric.units import JobId

LOG_POLL_S: Final = 0.2

Ask = Callable[[JobOf], Awaitable[AnyAnswer]]
ReadPage = Callable[[str, str, dict[str, int]], Awaitable[list[LogChunk]]]
"""(job, account, bytes already had) → what there is beyond them."""


async def log_pages(
    ask: Ask, read_page: ReadPage, job_id: str, *, offsets: dict[str, int], follow: bool
) -> AsyncIterator[LogChunk]:
    """All pages from `offsets` on; with `follow` until the job has ended or is parked."""
    have = dict(offsets)
    while True:
        job = await ask(JobOf(job_id=JobId(job_id)))
        if not isinstance(job, JobView):
            return
        news = await read_page(job_id, job.account_id, have)
        for chunk in news:
            have[f"{chunk.attempt}/{chunk.rank}"] = chunk.offset + len(chunk.data)
            yield chunk
        parked = job.state == "parked" and job.lease_id is None
        if not news and (job.settled or parked or not follow):
            return
        if not news:
            await asyncio.sleep(LOG_POLL_S)
