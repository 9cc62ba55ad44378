"""A network between the gate and its PostgreSQL, or its bucket, that swallows everything: told at once, and over when it is.

What is between is a stand-in (`tests.relay`), and both ends are real. When it begins, how long it lasts and what becomes of
bytes meanwhile is chosen by a seed, which is printed.
"""

import asyncio
import os
import random
import time
from contextlib import suppress

import boto3
import pytest

from fabric.api.gate_client import GateClient
from fabric.clock import SteadyClock
from fabric.errors import Unavailable
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import TopUp
from fabric.gate.questions import BalanceOf
from fabric.journal.postgres import PostgresJournal
from fabric.journal.writer import Writer
from fabric.server.wiring import SOON_S
from fabric.storage.archive import S3Archive
from fabric.storage.s3 import Place
from fabric.storage.s3_clients import S3Credentials
from fabric.units import UHS_PER_CT
from tests.gate.world import CONFIGURE
from tests.relay import Relay

pytestmark = pytest.mark.timeout(600)
BACK_WITHIN_S = 60
LONGER = [(2, 10), (3, 120), (4, 120), (5, 120)]
"""Seeds, and for how many seconds at most, where there is time."""
"""Generous: what is measured is in the closing notes. Without time limits of its own a connection stays silent for minutes."""


async def carry_out(instructions):
    pass


@pytest.fixture
def relay(postgres_server):
    with Relay(postgres_server.port) as relay:
        yield relay


@pytest.fixture
async def writer(relay, request):
    dsn = f"postgresql://fabric@127.0.0.1:{relay.port}/postgres"
    journal = PostgresJournal(dsn, schema=f"apart_{os.getpid()}_{abs(hash(request.node.name))}")
    writer = Writer(journal, restore=Gate.restore, clock=SteadyClock(), carry_out=carry_out)
    await writer.start()
    first = TopUp(account_id="ada", amount_uhs=UHS_PER_CT, payment_ref="first")
    await writer.submit([CONFIGURE, OpenAccount(account_id="ada", name="", plan="starter"), first])
    yield writer
    relay.mend()
    await writer.close()


async def free(writer):
    return (await writer.look(lambda gate: gate.ask(BalanceOf(account_id="ada"), 0))).free_uhs


def top_up(name):
    return TopUp(account_id="ada", amount_uhs=1, payment_ref=name, request_id=name)


async def until(happens, within_s):
    async with asyncio.timeout(within_s):
        while not happens():  # noqa: ASYNC110 - what is waited for goes on by itself, and tells nobody
            await asyncio.sleep(0.01)


async def comes_through(writer, events):
    while True:
        with suppress(Unavailable):
            return await writer.submit(events)
        await asyncio.sleep(0.05)


async def partition(writer, relay, *, how, away_s, clients, chance):
    """One of them; the booked top-ups. How long the gate needed afterwards is printed."""
    booked, stopped, slowest = [], asyncio.Event(), 0.0

    async def client(number):
        nonlocal slowest
        at = 0
        while not stopped.is_set():
            began = time.monotonic()
            with suppress(Unavailable):
                await writer.submit([top_up(f"{number}/{at}")])
                booked.append(number)
                at += 1
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.01)

    load = [asyncio.ensure_future(client(number)) for number in range(clients)]
    await asyncio.sleep(chance.random())
    relay.cut(how, late_s=0.5)
    ends = time.monotonic() + away_s
    one = asyncio.ensure_future(comes_through(writer, [top_up("one")]))
    if how == "silent":
        await until(lambda: writer.outage is not None, BACK_WITHIN_S)
        for each in await asyncio.gather(writer.submit([top_up("two")]), free(writer), return_exceptions=True):
            assert isinstance(each, Unavailable)
            assert "the journal's database is away" in each.message
    await asyncio.sleep(max(0, ends - time.monotonic()))
    relay.mend()
    began = time.monotonic()
    await asyncio.wait_for(one, BACK_WITHIN_S)
    await until(lambda: writer.outage is None, BACK_WITHIN_S)
    heard = len(booked)
    await until(lambda: len(booked) >= heard + clients, BACK_WITHIN_S)
    back_s = time.monotonic() - began
    stopped.set()
    await asyncio.gather(*load)
    print(f"{how} for {away_s:.1f} s, {clients} clients: back after {back_s:.1f} s, slowest answer {slowest:.1f} s")
    return len(booked) + 1


@pytest.mark.postgres
@pytest.mark.parametrize("clients", [0, 8])
@pytest.mark.parametrize(
    ("seed", "longest_s"),
    [(1, 3), *(pytest.param(seed, longest_s, marks=pytest.mark.soak) for seed, longest_s in LONGER)],
)
async def test_a_database_beyond_a_network_that_swallows_everything_is_in_use_again_soon(
    writer, relay, seed, longest_s, clients
):
    print("seed", seed)
    chance = random.Random(seed)
    away_s = chance.uniform(0.5, 1) * longest_s
    booked = await partition(writer, relay, how="silent", away_s=away_s, clients=clients, chance=chance)
    assert await free(writer) == UHS_PER_CT + booked


