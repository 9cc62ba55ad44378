"""Sixteen gateways' meters at one door, over the wire and all at once: together they spend what a key may, and no more."""

import asyncio
import random

from fabric.charging.rates import charge_uhs
from fabric.client.client import new_request_id
from fabric.errors import InsufficientTokens
from fabric.wire import fabric_pb2 as pb
from serving.metering.book import Metering
from serving.metering.call_log import CallLog
from serving.metering.meter import Meter
from serving.metering.slices import Payer, Terms
from tests.doors.test_rpc import ask
from tests.doors.test_serving_calls import S, ledger, offer
from tests.gate.model_calls import rate

MOST_UHS = 500_000
"""Of 96 calls that would cost some 30,000 each."""


def charge(usage):
    return charge_uhs(rate(40 * S, 4 * S, 400 * S, 400 * S), usage)


async def calls_of(meter, name, dice):
    """One call after the other; how many had to end early, or not begin."""
    short = 0
    for number in range(6):
        call_id, wants = f"{name}.{number}", dice.randrange(20, 100)
        try:
            await meter.open(
                call_id, payer=Payer("acme", "k-acme"), key_id="k-acme", prompt_tokens=dice.randrange(200), wants=wants
            )
        except InsufficientTokens:
            short += 1
            continue
        made = 0
        while made < wants and await meter.extend(call_id, completion=min(made + 16, wants), cached=0) > made:
            made = meter.book.calls[call_id].usage.completion_tokens
        short += made < wants
        meter.end(call_id, "stop")
    return short


async def test_sixteen_gateways_at_once_spend_what_a_key_may_and_no_more(house, tmp_path):
    await asyncio.to_thread(offer, house)
    terms = pb.LimitTerms(period="life", unit="ct", amount=MOST_UHS)
    request = pb.SetLimitRequest(request_id=new_request_id(), key_id="k-acme", terms=terms)
    await asyncio.to_thread(ask, house.client(house.root, "acme"), request)
    ledgers = [ledger(house) for _ in range(16)]
    meters = []
    for at, each in enumerate(ledgers):
        book = Metering(
            name=f"g{at}", model="tiny", accelerator="H100", charge=charge, terms=Terms(grant_tokens=16), rate_version=1
        )
        meters.append(Meter(book, CallLog(tmp_path / f"outbox{at}"), each))
        await meters[-1].start()
    short = await asyncio.gather(*(calls_of(each, f"g{at}", random.Random(at)) for at, each in enumerate(meters)))
    assert all(await asyncio.gather(*(each.close() for each in meters)))
    await asyncio.gather(*(each.close() for each in ledgers))
    (limit,) = (await asyncio.to_thread(ask, house.client(house.acme), pb.ListLimitsRequest())).limits
    used = sum(charge(each.produced) for each in meters)
    assert 0 <= limit.left < 60_000, "what is left is less than the next call takes"
    assert limit.used + limit.left == MOST_UHS
    assert abs(used - limit.used) <= 96, "but for the rounding of each call"
    assert limit.held == 0
    assert sum(short) > 16
