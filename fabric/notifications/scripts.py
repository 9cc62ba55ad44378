"""Scripts: what is read and written in one transaction of a small store, the same text in SQLite and in PostgreSQL.

A script is a generator: it yields a query, is sent the rows that it found, and returns what it comes to. All of it happens, or
nothing does. Parameters are `$1`, `$2`, ... in the order of their first use; tables are named `{schema}.table` (in what
makes an index `{on}table`), types `{text}`, `{int}` and `{bytes}`.
"""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import apsw
import asyncpg

from fabric.journal import integrity
from fabric.journal.postgres import Line
from fabric.journal.sqlite import BUSY_MS, keep_private, transaction
from fabric.journal.sqlite_file import SqliteFile

T = TypeVar("T")
Row = tuple[Any, ...]
Query = tuple[str, Sequence[Any]]
Script = Generator[Query, list[Row], T]

_IN_SQLITE: Final = {"schema": "main", "on": "", "text": "TEXT", "int": "INTEGER", "bytes": "BLOB"}
_IN_POSTGRES: Final = {"text": 'TEXT COLLATE "C"', "int": "BIGINT", "bytes": "BYTEA"}


class Scripts(Protocol):
    """Where scripts run. Raises `Unavailable` when the store can't be reached or is full."""

    async def run(self, script: Callable[[], Script[T]]) -> T:
        """Run one to its end, and keep it durably."""

    async def close(self) -> None:
        """Let go."""


class SqliteScripts(SqliteFile):
    """In a file that its owner alone reads (mode 0600), made when it is needed. Several processes may have it open."""

    def __init__(self, path: Path | str, made: Sequence[str]) -> None:
        """Name the place.

        Args:
            path: of the file.
            made: what makes the tables that are missing.
        """
        super().__init__(path, name="notices", translating=_translating)
        self._made = made

    async def run(self, script: Callable[[], Script[T]]) -> T:
        return await self._in(self._writing, self._run, script)

    def _run(self, script: Callable[[], Script[T]]) -> T:
        connection = self._opened()
        with transaction(connection):
            running = script()
            found: list[Row] | None = None
            try:
                while True:
                    text, given = running.send(found) if found is not None else next(running)
                    found = connection.execute(text.format(**_IN_SQLITE), tuple(given)).fetchall()
            except StopIteration as end:
                value: T = end.value
                return value

    def _opened(self) -> apsw.Connection:
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            keep_private(self.path)
            connection = apsw.Connection(str(self.path))
            connection.set_busy_timeout(BUSY_MS)
            for pragma in ("journal_mode = WAL", "synchronous = FULL"):
                connection.execute(f"PRAGMA {pragma}")
            with transaction(connection):
                for text in self._made:
                    connection.execute(text.format(**_IN_SQLITE))
            self._writer = connection
        return self._writer


class PostgresScripts:
    """In a schema of a database, made when it is needed."""

    def __init__(self, dsn: str, made: Sequence[str], *, schema: str) -> None:
        """Name the place.

        Args:
            dsn: `postgresql://user:password@host:port/database`.
            made: what makes the tables that are missing.
            schema: of these tables alone.
        """
        self._line = Line(dsn)
        self._made = made
        self._schema = schema
        self._is_made = False

    async def run(self, script: Callable[[], Script[T]]) -> T:
        async def run(line: asyncpg.Connection) -> T:
            async with line.transaction():
                await line.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", self._schema)
                if not self._is_made:
                    await line.execute(f"CREATE SCHEMA IF NOT EXISTS {self._schema}")
                    for text in self._made:
                        await line.execute(self._in_place(text))
                running = script()
                found: list[Row] | None = None
                try:
                    while True:
                        text, given = running.send(found) if found is not None else next(running)
                        found = [tuple(row) for row in await line.fetch(self._in_place(text), *given)]
                except StopIteration as end:
                    value: T = end.value
            self._is_made = True
            return value

        return await self._line.call(run)

    async def close(self) -> None:
        await self._line.hang_up()

    def _in_place(self, text: str) -> str:
        return text.format(schema=self._schema, on=f"{self._schema}.", **_IN_POSTGRES)


def _translating(call: Callable[[], T]) -> T:
    try:
        return call()
    except (apsw.Error, OSError) as error:
        raise integrity.full(f"{type(error).__name__}: {error}") from error
