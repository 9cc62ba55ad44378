"""Journals to follow, on SQLite and on PostgreSQL; and a log to read from."""

import os
from itertools import count

import pytest

from fabric.adapters.journal import Entry
from fabric.journal.tables_postgres import PostgresTables
from fabric.journal.tables_sqlite import SqliteTables
from tests.adapters.conftest import journal, make_journal
from tests.audit.conftest import log
from tests.journal.story import newest_story

__all__ = ["journal", "log", "make_journal"]

_names = count(1)


@pytest.fixture(scope="session")
def story(tmp_path_factory) -> list[Entry]:
    """A journal with every kind of event in it."""
    return newest_story(tmp_path_factory.mktemp("golden"))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def make_tables(request, tmp_path):
    """A function that gives tables in one and the same new place."""
    if request.param == "sqlite":
        return lambda: SqliteTables(tmp_path / "tables")
    dsn, schema = request.getfixturevalue("postgres_server").dsn, f"read_{os.getpid()}_{next(_names)}"
    return lambda: PostgresTables(dsn, schema=schema)
