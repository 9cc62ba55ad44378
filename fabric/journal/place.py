"""Where a journal is, and with it what a follower makes of it for reading."""

from pathlib import Path

import msgspec

from fabric.journal.store import Journal
from fabric.journal.tables import Tables


class InFiles(msgspec.Struct, frozen=True, tag="sqlite"):
    """A journal in a SQLite file, and its projection beside it."""

    path: str

    def journal(self) -> Journal:
        from fabric.journal.sqlite import SqliteJournal as Sqlite  # noqa: PLC0415 - only one is needed

        return Sqlite(self.path)

    def tables(self) -> Tables:
        from fabric.journal.tables_sqlite import SqliteTables  # noqa: PLC0415

        path = Path(self.path)
        return SqliteTables(path.with_name(f"{path.name}.read"))


class InDatabase(msgspec.Struct, frozen=True, tag="postgres"):
    """A journal in PostgreSQL, and its projection in a schema beside it."""

    dsn: str
    schema: str = "fabric_journal"

    def journal(self) -> Journal:
        from fabric.journal.postgres import PostgresJournal as Postgres  # noqa: PLC0415

        return Postgres(self.dsn, schema=self.schema)

    def tables(self) -> Tables:
        from fabric.journal.tables_postgres import PostgresTables  # noqa: PLC0415

        return PostgresTables(self.dsn, schema=f"{self.schema}_read")


Place = InFiles | InDatabase
"""Where a journal is, and with it what followers make of it."""
