"""The agents as the gate calls them: a machine that is silent keeps nothing from the others. Without Ray."""

import asyncio

import pytest
from msgspec import structs

from fabric.cluster import agents as module
from fabric.cluster.agents import Agents
from fabric.cluster.settings import ClusterSettings
from fabric.node.agent import Cut, Watch
from tests.worker.leases import NODE

OWN = "the gate's"


def cut(lease_id):
    return Cut(lease_id=lease_id, seq=1, window_us=1_000_000, busy_us=500_000)


class House:
    """Agents of some machines: those that are named in `silent` answer when they are let."""

    def __init__(self, monkeypatch, *addresses, silent=()):
        monkeypatch.setattr(module, "PROMPT_S", 0.01)
        monkeypatch.setattr(module, "own_address", lambda: OWN)
        monkeypatch.setattr(module, "own_node", lambda: "the gate's node")
        self.agents = Agents(archive=None, settings=ClusterSettings())
        self.silent, self.speaks, self.asked, self.started = set(silent), asyncio.Event(), [], {}
        self.agents._actors = dict.fromkeys(addresses)
        for address in addresses:
            self.agents._watches[address] = {address: Watch(lease_id=address, devices=(), roots=())}
        monkeypatch.setattr(self.agents, "_call", self.call)
        monkeypatch.setattr(self.agents, "_start", self.start)

    async def call(self, address, method, *_, within_s=None, **options):
        self.asked.append((address, method))
        if address in self.silent:
            await asyncio.wait_for(self.speaks.wait(), within_s)
        return {"samples": [cut(address)], "claimed": [7], "kill": None}[method]

    async def start(self, address, ray_id, *, by_cpu):
        if address in self.silent:
            await self.speaks.wait()
        if address == "broken":
            raise OSError("nothing listens there")
        self.agents._actors[address] = None
        self.started[address] = ray_id


async def test_a_silent_machine_keeps_no_sample_of_another_waiting(monkeypatch):
    house = House(monkeypatch, "a", "b", silent={"a"})
    assert await house.agents.samples() == {"b": [cut("b")]}
    assert await house.agents.samples() == {"b": [cut("b")]}
    assert house.asked.count(("a", "samples")) == 1, "one that hasn't answered is not asked again"
    house.speaks.set()
    await asyncio.sleep(0)
    assert await house.agents.samples() == {"a": [cut("a")], "b": [cut("b")]}


async def test_an_agent_that_fails_is_given_up_and_no_other(monkeypatch):
    house = House(monkeypatch, "a", "b")
    answers = house.call

    async def fails(address, method, *more, **options):
        if address == "a":
            raise TimeoutError("no answer")
        return await answers(address, method, *more, **options)

    monkeypatch.setattr(house.agents, "_call", fails)
    assert await house.agents.samples() == {"b": [cut("b")]}
    assert list(house.agents._actors) == ["b"]


async def test_who_does_not_answer_has_not_said_that_it_claims_nothing(monkeypatch):
    house = House(monkeypatch, "a", "b", silent={"a"})
    assert await house.agents.claimed() == {"b": {7}}


@pytest.mark.parametrize("other", ["silent", "broken"])
async def test_a_machine_without_an_agent_keeps_no_other_from_having_one(monkeypatch, other):
    house = House(monkeypatch, silent={"silent"})
    nodes = [structs.replace(NODE, address=address) for address in (other, "b")]
    await house.agents.cover(nodes)
    assert list(house.agents._actors) == ["b"]
    house.speaks.set()
    await asyncio.sleep(0)
    await house.agents.cover(nodes)
    assert ("silent" in house.agents._actors) is (other == "silent")
    await house.agents.close()


@pytest.mark.parametrize("agent", ["there", "silent", "none"])
@pytest.mark.parametrize("machine", [OWN, "another"])
async def test_what_holds_a_device_on_the_gates_own_machine_is_ended_though_no_agent_is_there(
    monkeypatch, machine, agent
):
    """A new agent takes seconds to come, and two are all that a device may be held without a lease."""
    killed = []
    monkeypatch.setattr(module, "_KILL_S", 0.01)
    monkeypatch.setattr(module, "kill", killed.append)
    house = House(monkeypatch, machine, silent={machine} if agent != "there" else ())
    if agent == "none":
        monkeypatch.setattr(house.agents, "_call", Agents._call.__get__(house.agents))
        house.agents._actors.clear()
    await house.agents.kill(machine, 7)
    assert killed == ([7] if machine == OWN and agent != "there" else [])


async def test_the_agent_of_the_gates_machine_is_lost_with_no_node_but_the_gates(monkeypatch):
    """Where a machine has several, it was on any of them, and where that was lost with the gate nobody watched."""
    house = House(monkeypatch)
    await house.agents.cover([structs.replace(NODE, address=address, ray_id="any") for address in (OWN, "b")])
    assert house.started == {OWN: "the gate's node", "b": "any"}
