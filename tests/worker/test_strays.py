"""What no lease has is found by any agent, also by one that is younger than the lease; the gate says whose it is. Without Ray."""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from msgspec import structs

from fabric.cluster import agents as agents_module
from fabric.cluster import ray_cluster
from fabric.cluster.agents import Agents
from fabric.cluster.placement_groups import Group, Groups, Seated
from fabric.cluster.ray_cluster import RayCluster
from fabric.cluster.settings import ClusterSettings
from fabric.gate.instructions import Share, StartLease
from fabric.node.agent import NodeAgent, Watch
from fabric.storage.archive import DirectoryArchive
from fabric.system import processes
from fabric.system.processes import FABRIC_VARIABLE, LEASE_VARIABLE, mark_of, seen_of
from fabric.worker.members import Members
from fabric.worker.runner import Seat
from fabric.worker.strays import Living, Sighting, Stray, fabric_id
from tests.worker.leases import NODE, lease_of
from tests.worker.test_members import begin, escaping, groups, lives, pid_in, runner, strays  # noqa: F401

OURS, THEIRS = fabric_id(b"ours", "fabric"), fabric_id(b"theirs", "fabric")
AT = "10.0.0.1"


def members_of(fabric=OURS, *, machine=AT, kind="a limit"):
    """A new agent's."""
    return Members(fabric=fabric, machine=machine, groups_at=groups(kind))


@contextmanager
def marked(lease_id, *, fabric=OURS, words=("-c", "input()")):
    """A process with a mark."""
    environment = {**os.environ, LEASE_VARIABLE: lease_id, FABRIC_VARIABLE: fabric}
    with subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE, env=environment) as process:
        deadline = time.monotonic() + 30
        while mark_of(seen_of(process.pid)).lease != lease_id:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield process
        finally:
            process.kill()


def living(*marks, busy=()):
    return Living(marks=marks, leases=marks, busy=busy)


def test_an_agent_that_is_younger_than_a_lease_finds_what_carries_its_mark():
    with marked("job-1.1") as process:
        (stray,) = [stray for stray in members_of().strays(()) if stray.pid == process.pid]
        assert stray == Stray(pid=process.pid, started_at=seen_of(process.pid).started_at, mark="job-1.1")
        assert process.pid not in strays(members_of(THEIRS))
        assert process.pid not in strays(Members())


def test_what_is_to_carry_a_lease_s_id_and_does_not_yet_is_no_stray():
    """The zygote."""
    with marked("-" * 400) as process:
        assert process.pid not in strays(members_of())


@pytest.mark.parametrize("kind", ["a control group", "a limit"])
def test_an_agent_that_is_younger_than_a_runner_finds_what_came_of_it_without_a_mark(runner, kind):  # noqa: F811
    told = runner.tell()
    process = runner(escaping(told, environ="{}"))
    members_of(kind=kind).follow("job-1.1", (process.pid,))
    begin(process)
    escaped = pid_in(told)
    younger = members_of(kind=kind)
    (stray,) = [stray for stray in younger.strays([process.pid]) if stray.pid == escaped]
    assert (stray.mark, stray.root) == ("", process.pid)
    assert process.pid not in strays(younger)
    process.kill()
    process.wait()
    for again in (younger, members_of(kind=kind)):
        (stray,) = [stray for stray in again.strays(()) if stray.pid == escaped]
        assert (stray.mark, stray.root) == ("", 0)
    for other in (members_of(THEIRS, kind=kind), members_of(machine="10.0.0.2", kind=kind)):
        assert escaped not in strays(other)


def test_a_mark_is_found_though_its_process_ran_something_else_for_long_before(monkeypatch):
    """As Ray's worker does while it sets its environment up; and so as long as a machine under load takes."""
    monkeypatch.setattr(processes, "_SETTLED_S", 0)
    late = f"import os; input(); os.environ['{LEASE_VARIABLE}'] = 'job-1.1'; os.execvp('sleep', ['sleep', '60'])"
    clean = {name: value for name, value in os.environ.items() if name != LEASE_VARIABLE}
    with subprocess.Popen([sys.executable, "-c", late], stdin=subprocess.PIPE, env=clean) as process:
        members = members_of()
        members.follow("job-1.1", ())
        while not (seen := seen_of(process.pid)) or mark_of(seen).lease:
            pass
        assert members.of("job-1.1") == []
        process.stdin.write(b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0] != b"sleep":
            assert time.monotonic() < deadline
        assert members.of("job-1.1") == [process.pid]
        process.kill()


