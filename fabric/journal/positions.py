"""Kept positions: how far each follower is that acts on the world, and so can't be made anew from the journal.

By the follower's name; beside the projection and not in it, because that may be thrown away at any time.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import apsw
import asyncpg

from fabric.journal import integrity
from fabric.journal.followers import Position
from fabric.journal.postgres import Line
from fabric.journal.sqlite import BUSY_MS, keep_private

_MAKE: Final = (
    "CREATE TABLE IF NOT EXISTS positions (name TEXT PRIMARY KEY, seq INTEGER NOT NULL, mark BLOB NOT NULL) STRICT"
)


class SqlitePositions:
    """In a file of their own, each durable when it is saved."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: apsw.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="positions")

    async def load(self, name: str) -> Position | None:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._load, name)

    async def save(self, name: str, position: Position) -> None:
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self._save, name, position))

    async def close(self) -> None:
        """Let go."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)

    def _load(self, name: str) -> Position | None:
        try:
            for seq, mark in self._open().execute("SELECT seq, mark FROM positions WHERE name = ?", (name,)):
                return Position(int(seq), bytes(mark))
        except (apsw.Error, OSError) as error:
            raise integrity.full(f"{type(error).__name__}: {error}") from error
        return None

    def _save(self, name: str, position: Position) -> None:
        try:
            self._open().execute(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)", (name, position.seq, position.mark)
            )
        except (apsw.Error, OSError) as error:
            raise integrity.full(f"{type(error).__name__}: {error}") from error

    def _open(self) -> apsw.Connection:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            keep_private(self._path)
            self._file = apsw.Connection(str(self._path))
            self._file.set_busy_timeout(BUSY_MS)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = FULL")
            self._file.execute(_MAKE)
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class PostgresPositions:
    """In a table of a schema, which is made when it is needed."""

    def __init__(self, dsn: str, *, schema: str) -> None:
        """`schema` may be the journal's own."""
        self._line = Line(dsn)
        self._schema = schema
        self._table = f"{schema}.follower_positions"

    async def load(self, name: str) -> Position | None:
        async def load(line: asyncpg.Connection) -> Position | None:
            await self._make(line)
            query = f"SELECT seq, mark FROM {self._table} WHERE name = $1"  # noqa: S608 - a name of ours
            row = await line.fetchrow(query, name)
            return None if row is None else Position(row["seq"], row["mark"])

        return await self._line.call(load, again=True)

    async def save(self, name: str, position: Position) -> None:
        values = "VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE SET seq = excluded.seq, mark = excluded.mark"

        async def save(line: asyncpg.Connection) -> None:
            await self._make(line)
            query = f"INSERT INTO {self._table} {values}"
            await line.execute(query, name, position.seq, position.mark)

        await self._line.call(save, again=True)

    async def close(self) -> None:
        """Let go."""
        await self._line.hang_up()

    async def _make(self, line: asyncpg.Connection) -> None:
        await line.execute(f"CREATE SCHEMA IF NOT EXISTS {self._schema}")
        columns = "(name TEXT PRIMARY KEY, seq BIGINT NOT NULL, mark BYTEA NOT NULL)"
        await line.execute(f"CREATE TABLE IF NOT EXISTS {self._table} {columns}")
