"""Outages of the gate's journal: it tries again by itself, whoever calls meanwhile is told at once, and nothing is lost.

The journal is a real one, whose every call fails, hangs, or loses its answer while it is away: at random instants, with
traffic and without.
"""

import asyncio
import random
import time
from collections import Counter

import pytest

from fabric import outage
from fabric.clock import SteadyClock
from fabric.errors import FabricError, Unavailable
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import NodeUp, Pool, Submit, TopUp
from fabric.gate.instructions import Accepted, StartLease
from fabric.gate.questions import BalanceOf
from fabric.journal import writer
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.writer import Writer
from fabric.units import UHS_PER_CT
from tests.gate.world import CONFIGURE, spec

CALLS = ("open", "head", "append", "leaf_hashes", "save_snapshot", "load_snapshot")


class Away(SqliteJournal):
    """A real journal behind a line that can be cut."""

    def __init__(self, path):
        super().__init__(path)
        self.how = ""
        """"" | refuses | hangs | answers are lost (what was written is, and nobody hears of it)"""
        self.back = asyncio.Event()
        self.tries = 0

    async def _in(self, thread, call, *args, **kwargs):
        self.tries += self.how != ""
        if self.how == "refuses":
            raise Unavailable("connection refused", code="journal_unavailable", reason="connection refused")
        if self.how == "breaks":
            raise ConnectionResetError("a driver that forgot to say it in our words")
        if self.how == "hangs":
            await self.back.wait()
            raise Unavailable("the line broke", code="journal_unavailable", reason="the line broke")
        answer = await super()._in(thread, call, *args, **kwargs)
        if self.how == "loses answers" or (self.how == "loses one answer" and self._loses_now()):
            raise Unavailable("the answer was lost", code="journal_unavailable", reason="the answer was lost")
        return answer

    def _loses_now(self):
        self.how = ""
        return True

    def cut(self, how):
        self.how = how
        self.back = asyncio.Event()

    def mend(self):
        self.how = ""
        self.back.set()


class World:
    """A gate's writer on such a journal, and what it has said is to be done."""

    def __init__(self, path):
        self.journal, self.said = Away(path), []
        self.writer = Writer(
            self.journal,
            restore=Gate.restore,
            clock=SteadyClock(),
            carry_out=self.carry_out,
            recovered=lambda gate: gate.outstanding(),
        )

    async def carry_out(self, instructions):
        self.said += instructions

    async def started(self):
        await self.writer.start()
        await self.writer.submit(
            [
                CONFIGURE,
                OpenAccount(account_id="ada", name="", plan="starter"),
                TopUp(account_id="ada", amount_uhs=10_000 * UHS_PER_CT, payment_ref="first"),
                NodeUp(node_id="h1", accelerator="H100", devices=8, pool=Pool.SPOT),
            ]
        )
        return self

    async def free(self):
        return (await self.writer.look(lambda gate: gate.ask(BalanceOf(account_id="ada"), 0))).free_uhs

    async def comes_back(self):
        async with asyncio.timeout(60):
            while True:
                try:
                    return await self.free()
                except Unavailable:
                    await asyncio.sleep(0.01)


async def until(happens):
    async with asyncio.timeout(60):
        while not happens():  # noqa: ASYNC110 - what is waited for goes on by itself, and tells nobody
            await asyncio.sleep(0.001)


@pytest.fixture
async def world(tmp_path, monkeypatch):
    monkeypatch.setattr(outage, "PAUSE_S", 0.005)
    monkeypatch.setattr(outage, "PAUSE_S_MAX", 0.05)
    monkeypatch.setattr(writer, "REBUILD_PATIENCE_S", 0.05)
    monkeypatch.setattr(writer, "CLOSE_S", 0.5)
    world = await World(tmp_path / "journal.db").started()
    world.writer._patience_s = 0.2
    yield world
    world.journal.mend()
    await world.writer.close()


def top_up(number):
    return TopUp(account_id="ada", amount_uhs=1, payment_ref=f"p{number}", request_id=f"r{number}")


HOWS = ("refuses", "breaks", "hangs", "loses answers")