@pytest.mark.postgres
@pytest.mark.parametrize("how", ["reset", "late", "drip"])
async def test_a_database_beyond_a_network_that_breaks_or_is_slow_is_in_use_again_soon(writer, relay, how):
    booked = await partition(writer, relay, how=how, away_s=3, clients=4, chance=random.Random(7))
    assert await free(writer) == UHS_PER_CT + booked


@pytest.mark.postgres
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (1, 2))])
async def test_what_a_former_connection_left_open_blocks_nobody(writer, relay, seed):
    """The network goes silent somewhere in the middle of a take-over: the server still holds what that has locked."""
    print("seed", seed)
    chance = random.Random(seed)
    for number in range(3):
        relay.cut("reset")
        with suppress(Unavailable):
            await writer.submit([top_up(f"lost {number}")])
        relay.mend()
        await asyncio.sleep(chance.random() * 0.08)
        relay.cut("silent")
        await asyncio.sleep(chance.random())
        relay.mend()
        began = time.monotonic()
        await asyncio.wait_for(comes_through(writer, [top_up(f"lost {number}")]), BACK_WITHIN_S)
        print(f"back after {time.monotonic() - began:.1f} s")
    assert await free(writer) == UHS_PER_CT + 3


@pytest.fixture
def bucket(moto_url):
    """A bucket beyond a network."""
    key = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=moto_url, **key).create_bucket(Bucket="apart")
    with Relay(int(moto_url.rpartition(":")[2])) as relay:
        credentials = S3Credentials(access_key_id="a", secret_access_key="b")
        place = Place(
            bucket="apart",
            endpoint_url=f"http://127.0.0.1:{relay.port}",
            region="us-east-1",
            credentials=credentials,
            read_timeout_s=SOON_S,
        )
        yield relay, GateClient(None, archive=S3Archive(place))


@pytest.mark.parametrize("clients", [0, 30])
@pytest.mark.parametrize(
    ("seed", "longest_s"),
    [(1, 5), *(pytest.param(seed, longest_s, marks=pytest.mark.soak) for seed, longest_s in LONGER)],
)
async def test_an_archive_beyond_a_network_that_swallows_everything_is_in_use_again_soon(
    bucket, seed, longest_s, clients
):
    """Though each thread that clients have waits for it: more of them ask than there are."""
    print("seed", seed)
    relay, port = bucket
    chance = random.Random(seed)
    kept, stopped, slowest = {}, asyncio.Event(), 0.0

    async def client(number):
        nonlocal slowest
        while not stopped.is_set():
            key, began = f"jobs/ada/{number}/{len(kept)}", time.monotonic()
            with suppress(Unavailable):
                await port.put_blob(key, key.encode())
                kept[key] = await port.small_blob(key, limit_bytes=99)
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.01)

    await port.put_blob("jobs/first", b"first")
    load = [asyncio.ensure_future(client(number)) for number in range(clients)]
    await asyncio.sleep(chance.random())
    relay.cut("silent")
    ends = time.monotonic() + chance.uniform(0.5, 1) * longest_s
    with pytest.raises(Unavailable, match="the archive is away"):
        await asyncio.wait_for(port.small_blob("jobs/first", limit_bytes=9), BACK_WITHIN_S)
    told = await asyncio.gather(
        *(port.put_blob("jobs/more", b"more") for _ in range(40)),
        port.kept_blobs("jobs"),
        port.delete_blob("jobs/first"),
        port.from_archive(asyncio.sleep(0)),
        return_exceptions=True,
    )
    assert {(type(each), each.code) for each in told} == {(Unavailable, "archive_away")}
    await asyncio.sleep(max(0, ends - time.monotonic()))
    relay.mend()
    began = time.monotonic()
    async with asyncio.timeout(BACK_WITHIN_S):
        while True:
            with suppress(Unavailable):
                assert await port.small_blob("jobs/first", limit_bytes=9) == b"first"
                break
            await asyncio.sleep(0.05)
        heard = len(kept)
        while len(kept) < heard + clients:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    print(f"silent, {clients} clients: back after {time.monotonic() - began:.1f} s, slowest answer {slowest:.1f} s")
    stopped.set()
    await asyncio.gather(*load)
    assert all(key.encode() == data for key, data in kept.items())


class Interrupted(PostgresJournal):
    """Taken over by somebody whose network goes silent for good as soon as it holds the lock."""

    relay = None

    async def _take_over(self, line):
        async with line.transaction():
            await line.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", self._schema)
            self.relay.cut("silent")
            await line.execute("SELECT 1")


@pytest.mark.postgres
async def test_a_take_over_that_never_ends_blocks_the_next_for_seconds_only(postgres_server, relay):
    schema = f"interrupted_{os.getpid()}"
    first = Interrupted(f"postgresql://fabric@127.0.0.1:{relay.port}/postgres", schema=schema)
    first.relay = relay
    with pytest.raises(Unavailable):
        await asyncio.wait_for(first.open(), BACK_WITHIN_S)
    second = PostgresJournal(postgres_server.dsn, schema=schema)
    async with asyncio.timeout(BACK_WITHIN_S):
        while True:
            with suppress(Unavailable):
                assert await second.open() == 1
                break
    await second.close()
    await first.close()
