"""What a gateway remembers of the fabric's answers, and what it tells while the fabric can't be asked."""

import asyncio

import pytest

from fabric.errors import Unavailable
from serving.gateway.keys import Memory


async def test_while_the_fabric_is_away_one_at_a_time_asks_and_the_others_are_told_at_once():
    memory, asked, goes = Memory(), [], asyncio.Event()

    async def ask():
        asked.append(1)
        await goes.wait()
        raise Unavailable("the gate doesn't answer", code="gate_silent")

    first = asyncio.ensure_future(memory.get("a", ask))
    await asyncio.sleep(0)
    goes.set()
    with pytest.raises(Unavailable):
        await first
    goes.clear()
    trying = asyncio.ensure_future(memory.get("b", ask))
    await asyncio.sleep(0)
    for told in await asyncio.gather(*(memory.get(f"c{n}", ask) for n in range(20)), return_exceptions=True):
        assert (type(told), told.code) == (Unavailable, "gate_silent")
    assert len(asked) == 2
    goes.set()
    with pytest.raises(Unavailable):
        await trying

    async def answer():
        return "known"

    assert await memory.get("d", answer) == "known"
    assert await asyncio.gather(*(memory.get(f"e{n}", answer) for n in range(5))) == ["known"] * 5
