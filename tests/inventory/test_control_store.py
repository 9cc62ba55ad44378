"""Ray's control store as the gate's process sees it: soon known to be away, and no clock runs against a lease meanwhile."""

import asyncio
import threading

import pytest
import ray

from fabric.inventory import control_store
from fabric.inventory.control_store import ControlStore


class Rays:
    """Stands for `ray.nodes`, which waits for as long as the control store stands still."""

    def __init__(self):
        self.goes = threading.Event()
        self.goes.set()
        self.fails = False
        self.asked = 0

    def nodes(self):
        self.asked += 1
        assert self.goes.wait(30)
        if self.fails:
            raise ConnectionError("no control store")
        return [{"NodeID": "n"}]


@pytest.fixture
def rays(monkeypatch):
    rays = Rays()
    monkeypatch.setattr(ray, "nodes", rays.nodes)
    monkeypatch.setattr(control_store, "ANSWER_S", 0.05)
    monkeypatch.setattr(control_store, "LOOK_S", 0.01)
    yield rays
    rays.goes.set()


async def until(happens):
    async with asyncio.timeout(30):
        while not happens():  # noqa: ASYNC110 - what is waited for goes on by itself
            await asyncio.sleep(0.005)


async def test_one_that_stands_still_is_away_until_it_answers(rays):
    store = ControlStore()
    rays.goes.clear()
    asking = asyncio.ensure_future(store.nodes())
    await until(lambda: store.outage is not None)
    waiting = asyncio.ensure_future(store.back())
    assert "Ray's control store is away" in store.outage.said()
    assert not waiting.done()
    rays.goes.set()
    assert await asking == [{"NodeID": "n"}]
    assert store.outage is None
    await waiting
    assert rays.asked == 1


async def test_one_that_fails_is_away_until_it_answers(rays):
    store = ControlStore()
    rays.fails = True
    for tries in (1, 2):
        with pytest.raises(ConnectionError):
            await store.nodes()
        assert store.outage.tries == tries
    rays.fails = False
    await store.nodes()
    assert store.outage is None


async def test_while_it_is_away_no_clock_runs_against_a_piece_of_work(rays):
    store = ControlStore()
    done = asyncio.Event()
    rays.goes.clear()
    asking = asyncio.ensure_future(store.nodes())
    await until(lambda: store.outage is not None)
    work = asyncio.ensure_future(store.within(0.05, done.wait()))
    await asyncio.sleep(0.2)
    assert not work.done()
    done.set()
    assert await work is True
    rays.goes.set()
    await asking


async def test_work_that_takes_too_long_is_cancelled(rays):
    ended = asyncio.Event()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        await ControlStore().within(0.02, work())
    assert ended.is_set()
    with pytest.raises(ZeroDivisionError):
        await ControlStore().within(30, fails())


async def fails():
    return 1 / 0


async def test_work_that_needs_no_wait_is_done_before_anything_else_gets_its_turn(rays):
    async def work():
        return "done"

    others = []
    asyncio.get_running_loop().call_soon(others.append, 1)
    assert await ControlStore().within(30, work()) == "done"
    assert others == []


async def test_work_that_its_caller_gives_up_is_over_when_that_is(rays):
    ended = asyncio.Event()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    waiting = asyncio.ensure_future(ControlStore().within(30, work()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
