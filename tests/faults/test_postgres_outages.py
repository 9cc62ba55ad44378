"""A real PostgreSQL that is stopped and started under a gate: it comes back by itself, and nothing is lost."""

import asyncio
import os
from contextlib import suppress

import pytest

from fabric.clock import SteadyClock
from fabric.errors import Unavailable
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import TopUp
from fabric.gate.questions import BalanceOf
from fabric.journal.postgres import PostgresJournal
from fabric.journal.writer import Writer
from fabric.units import UHS_PER_CT
from tests.gate.world import CONFIGURE

pytestmark = pytest.mark.postgres


async def carry_out(instructions):
    pass


@pytest.fixture
async def writer(postgres_server, request):
    journal = PostgresJournal(postgres_server.dsn, schema=f"away_{os.getpid()}_{abs(hash(request.node.name))}")
    writer = Writer(journal, restore=Gate.restore, clock=SteadyClock(), carry_out=carry_out)
    await writer.start()
    top_up = TopUp(account_id="ada", amount_uhs=UHS_PER_CT, payment_ref="first")
    await writer.submit([CONFIGURE, OpenAccount(account_id="ada", name="", plan="starter"), top_up])
    yield writer
    if postgres_server.process.poll() is not None:
        await asyncio.to_thread(postgres_server.start)
    await writer.close()


async def free(writer):
    return (await writer.look(lambda gate: gate.ask(BalanceOf(account_id="ada"), 0))).free_uhs


@pytest.mark.parametrize("how", ["stop", "kill"])
@pytest.mark.parametrize("clients", [0, 8])
@pytest.mark.parametrize("away_s", [0.0, 4.0])
async def test_a_server_that_was_away_is_in_use_again_without_a_restart_of_the_gate(
    writer, postgres_server, how, clients, away_s
):
    """With load, with one top-up in the outage, and with none at all before it is back."""
    booked, stopped = [], asyncio.Event()

    async def client(number):
        at = 0
        while not stopped.is_set():
            one = TopUp(account_id="ada", amount_uhs=1, payment_ref=f"{number}/{at}", request_id=f"{number}/{at}")
            try:
                await writer.submit([one])
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                booked.append(one)
                at += 1

    load = [asyncio.ensure_future(client(number)) for number in range(clients)]
    await asyncio.sleep(0.2)
    await asyncio.to_thread(getattr(postgres_server, how))
    one = TopUp(account_id="ada", amount_uhs=1, payment_ref="in the outage", request_id="in the outage")
    with pytest.raises(Unavailable) as refused:
        await writer.submit([one])
    assert refused.value.http_status == 503
    assert "database is away" in refused.value.message
    await asyncio.sleep(away_s)
    await asyncio.to_thread(postgres_server.start)
    async with asyncio.timeout(60):
        while writer.outage is not None:  # noqa: ASYNC110 - that it ends by itself is the claim
            await asyncio.sleep(0.01)
        before = len(booked)
        while clients and len(booked) < before + clients:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stopped.set()
        await asyncio.gather(*load)
        while True:
            with suppress(Unavailable):
                await writer.submit([one])
                break
            await asyncio.sleep(0.01)
    assert await free(writer) == UHS_PER_CT + len(booked) + 1


async def test_a_gate_closes_while_its_server_is_away(writer, postgres_server):
    await asyncio.to_thread(postgres_server.kill)
    with pytest.raises(Unavailable):
        await writer.submit([TopUp(account_id="ada", amount_uhs=1, payment_ref="x", request_id="x")])
    async with asyncio.timeout(60):
        await writer.close()
