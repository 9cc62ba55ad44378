"""What runs is asked to save before the cluster ends under it, and waited for as long as its grace allows."""

import asyncio

import pytest

from fabric.daemon import parking
from fabric.gate.questions import LeasesOf, NodesOf
from tests.gate.conftest import Story, finished, node, removed, saved, started, submit, top_up


class Port:
    """The gate, of which each look at its leases is followed by the next thing that the cluster reports."""

    def __init__(self, story, *reports):
        self.story, self.reports, self.asked = story, list(reports), False

    async def ask(self, question):
        found = self.story.gate.ask(question, self.story.now_us)
        if isinstance(question, LeasesOf) and self.reports and self.asked:
            self.story.do(self.reports.pop(0))
        return found

    async def decide(self, events):
        self.asked = True
        return [self.story.do(event).outcome for event in events]


@pytest.fixture
def running():
    story = Story("ada")
    for event in (top_up(1_000), node(), submit(), started()):
        story.do(event)
    return story


async def test_what_runs_is_asked_to_save_and_waited_for_until_its_devices_are_clear(running):
    said = []
    port = Port(running, saved(), finished("saved"), removed())
    assert await parking.park(port, told=lambda *news: said.append(news), pause_s=0) == 0
    assert said == [(1, 10 + parking.CLEARING_S)]
    assert (running.job().state, running.job().reason) == ("queued", "fabric_down")
    assert running.job().held_uhs > 0, "it stands in line with what it needs"


async def test_what_does_not_leave_is_waited_for_no_longer_than_its_grace(running, monkeypatch):
    monkeypatch.setattr(parking, "CLEARING_S", -9.95)
    assert await parking.park(Port(running), told=lambda *_: None, pause_s=0.01) == 1


async def test_where_nothing_runs_nothing_is_said_nor_drained():
    story = Story("ada")
    story.do(node())
    assert await parking.park(Port(story), told=lambda *news: pytest.fail(str(news)), pause_s=0) == 0
    assert story.gate.ask(NodesOf(), story.now_us)[0].state == "up"


async def test_a_gate_that_is_silent_keeps_nobody_from_ending(running, monkeypatch):
    monkeypatch.setattr(parking, "ANSWER_S", 0.01)
    port = Port(running)
    monkeypatch.setattr(port, "ask", lambda _: asyncio.sleep(60))
    with pytest.raises(TimeoutError):
        await parking.park(port, told=lambda *_: None)
