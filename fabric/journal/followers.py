"""Followers: whoever reads what happened from the journal, in order, each going on from a position of its own that is kept.

A follower reads committed entries over connections of its own and writes nothing to the journal, so it never holds the writer
back, however slow it is. What it hands on comes at least once and in order: a consumer that keeps its position with what it
has made of a batch, in one transaction, has each entry once; one that acts on the world has the last batch again after a
crash. Entries that are not there to be read are told of as gaps, never passed over in silence. A position says of which
history it is by the hash of the entry before it: in another journal, or one that was restored to an earlier time, the
consumer begins anew.

Knows nothing of what an entry says. Ideas: Kafka's consumer offsets, PostgreSQL's logical replication slots.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum
from typing import Final, Protocol

import msgspec
import structlog

from fabric.audit.merkle import leaf_hash
from fabric.errors import Conflict, FabricError, JournalCorrupt
from fabric.journal.store import Entry, TreeHead

BATCH: Final = 500
"""Entries handed on at once."""
SCAN: Final = 20_000
"""Entries that a follower of one account passes over at once."""
POLL_S: Final = 0.2
"""How often a follower looks for more: whoever can't wait reads the journal itself."""
TELL_S: Final = 5.0
"""How often it is said how far a follower is that has much to catch up with."""
PAUSE_MAX_S: Final = 30.0
"""The longest pause after something has failed again."""

log = structlog.get_logger()


class Position(msgspec.Struct, frozen=True):
    """How far a consumer has got."""

    seq: int
    """The entry to go on with."""
    mark: bytes = b""
    """The leaf hash of the entry before it; b"" where that isn't known."""


class Why(StrEnum):
    """Why entries are not there."""

    TAKEN_AWAY = "taken_away"
    """Nothing before them is there either: they were given up, as a retention does."""
    DAMAGED = "damaged"
    """They are missing between others, or don't hash to what was committed."""


class Gap(msgspec.Struct, frozen=True):
    """Entries start <= seq < stop that can't be read. A long one may come in several that join."""

    start: int
    stop: int
    why: Why


class Batch(msgspec.Struct, frozen=True):
    """What comes next, in order."""

    before: Position
    items: tuple[Entry | Gap, ...]
    """() = nothing of the account in this part of the journal: only the position moves."""
    after: Position

    @property
    def entries(self) -> list[Entry]:
        return [item for item in self.items if isinstance(item, Entry)]


