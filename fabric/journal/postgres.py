"""The journal in PostgreSQL: for production, where the store outlives the machine that writes to it.

The same tables and promises as the SQLite journal. A batch is one statement, so one round trip and one transaction: it
moves the head only if epoch and size are still what this writer left, and inserts only if the head moved. A connection
that breaks in the middle of a commit leaves the answer open; then the head is read, and says whether it landed.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import asyncpg

from fabric.audit.merkle import EMPTY_ROOT, leaf_hash
from fabric.errors import FabricError, InvalidConfig, JournalCorrupt, Unavailable
from fabric.journal import integrity
from fabric.journal.store import Entry, Snapshot, TreeHead

T = TypeVar("T")

CONNECT_TIMEOUT_S: Final = 3.0
COMMAND_TIMEOUT_S: Final = 5.0
"""A short command or a commit that a broken network has swallowed is given up after so long, and on a new connection it is
tried again, or looked for."""
LONG_TIMEOUT_S: Final = 30.0
"""What moves a snapshot, or what is known of all entries."""
IDLE_MS: Final = 5_000
"""A transaction of which nothing more is heard is given up by the server: a take-over that a network has swallowed must not
hold its locks against the next."""
SILENT_S: Final = 10
"""Neither end of a connection waits longer for the other to confirm that it has received something."""
RETRY_AFTER_S: Final = (0.1, 0.5, 1.5)
"""How long a broken connection may take to come back before a commit is given up."""
_END_OF_TIME: Final = 2**62
_LOST: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
)
_DAMAGED: Final = (asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError)

_BEGIN: Final = f"""
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
SELECT set_config('idle_in_transaction_session_timeout', '{IDLE_MS}', false),
  set_config('tcp_user_timeout', '{SILENT_S * 1000}', false), set_config('tcp_keepalives_idle', '{SILENT_S // 2}', false),
  set_config('tcp_keepalives_interval', '2', false), set_config('tcp_keepalives_count', '3', false)
"""
_SCHEMA: Final = """
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE IF NOT EXISTS {schema}.head (
  singleton BOOLEAN PRIMARY KEY CHECK (singleton), epoch BIGINT NOT NULL, size BIGINT NOT NULL, root BYTEA NOT NULL);
