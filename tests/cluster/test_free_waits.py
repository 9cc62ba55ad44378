"""Devices that nobody pays for are held for a bounded time, however often a tenant has its packages come slowly."""

import asyncio
import json

import pytest

from fabric.cluster.free_waits import FreeWaits
from fabric.cluster.preparation import prepared
from fabric.cluster.services import Services
from fabric.cluster.settings import ClusterSettings
from fabric.gate.instructions import Share
from fabric.node import agent as node_agent
from fabric.node.agent import NodeAgent
from fabric.storage.archive import DirectoryArchive
from fabric.worker.environments import Environment
from fabric.worker.payload import read_payload
from fabric.worker.wheels import PREPARE_S, Prepared
from tests.worker.leases import NODE, lease_of

HOUR_S = 3_600


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class SlowAgents:
    """Of machines for which packages come as slowly as they may, or within `takes_s`."""

    def __init__(self, clock, takes_s=10_000.0):
        self.clock, self.takes_s, self.waited = clock, takes_s, []

    async def has_environment(self, _address, _folder):
        return False

    async def prepare(self, _address, _folder, _wanted, *, within_s):
        took = min(within_s, self.takes_s)
        self.clock.now += took
        self.waited.append(took)
        return Prepared(done=took < within_s)


@pytest.fixture
def clock():
    return Clock()


def around(agents, tmp_path):
    return Services(
        nodes={"h1": NODE}, groups=None, agents=agents, outbox=None, archive=None,
        settings=ClusterSettings(work_dir=tmp_path), gone=set(), free_waits=FreeWaits(monotonic=agents.clock.monotonic),
    )  # fmt: skip


async def waits(around, *, account="acme", devices=4):
    payload = read_payload(json.dumps({"runtime_env": {"pip": {"packages": ["emoji"]}}}))
    shares = (Share(node_id="h1", devices=devices),)
    before = len(around.agents.waited)
    await prepared(lease_of(account_id=account, shares=shares), payload, around)
    return sum(around.agents.waited[before:]) * devices


async def test_who_has_packages_come_slowly_again_and_again_holds_devices_for_nothing_no_longer(clock, tmp_path):
    tried = around(SlowAgents(clock), tmp_path)
    first = [await waits(tried) for _ in range(20)]
    assert first[0] == 4 * PREPARE_S
    assert sum(first) < 600
    assert await waits(tried, account="globex") == 4 * PREPARE_S
    clock.now += HOUR_S
    assert await waits(tried) == 4 * PREPARE_S


async def test_packages_that_come_soon_are_waited_for_every_time(clock, tmp_path):
    tried = around(SlowAgents(clock, takes_s=2.0), tmp_path)
    for _ in range(40):
        assert await waits(tried, devices=1) == 2.0


async def test_an_attempt_that_is_ended_meanwhile_has_waited_so_long_and_no_longer(clock, tmp_path):
    class Ended(SlowAgents):
        async def prepare(self, *_, within_s):
            del within_s
            self.clock.now += 30.0
            raise asyncio.CancelledError

    tried = around(Ended(clock), tmp_path)
    for _ in range(4):
        with pytest.raises(asyncio.CancelledError):
            await waits(tried)
    tried.agents.prepare = SlowAgents.prepare.__get__(tried.agents)
    assert await waits(tried) < 60


async def test_an_account_whose_packages_come_slowly_keeps_no_other_waiting(tmp_path, monkeypatch):
    begun = []

    async def slow(folder, _wanted, *, within_s):
        del within_s
        begun.append(folder.parent.name)
        if folder.parent.name == "evil":
            await asyncio.sleep(3_600)
        return Prepared(done=True)

    monkeypatch.setattr(node_agent, "prepare", slow)
    agent = NodeAgent(meter="cpu", archive=DirectoryArchive(tmp_path))
    wanted = Environment(tool="pip", packages=("emoji",))
    evil = [asyncio.create_task(agent.prepare(str(tmp_path / "evil" / str(n)), wanted, for_s=3_600)) for n in range(8)]
    await asyncio.sleep(0)
    done = await asyncio.wait_for(agent.prepare(str(tmp_path / "acme" / "x"), wanted, for_s=30), 30)
    assert done.done
    assert begun == ["evil", "acme"]
    for task in evil:
        task.cancel()
    await asyncio.gather(*evil, return_exceptions=True)


async def test_waiting_for_a_turn_counts_as_waiting(tmp_path, monkeypatch):
    async def slow(_folder, _wanted, *, within_s):
        del within_s
        await asyncio.sleep(3_600)

    monkeypatch.setattr(node_agent, "prepare", slow)
    agent = NodeAgent(meter="cpu", archive=DirectoryArchive(tmp_path))
    wanted = Environment(tool="pip", packages=("emoji",))
    folder = str(tmp_path / "acme" / "x")
    found = await asyncio.wait_for(asyncio.gather(*(agent.prepare(folder, wanted, for_s=0.05) for _ in range(5))), 30)
    assert found == [Prepared()] * 5
