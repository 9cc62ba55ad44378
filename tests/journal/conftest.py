"""Journals to test, on SQLite and on a PostgreSQL server of our own; what is made of them, and a log to read from."""

import os
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path

import pytest

from fabric.journal.postgres import PostgresJournal
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.store import Entry, Journal
from fabric.journal.tables import Tables
from fabric.journal.tables_postgres import PostgresTables
from fabric.journal.tables_sqlite import SqliteTables
from tests.audit.conftest import log
from tests.journal.story import newest_story

__all__ = ["log"]

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


@pytest.fixture
def make_tables(
    request: pytest.FixtureRequest, make_journal: Callable[[], Journal], tmp_path: Path
) -> Callable[[], Tables]:
    """A function that gives tables in one and the same new place, where the journals are."""
    if isinstance(make_journal(), SqliteJournal):
        return lambda: SqliteTables(tmp_path / "tables")
    dsn, schema = request.getfixturevalue("postgres_server").dsn, f"read_{os.getpid()}_{next(_names)}"
    return lambda: PostgresTables(dsn, schema=schema)


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """A journal with every kind of event in it."""
    return newest_story(tmp_path_factory.mktemp("golden"))
