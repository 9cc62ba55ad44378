"""A door that is not in the gate's process, and a gate that hangs: whoever waits is told, and it goes on by itself."""

import asyncio

import pytest

from fabric.api import remote_gate
from fabric.api.remote_gate import RemoteGate
from fabric.errors import Unavailable


class Method:
    def __init__(self, call):
        self._call = call

    def remote(self, *given):
        return self._call(*given)


class StandInActor:
    """Stands for the gate's actor: it hangs, thinks for long, or answers."""

    def __init__(self):
        self.goes, self.thought = asyncio.Event(), asyncio.Event()
        self.goes.set()
        self.thought.set()
        self.calls = 0

    @property
    def ask(self):
        return Method(self._ask)

    @property
    def ailment(self):
        return Method(self._ailment)

    async def _ask(self, question):
        self.calls += 1
        await self.goes.wait()
        await self.thought.wait()
        return question

    async def _ailment(self):
        await self.goes.wait()
        return ""


@pytest.fixture(autouse=True)
def sooner(monkeypatch):
    monkeypatch.setattr(remote_gate, "LOOK_S", 0.02)
    monkeypatch.setattr(remote_gate, "PULSE_S", 0.05)


async def test_a_gate_that_hangs_is_named_and_the_next_calls_are_told_at_once():
    actor = StandInActor()
    gate = RemoteGate(actor)
    actor.goes.clear()
    for told in await asyncio.gather(*(gate.ask(number) for number in range(20)), return_exceptions=True):
        assert isinstance(told, Unavailable)
        assert (told.code, told.http_status) == ("gate_silent", 503)
        assert "the gate is away" in told.message
    asked = actor.calls
    with pytest.raises(Unavailable):
        await gate.ask("more")
    assert actor.calls == asked, "nobody is sent to a gate that is known to hang"
    actor.goes.set()
    async with asyncio.timeout(30):
        while True:
            try:
                assert await gate.ask("again") == "again"
            except Unavailable:
                await asyncio.sleep(0.01)
            else:
                break


async def test_a_gate_that_thinks_for_long_is_not_taken_for_one_that_hangs():
    actor = StandInActor()
    actor.thought.clear()
    asking = asyncio.ensure_future(RemoteGate(actor).ask("hard"))
    await asyncio.sleep(0.5)
    assert not asking.done()
    actor.thought.set()
    assert await asking == "hard"
