"""Fixtures of notices: a store, a receiver, and a time of their own."""

import pytest

from fabric.notifications.rows import MADE
from fabric.notifications.scripts import SqliteScripts
from fabric.notifications.store import NoticeStore
from tests.notifications.receivers import Clock, listening


@pytest.fixture
async def receiver():
    async with listening() as receiver:
        yield receiver


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def store(tmp_path):
    store = NoticeStore(SqliteScripts(tmp_path / "n.notices", MADE))
    yield store
    await store.close()