@pytest.mark.parametrize("how", HOWS)
async def test_the_gate_comes_back_by_itself_though_nobody_asks_for_anything(world, how):
    world.journal.cut(how)
    with pytest.raises(Unavailable):
        await world.writer.submit([top_up(1)])
    await until(lambda: world.writer.outage is not None)
    before = world.journal.tries
    if how != "hangs":
        await until(lambda: world.journal.tries >= before + 3)
    world.journal.mend()
    await until(lambda: world.writer.outage is None)
    (outcome,) = await world.writer.submit([top_up(2)])
    assert isinstance(outcome, Accepted)


@pytest.mark.parametrize("how", HOWS)
async def test_calls_in_an_outage_are_told_at_once_that_the_database_is_away(world, how):
    world.journal.cut(how)
    with pytest.raises(Unavailable):
        await world.writer.submit([top_up(1)])
    await until(lambda: world.writer.outage is not None)
    calls = [world.writer.submit([top_up(number)]) for number in range(2, 40)] + [world.free() for _ in range(20)]
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(answer, Unavailable)
        assert (answer.code, answer.http_status) == ("journal_unavailable", 503)
        assert "the journal's database is away" in answer.message


async def test_who_waits_for_a_commit_that_hangs_is_told_and_may_ask_again(world):
    world.journal.cut("hangs")
    waiting = [asyncio.ensure_future(world.writer.submit([top_up(number)])) for number in range(3)]
    await until(lambda: world.journal.tries)
    looking = asyncio.ensure_future(world.free())
    for answer in await asyncio.gather(*waiting, looking, return_exceptions=True):
        assert isinstance(answer, Unavailable)
    world.journal.mend()
    before = await world.comes_back()
    for number in range(3):
        await world.writer.submit([top_up(number)])
    assert await world.free() <= before + 3


async def test_what_landed_though_its_answer_was_lost_is_carried_out(world):
    """A lease that is placed in a commit whose answer was lost is started, not forgotten."""
    world.journal.cut("loses one answer")
    job = Submit(job_id="j", account_id="ada", spec=spec(), request_id="submit")
    with pytest.raises(Unavailable):
        await world.writer.submit([job])
    await world.comes_back()
    (outcome,) = await world.writer.submit([job])
    assert isinstance(outcome, Accepted)
    await until(lambda: world.said)
    assert [type(each) for each in world.said] == [StartLease]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("busy", [False, True])
async def test_the_gate_closes_in_an_outage(world, how, busy):
    world.journal.cut(how)
    calls = [asyncio.ensure_future(world.writer.submit([top_up(number)])) for number in range(5 * busy)]
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await world.writer.close()
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(answer, FabricError)


@pytest.mark.parametrize("seed", range(12))
async def test_outages_at_random_instants_lose_nothing_and_book_nothing_twice(world, seed):
    """Clients that ask again until they hear, through outages of every kind: each top-up is booked once."""
    print("seed", seed)
    chance = random.Random(seed)
    started_with, count, heard = await world.free(), 40, Counter()

    async def client(number):
        await asyncio.sleep(chance.random() * 0.5)
        while True:
            try:
                (outcome,) = await world.writer.submit([top_up(number)])
            except Unavailable as error:
                heard[error.code] += 1
                await asyncio.sleep(0.01)
            else:
                assert isinstance(outcome, Accepted)
                return

    clients = [asyncio.ensure_future(client(number)) for number in range(count * (seed % 3 > 0))]
    ends = time.monotonic() + 0.6
    while time.monotonic() < ends:
        await asyncio.sleep(chance.random() * 0.1)
        world.journal.cut(chance.choice((*HOWS, "loses one answer")))
        await asyncio.sleep(chance.choice((0, 0.001, 0.02, 0.2)) * chance.random())
        world.journal.mend()
    async with asyncio.timeout(60):
        await asyncio.gather(*clients)
    assert await world.comes_back() == started_with + len(clients)
    assert [entry.seq async for entry in world.journal.read()] == list(range(world.writer.head.size))
    print(dict(heard))