CREATE TABLE IF NOT EXISTS {schema}.entries (
  seq BIGINT PRIMARY KEY, leaf BYTEA NOT NULL, leaf_hash BYTEA NOT NULL, accounts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS {schema}.account_entries (
  account_id TEXT NOT NULL, seq BIGINT NOT NULL, PRIMARY KEY (account_id, seq));
CREATE TABLE IF NOT EXISTS {schema}.snapshots (
  size BIGINT PRIMARY KEY, root BYTEA NOT NULL, edge BYTEA NOT NULL, state BYTEA NOT NULL, digest BYTEA NOT NULL);
"""
_APPEND: Final = """
WITH head AS (
  UPDATE {schema}.head SET size = $2, root = $3 WHERE epoch = $1 AND size = $4 RETURNING 1),
added AS (
  INSERT INTO {schema}.entries
  SELECT * FROM unnest($5::bigint[], $6::bytea[], $7::bytea[], $8::text[]) AS new (seq, leaf, leaf_hash, accounts)
  WHERE EXISTS (SELECT FROM head)),
indexed AS (
  INSERT INTO {schema}.account_entries
  SELECT account_id, seq FROM unnest($9::text[], $10::bigint[]) AS new (account_id, seq)
  WHERE EXISTS (SELECT FROM head))
SELECT count(*) FROM head
"""
_SNAPSHOT: Final = """
INSERT INTO {schema}.snapshots SELECT $2, $3, $4, $5, $6 WHERE EXISTS (
  SELECT FROM {schema}.head WHERE epoch = $1 FOR UPDATE)
ON CONFLICT (size) DO UPDATE SET root = $3, edge = $4, state = $5, digest = $6
RETURNING 1
"""
_FORGET: Final = """
DELETE FROM {schema}.snapshots WHERE size NOT IN (SELECT size FROM {schema}.snapshots ORDER BY size DESC LIMIT $1)
"""
_ROWS: Final = """
SELECT seq, leaf, leaf_hash, accounts FROM {schema}.entries WHERE seq >= $1 AND seq < $2 ORDER BY seq LIMIT $3
"""
_ROWS_OF: Final = """
SELECT seq, leaf, leaf_hash, accounts FROM {schema}.account_entries JOIN {schema}.entries USING (seq)
WHERE account_id = $4 AND seq >= $1 AND seq < $2 ORDER BY seq LIMIT $3
"""


class PostgresJournal:
    """A `Journal` in a schema of a database. Not open until `open()`; opening it again takes a new epoch."""

    def __init__(self, dsn: str, *, schema: str = "fabric_journal") -> None:
        """Name the place.

        Args:
            dsn: `postgresql://user:password@host:port/database`.
            schema: created when opened. One journal each.
        """
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema):
            raise InvalidConfig(f"{schema!r} can't name a schema: use lower-case letters, digits and _", schema=schema)
        self._dsn = dsn
        self._schema = schema
        self._epoch = 0
        self._writer = Line(dsn)
        self._reader = Line(dsn)

    async def exists(self) -> bool:
        query = self._sql("SELECT to_regclass('{schema}.account_entries') IS NOT NULL")
        rows = await self._reader.call(_fetch(query), again=True)
        return bool(rows[0][0])

    async def open(self) -> int:
        """Take the journal over, and check that what it holds hashes to what was sealed."""
        await self._reader.hang_up()
        await self._writer.hang_up()
        self._epoch = await self._writer.call(self._take_over)
        try:
            integrity.check_root(await self.leaf_hashes(), await self.head())
        except JournalCorrupt as error:
            async for _ in self.read():
                pass  # names the first entry whose bytes were changed, if it is bytes that were
            raise error from None
        return self._epoch

    async def head(self) -> TreeHead:
        _, head = await self._reader.call(self._head, again=True)
        return head

    async def append(self, entries: Sequence[Entry], head: TreeHead) -> None:
        start = head.size - len(entries)
        integrity.check_order(entries, start=start, head=head)
        index = dict.fromkeys((account_id, entry.seq) for entry in entries for account_id in entry.accounts)
        arguments = (
            self._epoch,
            head.size,
            head.root,
            start,
            [entry.seq for entry in entries],
            [entry.leaf for entry in entries],
            [leaf_hash(entry.leaf) for entry in entries],
            [integrity.join_accounts(entry.accounts) for entry in entries],
            [account_id for account_id, _ in index],
            [seq for _, seq in index],
        )
        for wait_s in (*RETRY_AFTER_S, None):
            try:
                moved = await self._writer.call(lambda line: line.fetchval(self._sql(_APPEND), *arguments))
                if moved or await self._landed(head, start=start):
                    return
            except Unavailable:
                if wait_s is None:
                    raise
                await asyncio.sleep(wait_s)

    async def read(
        self, start: int = 0, stop: int | None = None, *, account: str | None = None
    ) -> AsyncIterator[Entry]:
        end = _END_OF_TIME if stop is None else stop
        query, more = (self._sql(_ROWS), ()) if account is None else (self._sql(_ROWS_OF), (account,))
        while start < end:
            bounds = (start, end, integrity.ROWS_PER_READ)
            rows = await self._reader.call(_fetch(query, *bounds, *more), again=True)
            for at, (seq, leaf, stored_hash, accounts) in enumerate(rows):
                entry = Entry(seq=seq, leaf=leaf, accounts=integrity.split_accounts(accounts, seq=seq))
                yield integrity.checked(
                    entry, stored_hash=stored_hash, expected_seq=start + at if account is None else None
                )
            if len(rows) < integrity.ROWS_PER_READ:
                return
            start = rows[-1][0] + 1

    async def leaf_hashes(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        end = _END_OF_TIME if stop is None else stop
        query = "SELECT seq, leaf_hash FROM {schema}.entries WHERE seq >= $1 AND seq < $2 ORDER BY seq"
        rows = await self._reader.call(_fetch(self._sql(query), start, end), again=True)
        return integrity.in_order(((row[0], row[1]) for row in rows), start=start)

    async def stored_from(self, seq: int) -> int | None:
        query = self._sql("SELECT min(seq) FROM {schema}.entries WHERE seq >= $1")
        ((found,),) = await self._reader.call(_fetch(query, seq), again=True)
        return None if found is None else int(found)

    async def save_snapshot(self, snapshot: Snapshot) -> None:
        row = (
            snapshot.size,
            snapshot.root,
            b"".join(snapshot.edge),
            snapshot.state,
            integrity.snapshot_digest(snapshot),
        )

        async def save(line: asyncpg.Connection) -> None:
            async with line.transaction():
                if await line.fetchval(self._sql(_SNAPSHOT), self._epoch, *row, timeout=LONG_TIMEOUT_S) is None:
                    raise integrity.fenced(epoch=self._epoch, found=(await self._head(line))[0])
                await line.execute(self._sql(_FORGET), integrity.SNAPSHOTS_KEPT, timeout=LONG_TIMEOUT_S)

        await self._writer.call(save)

    async def load_snapshot(self, *, at_most: int | None = None) -> Snapshot | None:
        query = "SELECT size, root, edge, state, digest FROM {schema}.snapshots WHERE size <= $1 ORDER BY size DESC"
        rows = await self._reader.call(
            _fetch(self._sql(query), _END_OF_TIME if at_most is None else at_most), again=True
        )
        hashes = await self.leaf_hashes(0, rows[0][0]) if rows else []
        for size, root, edge, state, digest in rows:
            snapshot = Snapshot(size=size, root=root, edge=integrity.split_edge(edge), state=state)
            if integrity.agrees(snapshot, digest=digest, hashes=hashes):
                return snapshot
        return None

    async def close(self) -> None:
        await self._reader.hang_up()
        await self._writer.hang_up()

    async def _take_over(self, line: asyncpg.Connection) -> int:
        async with line.transaction():
            await line.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", self._schema)
            await line.execute(self._sql(_SCHEMA))
            await line.execute(
                self._sql("INSERT INTO {schema}.head VALUES (true, 0, 0, $1) ON CONFLICT DO NOTHING"), EMPTY_ROOT
            )
            epoch: int = await line.fetchval(self._sql("UPDATE {schema}.head SET epoch = epoch + 1 RETURNING epoch"))
            return epoch

    async def _head(self, line: asyncpg.Connection) -> tuple[int, TreeHead]:
        row = await line.fetchrow(self._sql("SELECT epoch, size, root FROM {schema}.head"))
        if row is None:
            raise integrity.corrupt("its head is missing", seq=None)
        return row[0], TreeHead(size=row[1], root=row[2])

    async def _landed(self, head: TreeHead, *, start: int) -> bool:
        """Whether a batch that moved nothing had landed before: its first answer was lost with the connection."""
        epoch, found = await self._writer.call(self._head)
        if found == head:
            return True
        if epoch != self._epoch:
            raise integrity.fenced(epoch=self._epoch, found=epoch)
        raise integrity.corrupt(
            f"the sealed size is {found.size}, not {start}, after which entries were added", seq=start
        )

    def _sql(self, text: str) -> str:
        return text.format(schema=self._schema)


class Line:
    """One connection, one call at a time, made again when it is needed."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: asyncpg.Connection | None = None
        self._busy = asyncio.Lock()

    async def call(self, use: Callable[[asyncpg.Connection], Awaitable[T]], *, again: bool = False) -> T:
        """Use the connection; `again` = try once more on a new one, for what changes nothing."""
        async with self._busy:
            try:
                return await use(await self._connect())
            except _LOST as error:
                await self._drop()
                if not again:
                    raise integrity.full(f"{type(error).__name__}: {error}") from error
            except _DAMAGED as error:
                raise integrity.corrupt(f"PostgreSQL says {error}", seq=None) from error
            except asyncpg.PostgresError as error:
                raise integrity.full(f"{type(error).__name__}: {error}") from error
            except (FabricError, AssertionError):
                raise
            except Exception as error:
                if self._connection is not None and not self._connection.is_closed():
                    raise
                await self._drop()  # whatever the driver makes of a line that breaks in its hands
                raise integrity.full(f"{type(error).__name__}: {error}") from error
        return await self.call(use)

    async def hang_up(self) -> None:
        async with self._busy:
            if self._connection is not None and not self._connection.is_closed():
                with suppress(Exception):  # it is let go whatever comes of it
                    await self._connection.close(timeout=1)
            await self._drop()

    async def _connect(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            line = await asyncpg.connect(self._dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=COMMAND_TIMEOUT_S)
            self._connection = line
            await line.execute(_BEGIN)
            _notice_silence(line)
        return self._connection

    async def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _fetch(query: str, *arguments: Any) -> Callable[[asyncpg.Connection], Awaitable[list[Any]]]:
    async def fetch(line: asyncpg.Connection) -> list[Any]:
        rows: list[Any] = await line.fetch(query, *arguments, timeout=LONG_TIMEOUT_S)
        return rows

    return fetch


def _notice_silence(line: asyncpg.Connection) -> None:
    """Have the kernel give up a connection whose other end confirms nothing any more; a socket on this machine has no need."""
    opened = line._transport.get_extra_info("socket")  # noqa: SLF001 - asyncpg has no word for it
    if opened is None or opened.family not in (socket.AF_INET, socket.AF_INET6):
        return
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", SILENT_S // 2),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", SILENT_S * 1_000),
    ):
        if hasattr(socket, name):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
