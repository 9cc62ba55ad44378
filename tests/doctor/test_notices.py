"""What the doctor says of notices: nothing where nobody wants any, and which don't arrive."""

import asyncio
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from fabric.config.cluster import SqliteJournal as Configured
from fabric.doctor import diagnosis
from fabric.doctor.findings import Health
from fabric.journal.followers import Position
from fabric.journal.place import InFiles
from fabric.journal.sqlite import SqliteJournal
from fabric.notifications.store import open_store
from tests.notifications.receivers import endpoint, notice


@pytest.fixture
def config(tmp_path):
    return SimpleNamespace(journal=Configured(kind="sqlite", path=tmp_path / "journal.db"))


def test_nothing_is_said_or_made_where_nobody_wants_notices(config, tmp_path):
    assert diagnosis._look_at_notices(config) == []
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(("failing", "health"), [(0, Health.OK), (5, Health.WARN)])
def test_how_far_it_is_and_which_endpoints_fail_is_said(config, failing, health):
    async def prepare():
        journal, store = SqliteJournal(config.journal.path), open_store(InFiles(str(config.journal.path)))
        await journal.open()
        there = endpoint(SimpleNamespace(port=1))
        await store.add(there, from_here=Position(0))
        await store.take(Position(0), Position(0), {}, [notice(1)], now_us=0)
        ((delivery, _),) = await store.due(10, limit=1)
        await store.note(replace(delivery, tries=1), replace(there, failing_since_us=failing))
        await journal.close()
        await store.close()

    asyncio.run(prepare())
    (found,) = diagnosis._look_at_notices(config)
    assert found.health is health
    assert "0 entries behind, 1 wait" in str(found)
