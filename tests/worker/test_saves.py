"""What a job says of its checkpoints costs it nothing and the gate an entry each: so it is told of now and then, however often
it saves.
"""

import asyncio
from collections import Counter

import pytest

from fabric.cluster import ranks as ranks_module
from fabric.cluster.placement_groups import Seated
from fabric.cluster.ranks import Ranks
from fabric.cluster.services import Services
from fabric.gate.events import LeaseOutcome, LeaseSaved
from fabric.gate.instructions import Share
from fabric.progress import Progress
from fabric.worker.runner import Seat
from fabric.worker.saves import Saves
from fabric.worker.stage import JobEnd, Save
from tests.worker.leases import NODE, lease_of

LOOKS = 20
AT_ONCE = 50


class Word:
    def __init__(self, answer):
        self.answer = answer

    async def remote(self, *given):
        return self.answer(*given)


class Chatterbox:
    """A runner whose job has saved again, and got on, whenever it is asked."""

    def __init__(self, asked):
        self.asked = asked
        self.saves, self.progress = Word(self._saves), Word(self._progress)

    def _saves(self, after):
        self.asked["saves"] += 1
        return [Save(after + at, 10, 64) for at in range(AT_ONCE)]

    def _progress(self):
        self.asked["progress"] += 1
        return Progress(step=self.asked["progress"])


class Told(list):
    def put(self, event, **_):
        self.append(event)


@pytest.fixture
def pauses(monkeypatch):
    """How often the gate has waited for how long; nobody waits for real."""
    waited, sleep = Counter(), asyncio.sleep

    async def pause(seconds):
        waited[seconds] += 1
        await sleep(0)

    monkeypatch.setattr(ranks_module.asyncio, "sleep", pause)
    return waited


async def test_a_job_that_saves_without_end_is_told_of_now_and_then(pauses):
    asked, told = Counter(), Told()
    around = Services(
        nodes={"h1": NODE}, groups=None, agents=None, outbox=told, archive=None, settings=None, gone=set()
    )
    seat = Seated(actor=Chatterbox(asked), seat=Seat(pid=100, ip="10.0.0.1", port=1, devices=("0",)), node=NODE)
    end = asyncio.get_running_loop().create_future()
    gang = asyncio.create_task(Ranks(lease_of(shares=(Share("h1", 1),)), [seat], around).ended([end]))
    while min(asked["saves"], asked["progress"]) < LOOKS:  # noqa: ASYNC110  # it is no sleep here
        await asyncio.sleep(0)
    saved = [event.step for event in told if isinstance(event, LeaseSaved)]
    assert len(saved) <= asked["saves"] * ranks_module.SAVES_TOLD_MAX
    assert saved[-1] % AT_ONCE == AT_ONCE - 1, "the newest is told"
    assert pauses[ranks_module.SAVES_EVERY_S] >= LOOKS - 1
    assert pauses[ranks_module.PROGRESS_EVERY_S] >= LOOKS - 1
    end.set_result(JobEnd(outcome=LeaseOutcome.SUCCEEDED))
    assert (await gang).outcome is LeaseOutcome.SUCCEEDED


def test_few_saves_are_kept_that_nobody_has_asked_for_and_the_newest_is():
    saves = Saves()
    for step in range(5_000):
        saves.note(Save(step, 10))
    first = saves.tell(0)
    assert len(first) < 100
    assert first[-1].step == 4_999
    saves.note(Save(5_000, 10))
    assert [save.step for save in saves.tell(len(first))] == [5_000], "what was told is not told anew"
    for step in range(20_000):
        saves.note(Save(step, 10))
        if step % 20 == 0:
            saves.tell(len(saves))
    assert len(saves.all()) < 3_000
    assert saves.all()[-1].step == 19_999
