"""Whoever starts the gate waits for it as long as it gets on with its journal, and no longer."""

import asyncio

import pytest

from fabric import versions
from fabric.errors import Conflict, Unavailable
from fabric.server import gate_handle


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


@pytest.fixture
def _soon(monkeypatch):
    monkeypatch.setattr(gate_handle, "LOOK_S", 0.001)
    monkeypatch.setattr(gate_handle, "START_S", 0.5)


@pytest.mark.usefixtures("_soon")
async def test_a_gate_that_gets_on_is_waited_for_however_long_it_takes():
    said = []
    assert await gate_handle._come_up(Replaying(100_000), said.append) == "the key"
    assert said[0] == "the gate decides its journal again: 1,000 of 100,000 entries"
    assert len(said) == 100


@pytest.mark.usefixtures("_soon")
async def test_a_gate_that_stands_still_is_given_up():
    with pytest.raises(Unavailable) as given_up:
        await gate_handle._come_up(Replaying(100_000, stops_at=50_000), lambda _: None)
    assert given_up.value.code == "gate_silent"


async def test_a_gate_that_does_not_know_the_journals_rules_says_which_release_does(world, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(versions, "RULES", versions.RULES + 1)
        later.setattr(versions, "SINCE", {**versions.SINCE, versions.RULES: "9.9.0"})
        newer = world()
        await newer.ready()
        await newer.close()
    older = world()
    for _ in range(2):
        with pytest.raises(Conflict, match=r"start 9\.9\.0 or a later one") as refused:
            await older.decide([])
        assert refused.value.code == "journal_newer"
    assert "9.9.0" in await older.ailment(), "it is told whoever asks how the fabric is"
    await older.close()
