"""The gate port over whatever answers as the gate does: the gate in this very process, or the Ray actor of it.

Blobs go to the archive by threads of their own, never through the gate nor over its event loop. What was begun for a
client that has gone is brought to its end: cancelling a call must not leave the gate with half of something.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import IO, Any, Final, Protocol, TypeVar

from fabric.api.archive_watch import ArchiveWatch
from fabric.api.log_pages import log_pages
from fabric.checkpoints import Checkpoints
from fabric.checkpoints.jobs import checkpoints_in
from fabric.gate.events import AnyEvent
from fabric.gate.instructions import Outcome
from fabric.gate.questions import AnyAnswer, AnyQuestion
from fabric.gate.views import JobView, LogChunk
from fabric.storage.archive import Archive, Kept, Stored

EXPORT_PAGE: Final = 500
"""Lines: each page is made on the gate's event loop."""

_T = TypeVar("_T")


class Gate(Protocol):
    """What the gate answers to; `fabric.server.actor.GateActor` says what each is for."""

    async def decide(self, events: Sequence[AnyEvent]) -> list[Outcome]: ...

    async def ask(self, question: AnyQuestion) -> AnyAnswer: ...

    async def changes(self, account_id: str | None, after_revision: int, timeout_s: float) -> list[JobView]: ...

    async def logs(self, job_id: str, account_id: str, offsets: dict[str, int]) -> list[LogChunk]: ...

    async def export(self, account_id: str | None, since: int | None, start: int, count: int) -> list[bytes]: ...


class GateClient:
    """A `GatePort`: the gate for what is decided and known, the archive for what is kept."""

    def __init__(self, gate: Gate, *, archive: Archive) -> None:
        self._gate = gate
        self._archive = archive
        self._watch = ArchiveWatch(archive)

    async def decide(self, events: Sequence[AnyEvent]) -> list[Outcome]:
        return await self._gate.decide(events)

    async def ask(self, question: AnyQuestion) -> AnyAnswer:
        return await _to_its_end(self._gate.ask(question))

    async def changes(self, *, account_id: str | None, after_revision: int, timeout_s: float) -> list[JobView]:
        return await self._gate.changes(account_id, after_revision, timeout_s)

    def logs(self, job_id: str, *, offsets: dict[str, int], follow: bool) -> AsyncIterator[LogChunk]:
        return log_pages(self.ask, self._read_page, job_id, offsets=offsets, follow=follow)

    async def put_blob(self, key: str, data: bytes) -> None:
        await self._watch.ask(self._archive.put, key, data)

    async def kept_blobs(self, prefix: str) -> tuple[Kept, ...]:
        return await self._watch.ask(self._archive.kept, prefix)

    async def archive_stored(self, prefix: str) -> Stored:
        return await self._watch.ask(self._archive.stored, prefix)

    async def delete_blob(self, key: str) -> None:
        await self._watch.ask(self._archive.delete, key)

    async def small_blob(self, key: str, *, limit_bytes: int) -> bytes | None:
        return await self._watch.ask(self._archive.get_up_to, key, limit_bytes)

    async def fetch_blob(self, key: str, into: IO[bytes]) -> None:
        await self._watch.ask(self._archive.fetch, key, into)

    def checkpoints_of(self, account_id: str, job_id: str) -> Checkpoints:
        return checkpoints_in(self._archive, account_id, job_id)

    async def from_archive(self, work: Coroutine[Any, Any, _T]) -> _T:
        return await self._watch.wait_for(work)

    async def export(self, *, account_id: str | None, since: int | None = None) -> AsyncIterator[bytes]:
        start = 0
        while lines := await _to_its_end(self._gate.export(account_id, since, start, EXPORT_PAGE)):
            for line in lines:
                yield line
            start += len(lines)

    async def _read_page(self, job_id: str, account_id: str, offsets: dict[str, int]) -> list[LogChunk]:
        return await self._watch.wait_for(self._gate.logs(job_id, account_id, offsets))


async def _to_its_end(call: Coroutine[Any, Any, _T]) -> _T:
    return await asyncio.shield(asyncio.ensure_future(call))
