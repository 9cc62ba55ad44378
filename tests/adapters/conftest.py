"""Journals to test, on SQLite and on a PostgreSQL server of our own; and machines for programs."""

import os
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path

import pytest

from fabric.adapters.journal import Journal
from fabric.adapters.journal_postgres import PostgresJournal
from fabric.adapters.journal_sqlite import SqliteJournal
from tests.adapters.programs import Machine, Zygotes

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
def executing(tmp_path):
    """A machine on which a runner executes programs."""
    made = Machine(tmp_path)
    yield made
    made.close()


@pytest.fixture
def machine(executing):
    """The same, where it doesn't matter how they come to run."""
    return executing


@pytest.fixture(scope="module")
def zygotes():
    """What forks programs, and starts ranks in processes of their own: it takes seconds to come up."""
    found = Zygotes()
    yield found
    found.close()