class Source(Protocol):
    """What a follower reads: a `Journal`, not taken over, over connections that are its own."""

    async def head(self) -> TreeHead:
        """The last committed tree head."""

    def read(self, start: int = 0, stop: int | None = None, *, account: str | None = None) -> AsyncIterator[Entry]:
        """Entries with start <= seq < stop in order, of one account if asked."""

    async def leaf_hashes(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        """The leaf hashes of a range."""

    async def stored_from(self, seq: int) -> int | None:
        """The first entry at or after `seq` that is stored, whether it can be read or not."""


class Consumer(Protocol):
    """Who makes something of entries."""

    async def position(self) -> Position | None:
        """How far it has got, by what it has kept; None = it is new."""

    async def take(self, batch: Batch) -> None:
        """Make something of the batch. On return its position is `batch.after`, durably enough that `position` says so.

        Raises:
            Conflict: its position isn't `batch.before`: somebody else follows for it.
        """

    async def begin_anew(self, why: str) -> None:
        """Forget all: what was taken is of another history. Afterwards it is new."""


class Follower:
    """Hands the entries of a journal, or those of one account, to one consumer."""

    def __init__(
        self,
        source: Source,
        consumer: Consumer,
        *,
        name: str,
        account: str | None = None,
        first: int = 0,
        batch: int = BATCH,
    ) -> None:
        """Put them together; nothing is read yet.

        Args:
            source: the journal.
            consumer: keeps its own position.
            name: for the log.
            account: whose entries; None = all.
            first: where a new consumer begins.
            batch: entries handed on at once, at most.
        """
        self._source = source
        self._consumer = consumer
        self._name = name
        self._account = account
        self._first = first
        self._batch = batch
        self._at: Position | None = None
        """The consumer's position, as long as nothing has failed."""

    async def catch_up(self) -> Position:
        """Hand on all that is there now; the consumer's position then."""
        tell_at = time.monotonic() + TELL_S
        while await self.step():
            if self._at is not None and time.monotonic() > tell_at:
                tell_at = time.monotonic() + TELL_S
                size = (await self._source.head()).size
                log.info("follower_catches_up", follower=self._name, entry=self._at.seq, of=size)
        assert self._at is not None
        return self._at

    async def step(self) -> bool:
        """Hand on the next batch; False if there is none.

        Raises:
            FabricError: the journal can't be read now, or not at all; or what the consumer raises. Then the next step begins
                with what the consumer has kept.
        """
        try:
            position = self._at or await self._begin()
            head = await self._source.head()
            if head.size < position.seq:
                self._at = None
                return await self._lost(f"it has taken {position.seq} entries, and the journal has {head.size}")
            self._at = position
            if head.size == position.seq:
                return False
            batch = await self._next(position, head)
            await self._consumer.take(batch)
        except BaseException:
            self._at = None
            raise
        self._at = batch.after
        return True

    async def run(self) -> None:
        """Follow for ever. What fails is told of once, and tried again with longer and longer pauses."""
        failed, pause_s = "", POLL_S
        while True:
            try:
                await self.catch_up()
            except Exception as error:  # noqa: BLE001 - whatever it is, trying again is all that helps
                said = error.code if isinstance(error, FabricError) else type(error).__name__
                if failed != said:
                    log.warning("follower_failed", follower=self._name, code=said, error=str(error))
                failed = said
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
                continue
            if failed:
                log.info("follower_goes_on", follower=self._name)
            failed, pause_s = "", POLL_S
            await asyncio.sleep(POLL_S)

    # -- where to begin ------------------------------------------------------------------------------------------------

    async def _begin(self) -> Position:
        position = await self._consumer.position()
        if position is not None and position.mark and await self._mark(position.seq) not in (position.mark, b""):
            await self._lost(f"entry {position.seq - 1} is not the one it has taken")
            position = await self._consumer.position()
        return position or Position(min(self._first, (await self._source.head()).size))

    async def _lost(self, why: str) -> bool:
        log.warning("follower_begins_anew", follower=self._name, why=why)
        await self._consumer.begin_anew(why)
        return True

    async def _mark(self, seq: int) -> bytes:
        """The hash of the entry before; b"" where there is none to compare with."""
        if seq == 0:
            return b""
        try:
            found = await self._source.leaf_hashes(seq - 1, seq)
        except JournalCorrupt:
            return b""
        return found[0] if found else b""

    # -- what comes next -----------------------------------------------------------------------------------------------

    async def _next(self, position: Position, head: TreeHead) -> Batch:
        reach = self._batch if self._account is None else SCAN
        stop = min(position.seq + reach, head.size)
        items: list[Entry | Gap] = []
        at, count = position.seq, 0
        while at < stop and count < self._batch:
            found, bad = await self._read(at, stop, at_most=self._batch - count)
            items += found
            count += len(found)
            if bad is None:
                at = found[-1].seq + 1 if count >= self._batch else stop
                break
            gap = await self._gap(bad, stop)
            items.append(gap)
            at = gap.stop
        last = items[-1] if items else None
        is_last = isinstance(last, Entry) and last.seq == at - 1
        mark = leaf_hash(last.leaf) if isinstance(last, Entry) and is_last else await self._mark(at)
        return Batch(position, tuple(items), Position(at, mark))

    async def _read(self, start: int, stop: int, *, at_most: int) -> tuple[list[Entry], int | None]:
        """Entries from `start` on, and the first that can't be read, if one comes before there are enough of them."""
        found: list[Entry] = []
        whole = stop
        try:
            if self._account is not None:
                whole = await self._whole_until(start, stop)
            async for entry in self._source.read(start, whole, account=self._account):
                found.append(entry)
                if len(found) >= at_most:
                    return found, None
        except JournalCorrupt as error:
            bad = _place(error, start, stop)
            if bad > (found[-1].seq + 1 if found else start):  # a page whose end is bad shows nothing of its beginning
                found, _ = await self._read(start, bad, at_most=at_most)
            return found, None if len(found) >= at_most else bad
        if self._account is None:
            whole = found[-1].seq + 1 if found else start
        return found, whole if whole < stop else None

    async def _whole_until(self, start: int, stop: int) -> int:
        """As far as no entry is missing, whosever it would have been.

        Raises:
            JournalCorrupt: the first is.
        """
        try:
            found = await self._source.leaf_hashes(start, stop)
        except JournalCorrupt as error:
            bad = _place(error, start, stop)
            if bad == start:
                raise
            return bad
        if not found:
            raise JournalCorrupt(f"entry {start} is missing", seq=start)
        return start + len(found)

    async def _gap(self, bad: int, stop: int) -> Gap:
        first = await self._source.stored_from(0)
        why = Why.TAKEN_AWAY if first is None or first > bad else Why.DAMAGED
        at = bad
        while at < stop:
            stored = await self._source.stored_from(at)
            at = stop if stored is None else min(stored, stop)
            if at == stop or await self._is_readable(at):
                break
            at += 1
        return Gap(bad, max(at, bad + 1), why)

    async def _is_readable(self, seq: int) -> bool:
        try:
            async for _ in self._source.read(seq, seq + 1):
                return True
        except JournalCorrupt as error:
            _place(error, seq, seq + 1)
        return False


class Handler:
    """A consumer that hands each batch to a function, and keeps its position elsewhere: at least once, in order."""

    def __init__(
        self, positions: "Positions", name: str, handle: Callable[[Batch], Awaitable[None]], *, anew_at: int = 0
    ) -> None:
        """Name it.

        Args:
            positions: where positions are kept.
            name: under which its own is.
            handle: may be given the same batch, or one that begins with it, again after a crash.
            anew_at: where it goes on in another history: what it did of the former can't be undone.
        """
        self._positions = positions
        self._name = name
        self._handle = handle
        self._anew_at = anew_at

    async def position(self) -> Position | None:
        return await self._positions.load(self._name)

    async def take(self, batch: Batch) -> None:
        if batch.items:
            await self._handle(batch)
        await self._positions.save(self._name, batch.after)

    async def begin_anew(self, why: str) -> None:  # noqa: ARG002 - it is in the log
        await self._positions.save(self._name, Position(self._anew_at))


class Positions(Protocol):
    """Where positions are kept, by name."""

    async def load(self, name: str) -> Position | None:
        """What was saved last; None = nothing was."""

    async def save(self, name: str, position: Position) -> None:
        """Keep it, durably."""


def moved(before: Position, found: int | None) -> Conflict:
    """The refusal of a batch by a consumer that is elsewhere."""
    return Conflict(
        f"the batch begins at entry {before.seq}, and what comes next is {found}: somebody else follows for it",
        code="follower_elsewhere",
        begins=before.seq,
        position=found,
    )


def _place(error: JournalCorrupt, start: int, stop: int) -> int:
    """Which entry an error is about; one that names none of these is raised."""
    seq = error.facts.get("seq")
    if not isinstance(seq, int) or not start <= seq < stop:
        raise error
    return seq
