"""A job's logs: from the machines while it runs, from the archive afterwards. Whoever follows a job asks again."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from fabric.cluster.agents import Agents
from fabric.cluster.attempts import Attempt
from fabric.errors import NotFound
from fabric.gate.views import LogChunk
from fabric.storage.archive import Archive
from fabric.storage.log_ends import Piece, pieces_of
from fabric.system.client_threads import aside

_CHUNK_BYTES: Final = 256 * 1024
_REMEMBERED_MAX: Final = 10_000


class JobLogs:
    """Reads what is new."""

    def __init__(self, *, archive: Archive, agents: Agents, attempts_of: Callable[[str], Sequence[Attempt]]) -> None:
        self._archive = archive
        self._agents = agents
        self._attempts_of = attempts_of
        self._ended_at: dict[str, int] = {}
        """How long the archived logs are whose end was read: it isn't asked for again."""

    async def read(self, job_id: str, *, account_id: str, offsets: Mapping[str, int]) -> AsyncIterator[LogChunk]:
        """What there is beyond `offsets` ("attempt/rank" → bytes already had), in order within each rank.

        Attempts before those that run are told first. Else the machines are asked before the archive: a log that is moved
        there meanwhile is found there.
        """
        had = dict(offsets)
        own = [attempt for attempt in self._attempts_of(job_id) if attempt.lease.account_id == account_id]
        attempts = sorted(own, key=lambda attempt: attempt.lease.epoch)
        first = attempts[0].lease.epoch if attempts else 1
        prefix = f"jobs/{account_id}/{job_id}/logs"
        reads = [self._running(attempts, had), self._archived(prefix, had)]
        if first > 1 and not any(_epoch_of(each) >= first for each in had):
            reads.insert(0, self._archived(prefix, had, before=first))
        for read in reads:
            async for chunk in read:
                had[f"{chunk.attempt}/{chunk.rank}"] = chunk.offset + len(chunk.data)
                yield chunk

    async def _running(self, attempts: Sequence[Attempt], had: Mapping[str, int]) -> AsyncIterator[LogChunk]:
        for attempt in attempts:
            epoch = attempt.lease.epoch
            for order, address in attempt.ranks():
                offset = had.get(f"{epoch}/{order.rank}", 0)
                data = await self._agents.read_log(address, str(order.log_file), offset=offset, limit=_CHUNK_BYTES)
                if data:
                    yield LogChunk(rank=order.rank, attempt=epoch, offset=offset, data=data)

    async def _archived(
        self, prefix: str, had: Mapping[str, int], *, before: int | None = None
    ) -> AsyncIterator[LogChunk]:
        for (epoch, rank), pieces in pieces_of(await aside(self._archive.list, prefix)).items():
            if (before is not None and epoch >= before) or pieces[0].start:
                continue
            offset = had.get(f"{epoch}/{rank}", 0)
            last = pieces[-1].key
            if offset and offset >= self._ended_at.get(last, offset + 1):
                continue
            for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
                if following is not None and offset >= following.start:
                    continue
                offset = max(offset, piece.start)
                async with aclosing(self._of_piece(piece, offset)) as parts:
                    async for data in parts:
                        yield LogChunk(rank=rank, attempt=epoch, offset=offset, data=data)
                        offset += len(data)
            self._note_end(last, offset)

    async def _of_piece(self, piece: Piece, offset: int) -> AsyncGenerator[bytes]:
        """What a piece has from an offset of its log on."""
        while True:
            try:
                data = await aside(self._archive.get_range, piece.key, offset - piece.start, _CHUNK_BYTES)
            except NotFound:
                return
            if data:
                yield data
            offset += len(data)
            if len(data) < _CHUNK_BYTES:
                return

    def _note_end(self, key: str, size: int) -> None:
        if len(self._ended_at) >= _REMEMBERED_MAX:
            self._ended_at.clear()
        self._ended_at[key] = size


def _epoch_of(told: str) -> int:
    """Of which attempt an offset's "attempt/rank" speaks."""
    return int(told.partition("/")[0])