@pytest.mark.parametrize(
    ("stray", "is_a_leases"),
    [
        ({"mark": "job-1.1"}, True),
        ({"mark": "job-0.1"}, False),
        ({}, False),
        ({"root": 7}, True),
        ({"root": 8}, False),
        ({"root": 8, "mark": "job-1.1"}, False),
        ({"root": 7, "mark": "job-1.1"}, True),
        ({"root": 7, "mark": "job-0.1"}, False),
    ],
)
def test_whose_a_process_is_what_it_comes_from_says_before_what_it_says_itself(stray, is_a_leases):
    assert living("job-1.1", busy=[7]).has(Stray(pid=1, started_at=1, **stray)) == is_a_leases


async def test_an_agent_ends_what_it_has_seen_and_nothing_that_has_its_number_now(tmp_path):
    agent = NodeAgent(meter="cpu", archive=DirectoryArchive(tmp_path), fabric=OURS, address=AT)
    with marked("job-1.1") as process:
        (stray,) = [stray for stray in (await agent.strays(())).strays if stray.pid == process.pid]
        assert await agent.end_strays([(stray.pid, stray.started_at - 1)]) == []
        assert lives(process.pid)
        assert await agent.end_strays([(stray.pid, stray.started_at)]) == [process.pid]
        process.wait()


async def test_a_lease_that_an_agent_was_not_told_the_end_of_is_one_it_watches_no_more(tmp_path):
    """It was silent when the lease ended: it would count what is left of it to the lease for ever."""
    agent = NodeAgent(meter="cpu", archive=DirectoryArchive(tmp_path), fabric=OURS, address=AT)
    with marked("job-1.1") as process:
        await agent.attach(Watch(lease_id="job-1.1", devices=("0",), roots=()))
        found = await agent.strays(())
        assert found.watched == ("job-1.1",)
        assert process.pid not in [stray.pid for stray in found.strays]
        await agent.end_strays([], over=["job-1.1"])
        assert not await agent.watches("job-1.1")
        assert process.pid in [stray.pid for stray in (await agent.strays(())).strays]


async def test_a_lease_that_is_begun_again_with_other_runners_is_watched_with_those(tmp_path, runner):  # noqa: F811
    agent = NodeAgent(meter="cpu", archive=DirectoryArchive(tmp_path), fabric=OURS, address=AT)
    first, second = runner(""), runner("")
    await agent.attach(Watch(lease_id="job-1.1", devices=("0",), roots=(first.pid,)))
    await agent.attach(Watch(lease_id="job-1.1", devices=("0",), roots=(second.pid,)))
    assert second.pid in await agent.claimed()


class House:
    """Agents that say what they see; those that are named in `silent` answer when they are let."""

    def __init__(self, monkeypatch, silent=(), **sightings):
        monkeypatch.setattr(agents_module, "_SWEEP_S", 0.05)
        self.agents = Agents(archive=None, settings=ClusterSettings())
        self.sightings, self.silent, self.speaks, self.told = sightings, set(silent), asyncio.Event(), []
        self.agents._actors = dict.fromkeys(sightings)
        self.agents._call = self.call

    async def call(self, address, method, *arguments, within_s=None, **options):
        if address in self.silent:
            await self.speaks.wait()
        self.told.append((address, method, *arguments, *options.values()))
        return self.sightings[address] if method == "strays" else [pid for pid, _ in arguments[0]]

    async def sweep(self, *marks):
        return await self.agents.end_strays(lambda address: [70], lambda address: living(*marks))


def stray(pid, mark):
    return Stray(pid=pid, started_at=pid + 1, mark=mark)


async def test_what_has_a_mark_that_does_not_live_is_ended_and_what_has_one_that_does_is_not(monkeypatch):
    seen = Sighting(strays=(stray(1, "job-1.1"), stray(2, "job-2.1")), watched=("job-2.1", "job-0.1"))
    house = House(monkeypatch, a=seen)
    assert await house.sweep("job-2.1") == {"a": [1]}
    assert house.told == [("a", "strays", (70,)), ("a", "end_strays", [(1, 2)], ["job-0.1"])]


async def test_a_lease_that_begins_while_a_machine_is_looked_at_is_counted_living(monkeypatch):
    house, begun = House(monkeypatch, a=Sighting(strays=(stray(1, "job-1.1"),))), []
    called = house.call

    async def begins(*arguments, **options):
        answer = await called(*arguments, **options)
        begun.append("job-1.1")
        return answer

    house.agents._call = begins
    assert await house.agents.end_strays(lambda _: [], lambda _: living(*begun)) == {}
    assert [method for _, method, *_ in house.told] == ["strays"]


