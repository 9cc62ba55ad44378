"""Journals to test, on SQLite and on a PostgreSQL server of our own."""

import os
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path

import pytest

from fabric.journal.postgres import PostgresJournal
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.store import Journal

_names = count(1)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def make_journal(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Journal]:
    """A function that gives journals on one and the same new store."""
    if request.param == "sqlite":
        return lambda: SqliteJournal(tmp_path / "state" / "journal.sqlite")
    dsn = request.getfixturevalue("postgres_server").dsn
    schema = f"journal_{os.getpid()}_{next(_names)}"
    return lambda: PostgresJournal(dsn, schema=schema)


@pytest.fixture
async def journal(make_journal: Callable[[], Journal]) -> AsyncIterator[Journal]:
    journal = make_journal()
    await journal.open()
    yield journal
    await journal.close()
