"""A loop of its own: what runs there is awaited here, and that it is busy is seen without it."""

import asyncio
import threading

import pytest

from fabric.errors import FabricError, Internal, Unavailable
from serving.event_thread import EventThread
from serving.replica import actor


@pytest.fixture
async def thread():
    opened = EventThread("t")
    opened.start()
    yield opened
    await opened.stop()


async def test_what_runs_there_is_awaited_here(thread):
    async def there():
        await asyncio.sleep(0)
        return threading.current_thread().name

    assert await thread.run(there()) == "t"

    async def fails():
        raise Unavailable("no")

    with pytest.raises(Unavailable):
        await thread.run(fails())


async def test_a_busy_loop_is_seen_to_be_behind_and_is_not_taken_for_dead(thread, monkeypatch):
    monkeypatch.setattr(actor, "_CHECK_S", 0.05)
    release, asked = threading.Event(), []

    async def busy():
        release.wait()

    async def check():
        asked.append(1)

    blocking = asyncio.create_task(thread.run(busy()))
    async with asyncio.timeout(20):
        while thread.behind_s() < 0.2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await actor.checked(thread, check)
    assert asked == []
    monkeypatch.setattr(actor, "STUCK_S", 0.1)
    with pytest.raises(Unavailable, match="come round"):
        await actor.checked(thread, check)
    release.set()
    await blocking
    async with asyncio.timeout(20):
        while thread.behind_s() > 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    monkeypatch.setattr(actor, "_CHECK_S", 20)
    await actor.checked(thread, check)
    assert asked


async def test_what_the_engine_says_of_itself_is_heard(thread):
    async def dead():
        raise Internal("the engine is dead", code="dead")

    with pytest.raises(Internal, match="dead"):
        await actor.checked(thread, dead)


async def test_a_loop_that_has_ended_is_dead():
    ended = EventThread("t")
    ended.start()
    await ended.stop()
    with pytest.raises(FabricError, match="ended"):
        ended.behind_s()