async def test_a_silent_machine_keeps_nothing_of_another_from_being_ended(monkeypatch):
    seen = Sighting(strays=(stray(1, "job-1.1"),))
    house = House(monkeypatch, a=seen, b=seen, silent={"a"})
    assert await house.sweep() == {"b": [1]}
    assert await house.sweep() == {"b": [1]}
    house.speaks.set()
    assert await house.sweep() == {"a": [1], "b": [1]}
    assert [told[:2] for told in house.told].count(("a", "strays")) == 1, (
        "it was not asked again before it had answered"
    )
    await house.agents.close()


async def test_who_looks_at_the_same_time_waits_for_the_same_look_and_one_of_them_tells_of_it(monkeypatch):
    house = House(monkeypatch, a=Sighting(strays=(stray(1, "job-1.1"),)))
    found = await asyncio.gather(house.sweep(), house.sweep())
    assert sorted(found, key=len) == [{}, {"a": [1]}]
    assert [method for _, method, *_ in house.told] == ["strays", "end_strays"]


async def test_an_agent_that_has_died_where_no_lease_is_is_replaced_too(monkeypatch):
    house = House(monkeypatch, a=Sighting())

    async def died(*_, **__):
        raise ray.exceptions.ActorDiedError

    house.agents._call = died
    assert await house.sweep() == {}
    assert not house.agents._actors, "`cover` starts one where none is"


async def test_an_agent_that_is_given_up_as_it_is_to_be_asked_keeps_nothing_from_the_others(monkeypatch):
    seen = Sighting(strays=(stray(1, "job-1.1"),))
    house = House(monkeypatch, a=seen, b=seen)
    answers = house.call

    async def call(address, *arguments, **options):
        house.agents._actors[address]
        return await answers(address, *arguments, **options)

    house.agents._call = call
    sweep = asyncio.ensure_future(house.sweep())
    await asyncio.sleep(0)
    del house.agents._actors["a"]
    assert await sweep == {"b": [1]}


async def test_a_lease_lives_from_the_word_that_starts_it_on(tmp_path, monkeypatch):
    """Before its first process."""
    starts = asyncio.Event()

    async def start(attempt):
        await starts.wait()

    monkeypatch.setattr(ray_cluster.Attempt, "start", start)

    async def report(events):
        pass

    cluster = RayCluster(report=report, archive=DirectoryArchive(tmp_path), settings=ClusterSettings(metrics=False))
    lease = lease_of(shares=(Share("h1", 1),))
    assert str(lease.lease_id) not in cluster._living(AT).marks
    await cluster.carry_out([StartLease(lease=lease)])
    assert str(lease.lease_id) in cluster._living(AT).marks
    assert str(lease.lease_id) in cluster._living(AT).leases
    await cluster.close()


async def test_a_runner_lives_before_its_process_does_and_is_busy_for_as_long_as_a_lease_has_it(monkeypatch):
    settings = ClusterSettings()
    made = Groups(nodes={"h1": NODE}, agents=None, archive=None, settings=settings)
    placed = type("Placed", (), {"id": b"123456789012345678"})()
    group = Group(placed=placed, shares=(Share("h1", 1),))
    made._used[group.id] = group
    lived = []

    def start(group, lease, bundle, runtime_env, name):
        lived.append(name in made.marks())
        raise ValueError("no process yet")

    monkeypatch.setattr(made, "_start", start)
    with pytest.raises(ValueError, match="no process"):
        await made.seat(group, lease_of(shares=group.shares), runtime_env={})
    assert lived == [True]
    seat = Seat(pid=77, ip="", port=1, devices=())
    group.runners.append(Seated(actor=None, seat=seat, node=structs.replace(NODE, address=AT), name="runner-1"))
    assert (made.runners(AT), made.busy(AT), made.busy("elsewhere")) == ([77], [77], [])
    assert made.keep(group)
    assert (made.runners(AT), made.busy(AT)) == ([77], [])
    assert "runner-1" in made.marks()


def test_what_is_started_for_a_lease_says_whose_it_is():
    settings = ClusterSettings(key=b"ours")
    assert settings.marks("job-1.1") == {LEASE_VARIABLE: "job-1.1", FABRIC_VARIABLE: OURS}
    assert len({OURS, THEIRS, fabric_id(b"ours", "another")}) == 3
