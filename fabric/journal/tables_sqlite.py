"""The projection's tables in a SQLite file beside the journal's.

WAL with synchronous=NORMAL: after a loss of power the last batches may be missing, with their position, and are made again.
Whoever throws the tables away deletes the file, so one that reads looks first whether it still has the one that is there.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import apsw
import msgspec

from fabric.journal import integrity
from fabric.journal.sqlite import BUSY_MS, keep_private, transaction
from fabric.journal.sqlite_file import SqliteFile
from fabric.journal.tables import TABLES, DamagedTables, NoTables, Query, Row, Table, insert, select

P = ParamSpec("P")
T = TypeVar("T")

CACHE_KB: Final = 64_000
"""Of pages that are being written: each account's rows lie on pages of their own."""
_TYPES: Final = {"TEXT": "TEXT", "BIGINT": "INTEGER", "BYTEA": "BLOB"}
_NOT_THERE: Final = (apsw.CantOpenError,)
_DAMAGED: Final = (apsw.CorruptError, apsw.NotADBError, apsw.FormatError)


class SqliteTables(SqliteFile):
    """`Tables` in a file, which `make` creates."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path, name="projection", translating=_translating)
        self._inode = 0
        """Of the file that the reader has open."""
        self._written_inode = 0

    async def make(self) -> None:
        await self._in(self._writing, self._make)

    async def read(self, *queries: Query) -> list[list[Row]]:
        return await self._in(self._reading, self._read, queries)

    async def pick(self, table: Table, key: str, values: Sequence[Any]) -> list[Row]:
        if not values:
            return []
        among = msgspec.json.encode(list(values)).decode()
        where = {f"{key} IN (SELECT value FROM json_each(?))": (among,)}  # noqa: S608 - names of ours
        (found,) = await self.read(select(", ".join(table.columns), table, where, order=key, limit=len(values)))
        return found

    async def write(self, before: int | None, rows: Mapping[Table, Sequence[Row]]) -> bool:
        return await self._in(self._writing, self._write, before, rows)

    async def throw_away(self) -> None:
        await self.close()
        await self._in(self._writing, self._delete)

    # -- in the writing thread -----------------------------------------------------------------------------------------

    def _make(self) -> None:
        self._close_writer()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        keep_private(self.path)
        connection = self._writer = apsw.Connection(str(self.path))
        self._written_inode = self.path.stat().st_ino
        connection.set_busy_timeout(BUSY_MS)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", f"cache_size = -{CACHE_KB}"):
            connection.execute(f"PRAGMA {pragma}")
        with transaction(connection):
            for table in TABLES:
                connection.execute(_made(table))

    def _write(self, before: int | None, rows: Mapping[Table, Sequence[Row]]) -> bool:
        connection = self._writer
        if connection is None or not self._is_there():
            self._make()
            connection = self._writer
        assert connection is not None
        with transaction(connection):
            found = connection.execute("SELECT seq FROM progress").fetchall()
            if [row[0] for row in found] != ([] if before is None else [before]):
                return False
            for table, made in rows.items():
                connection.executemany(_insert(table), made)
        return True

    def _is_there(self) -> bool:
        """Whether the file is the one that is open: somebody else may have thrown it away."""
        assert self._writer is not None
        try:
            return self.path.stat().st_ino == self._written_inode
        except FileNotFoundError:
            return False

    def _delete(self) -> None:
        for end in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)

    # -- in the reading thread -----------------------------------------------------------------------------------------

    def _read(self, queries: Sequence[Query]) -> list[list[Row]]:
        connection = self._read_from()
        connection.execute("BEGIN")
        try:
            found: list[list[Row]] = [
                connection.execute(text.format(schema="main"), tuple(given)).fetchall() for text, given in queries
            ]
            return found
        finally:
            connection.execute("COMMIT")

    def _read_from(self) -> apsw.Connection:
        try:
            inode = self.path.stat().st_ino
        except FileNotFoundError:
            self._close_reader()
            raise NoTables from None
        if self._reader is None or inode != self._inode:
            self._close_reader()
            self._reader = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
            self._reader.set_busy_timeout(BUSY_MS)
            self._reader.execute("PRAGMA query_only = ON")
            self._inode = inode
        return self._reader

    def _close_reader(self) -> None:
        if self._reader is not None:
            with suppress(apsw.Error):
                self._reader.close()
            self._reader = None


def _made(table: Table) -> str:
    columns = [f"{name} {_TYPES[kind]} NOT NULL" for name, kind in table.columns.items()]
    made = f"CREATE TABLE IF NOT EXISTS {table.name} ({', '.join(columns)}, PRIMARY KEY ({', '.join(table.key)})) STRICT, WITHOUT ROWID;"
    for number, index in enumerate(table.indexes):
        made += f"CREATE INDEX IF NOT EXISTS {table.name}_{number} ON {table.name} ({', '.join(index)});"
    return made


def _insert(table: Table) -> str:
    return insert("", table, f"VALUES ({', '.join('?' * len(table.columns))})", clash="OR REPLACE")


def _translating(call: Callable[[], T]) -> T:
    """Run, and say SQLite's errors in our words."""
    try:
        return call()
    except _NOT_THERE as error:
        raise NoTables from error
    except _DAMAGED as error:
        raise DamagedTables(f"SQLite says {error}") from error
    except apsw.SQLError as error:
        if "no such table" in str(error):
            raise NoTables from error
        raise DamagedTables(f"SQLite says {error}") from error
    except (apsw.Error, OSError) as error:
        raise integrity.full(f"{type(error).__name__}: {error}") from error
