"""The projection's tables in PostgreSQL, in a schema beside the journal's: dropped whole when they are thrown away."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import asyncpg

from fabric.journal.postgres import LONG_TIMEOUT_S, Line
from fabric.journal.tables import (
    READ_PROGRESS,
    TABLES,
    TEXT,
    DamagedTables,
    NoTables,
    Query,
    Row,
    Table,
    insert,
    select,
)

_TYPES: Final = {TEXT: 'TEXT COLLATE "C"'}
"""Text in the order of its code points, as everywhere else."""
_NOT_THERE: Final = (
    asyncpg.UndefinedTableError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.InvalidCachedStatementError,  # others are there now
)
_OTHER: Final = (asyncpg.UndefinedColumnError, asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError)


class PostgresTables:
    """`Tables` in a schema of a database, which `make` creates."""

    def __init__(self, dsn: str, *, schema: str = "fabric_journal_read") -> None:
        """Name the place.

        Args:
            dsn: `postgresql://user:password@host:port/database`.
            schema: of these tables alone.
        """
        self._schema = schema
        self._writer, self._reader = Line(dsn), Line(dsn)

    async def make(self) -> None:
        async def make(line: asyncpg.Connection) -> None:
            async with line.transaction():
                await line.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", self._schema)
                await line.execute(f"CREATE SCHEMA IF NOT EXISTS {self._schema}")
                for table in TABLES:
                    await line.execute(self._made(table))

        await self._writer.call(make, again=True)

    async def read(self, *queries: Query) -> list[list[Row]]:
        async def read(line: asyncpg.Connection) -> list[list[Row]]:
            async with line.transaction(isolation="repeatable_read", readonly=True):
                return [
                    [
                        tuple(row)
                        for row in await line.fetch(text.format(schema=self._schema), *given, timeout=LONG_TIMEOUT_S)
                    ]
                    for text, given in queries
                ]

        return await self._reader.call(_translating(read), again=True)

    async def pick(self, table: Table, key: str, values: Sequence[Any]) -> list[Row]:
        if not values:
            return []
        where = {f"{key} = ANY(?::{table.columns[key]}[])": (list(values),)}
        (found,) = await self.read(select(", ".join(table.columns), table, where, order=key, limit=len(values)))
        return found

    async def write(self, before: int | None, rows: Mapping[Table, Sequence[Row]]) -> bool:
        async def write(line: asyncpg.Connection) -> bool:
            async with line.transaction():
                await line.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", self._schema)
                found = await line.fetch(READ_PROGRESS[0].format(schema=self._schema), *READ_PROGRESS[1])
                if [row["seq"] for row in found] != ([] if before is None else [before]):
                    return False
                for table, made in rows.items():
                    columns = [list(column) for column in zip(*made, strict=True)]
                    await line.execute(self._insert(table), *columns, timeout=LONG_TIMEOUT_S)
            return True

        return await self._writer.call(_translating(write))

    async def throw_away(self) -> None:
        await self._writer.call(lambda line: line.execute(f"DROP SCHEMA IF EXISTS {self._schema} CASCADE"), again=True)

    async def close(self) -> None:
        await self._reader.hang_up()
        await self._writer.hang_up()

    def _made(self, table: Table) -> str:
        place = f"{self._schema}.{table.name}"
        columns = [f"{name} {_TYPES.get(kind, kind)} NOT NULL" for name, kind in table.columns.items()]
        made = f"CREATE TABLE IF NOT EXISTS {place} ({', '.join(columns)}, PRIMARY KEY ({', '.join(table.key)}));"
        for number, index in enumerate(table.indexes):
            made += f"CREATE INDEX IF NOT EXISTS {table.name}_{number} ON {place} ({', '.join(index)});"
        return made

    def _insert(self, table: Table) -> str:
        given = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(table.columns.values(), 1))
        changed = ", ".join(f"{name} = excluded.{name}" for name in table.columns if name not in table.key)
        clash = f"UPDATE SET {changed}" if changed else "NOTHING"
        clash = f"ON CONFLICT ({', '.join(table.key)}) DO {clash}"
        return insert(f"{self._schema}.", table, f"SELECT * FROM unnest({given}) {clash}")  # noqa: S608 - names of ours


def _translating(use: Any) -> Any:
    """Use a connection, and say in our words what is wrong with the tables."""

    async def translated(line: asyncpg.Connection) -> Any:
        try:
            return await use(line)
        except _NOT_THERE as error:
            raise NoTables from error
        except _OTHER as error:
            raise DamagedTables(f"PostgreSQL says {error}") from error

    return translated
