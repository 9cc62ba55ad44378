"""A job's logs: from the machines while it runs, from the archive afterwards."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from fabric.adapters.agents import Agents
from fabric.adapters.archive import Archive
from fabric.adapters.leases import Attempt
from fabric.errors import NotFound
from fabric.gate.views import JobView, LogChunk
from fabric.units import LeaseId

_CHUNK_BYTES: Final = 256 * 1024
_POLL_S: Final = 0.3
_REMEMBERED_MAX: Final = 10_000
_OVER: Final = ("succeeded", "failed", "cancelled")


class JobLogs:
    """Reads, and follows."""

    def __init__(self, *, archive: Archive, agents: Agents, attempts: Mapping[LeaseId, Attempt]) -> None:
        self._archive = archive
        self._agents = agents
        self._attempts = attempts
        self._going_on: dict[str, bool] = {}
        self._ended_at: dict[str, int] = {}
        """How long the archived logs are that were read last: what was read to its end isn't fetched again."""

    def note(self, jobs: Sequence[JobView]) -> None:
        """Remember which jobs may still print."""
        for job in jobs:
            if job.state in _OVER:
                self._going_on.pop(job.job_id, None)
            else:
                self._going_on[job.job_id] = True

    async def read(
        self, job_id: str, *, account_id: str, offsets: Mapping[str, int], follow: bool
    ) -> AsyncIterator[LogChunk]:
        """Chunks in order within each rank; with `follow` until the job is over. The last one says `end`."""
        had = dict(offsets)
        last = (1, 0)
        while True:
            may_print = self._may_print(job_id)
            async for chunk in self._news(job_id, account_id, had):
                had[f"{chunk.attempt}/{chunk.rank}"] = chunk.offset + len(chunk.data)
                last = (chunk.attempt, chunk.rank)
                yield chunk
            if not follow or not may_print:
                break
            await asyncio.sleep(_POLL_S)
        attempt, rank = last
        yield LogChunk(rank=rank, attempt=attempt, offset=had.get(f"{attempt}/{rank}", 0), data=b"", end=True)

    def _note_end(self, key: str, size: int) -> None:
        if len(self._ended_at) >= _REMEMBERED_MAX:
            self._ended_at.clear()
        self._ended_at[key] = size

    def _may_print(self, job_id: str) -> bool:
        return self._going_on.get(job_id, False) or any(a.lease.job_id == job_id for a in self._attempts.values())

    async def _news(self, job_id: str, account_id: str, had: Mapping[str, int]) -> AsyncIterator[LogChunk]:
        prefix = f"jobs/{account_id}/{job_id}/logs"
        kept = set()
        for key in await asyncio.to_thread(self._archive.list, prefix):
            epoch, rank = (int(part) for part in key.rsplit("/", 2)[1:])
            kept.add((epoch, rank))
            offset = had.get(f"{epoch}/{rank}", 0)
            if offset and offset >= self._ended_at.get(key, offset + 1):
                continue
            try:
                data = await asyncio.to_thread(self._archive.get, key)
            except NotFound:
                continue
            self._note_end(key, len(data))
            data = data[offset:]
            for chunk in _chunks(epoch, rank, offset, data):
                yield chunk
        for attempt in [a for a in self._attempts.values() if a.lease.job_id == job_id]:
            for order, address in zip(attempt.orders, attempt.rank_addresses(), strict=False):
                epoch, offset = attempt.lease.epoch, had.get(f"{attempt.lease.epoch}/{order.rank}", 0)
                if attempt.lease.account_id != account_id or (epoch, order.rank) in kept:
                    continue
                data = await self._agents.read_log(address, str(order.log_file), offset=offset, limit=_CHUNK_BYTES)
                for chunk in _chunks(epoch, order.rank, offset, data):
                    yield chunk


def _chunks(attempt: int, rank: int, offset: int, data: bytes) -> list[LogChunk]:
    return [
        LogChunk(rank=rank, attempt=attempt, offset=offset + at, data=data[at : at + _CHUNK_BYTES])
        for at in range(0, len(data), _CHUNK_BYTES)
    ]
