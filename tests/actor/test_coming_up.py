"""Whoever starts the gate waits for it as long as it gets on with its journal, and no longer."""

import asyncio

import pytest

from fabric import detached
from fabric.errors import Unavailable


class Remote:
    """A method of an actor."""

    def __init__(self, answer):
        self.remote = answer


class Replaying:
    """An actor that decides so many entries again each time that it is looked at, until it is up, or stands still."""

    def __init__(self, entries, *, stops_at=None):
        self.decided, self.entries, self.stops_at = 0, entries, stops_at
        self.up = asyncio.Event()
        self.ready, self.replayed = Remote(self.is_up), Remote(self.looked_at)

    async def is_up(self):
        await self.up.wait()
        return "the key"

    async def looked_at(self):
        if self.decided != self.stops_at:
            self.decided += 1_000
        if self.decided == self.entries:
            self.up.set()
        return self.decided, self.entries


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(detached, "LOOK_S", 0.001)
    monkeypatch.setattr(detached, "START_S", 0.5)


async def test_a_gate_that_gets_on_is_waited_for_however_long_it_takes():
    said = []
    assert await detached._come_up(Replaying(100_000), said.append) == "the key"
    assert said[0] == "the gate decides its journal again: 1,000 of 100,000 entries"
    assert len(said) == 100


async def test_a_gate_that_stands_still_is_given_up():
    with pytest.raises(Unavailable) as given_up:
        await detached._come_up(Replaying(100_000, stops_at=50_000), lambda _: None)
    assert given_up.value.code == "gate_silent"
