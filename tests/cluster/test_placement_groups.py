"""Which groups are ours, at every moment at which the reconciler may ask."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.cluster import placement_groups
from fabric.cluster.settings import ClusterSettings
from fabric.enforcement.reconciler import Ours, Reconciler
from fabric.gate.instructions import Share
from fabric.inventory.ray_tables import GroupRow
from fabric.worker.runner import Seat
from tests.worker.leases import NODE, lease_of


class Placed:
    """A placement group with an id of its own."""

    def __init__(self, name):
        self.name = name
        self.id = bytes(f"{name:>18}"[-18:], "ascii")

    async def ready(self):
        return self


@pytest.fixture
def world(monkeypatch):
    return table_of_ray(monkeypatch)


def table_of_ray(monkeypatch):
    """Ray's table of groups: one is in it before the call that makes it returns."""
    table, made, returns = {}, threading.Event(), threading.Event()
    returns.set()

    def make(bundles, *, name, **_):
        placed = Placed(name)
        table[placed.id.hex()] = {
            "state": "CREATED",
            "name": name,
            "bundles": dict(enumerate(bundles)),
        }
        made.set()
        assert returns.wait(10)
        return placed

    def remove(placed):
        key = placed.id.hex() if isinstance(placed, Placed) else placed
        table[key]["state"] = "REMOVED"

    monkeypatch.setattr(placement_groups, "placement_group", make)
    monkeypatch.setattr(placement_groups, "remove_placement_group", remove)
    monkeypatch.setattr(placement_groups, "is_vacant", lambda _: True)
    return table, made, returns


def lease(job_id="job-1"):
    return lease_of(job_id, shares=(Share("h1", 2),))


class Tables:
    """Ray's, of which only the groups have rows."""

    def __init__(self, table):
        self.table = table

    def groups(self):
        return [
            GroupRow(
                id=key,
                name=entry["name"],
                job_id="02000000",
                bundles=tuple((NODE.ray_id, bundle) for bundle in entry["bundles"].values()),
                is_placed=True,
            )
            for key, entry in self.table.items()
            if entry["state"] != "REMOVED"
        ]

    def actors(self):
        return []

    def dead_actors(self):
        return []

    def free(self):
        return {}

    def workers(self, address, port):
        return []

    def job(self, job_id):
        return None

    def remove_group(self, group_id):
        self.table[group_id]["state"] = "REMOVED"

    def tell_job(self, job_id, text):
        return

    put = tell_job


def removed_of(ours, table):
    looking = Reconciler(Ours(groups=ours), tables=lambda: Tables(table))
    look = looking.look([NODE], kill=lambda *_: None)
    found = looking.end(look, kill=lambda *_: None)
    assert looking.health.failures == 0, looking.health
    return found


def new_groups():
    return placement_groups.Groups(nodes={"h1": NODE}, agents=None, archive=None, settings=ClusterSettings())


devices_of = st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda counts: sum(counts) <= NODE.devices)


@given(st.lists(devices_of, min_size=2, max_size=8))
def test_kept_groups_give_way_until_all_of_a_lease_fits_and_no_further(leases):
    """Leases of one node, one after the other, each kept: also those that have several shares there."""

    async def story():
        ours = new_groups()
        for at, counts in enumerate(leases):
            wanted = lease_of(f"job-{at}", shares=tuple(Share("h1", count) for count in counts))
            kept = [group.shares for group in ours._kept]
            group, _ = await ours.take(wanted, environment="")
            held = [group.shares, *(each.shares for each in ours._kept)]
            assert sum(share.devices for shares in held for share in shares) <= NODE.devices
            assert len(kept) == len(ours._kept) or wanted.shares in kept or not fits_beside(wanted.shares, kept)
            assert ours.keep(group)

    with pytest.MonkeyPatch.context() as patch:
        table_of_ray(patch)
        asyncio.run(story())


def fits_beside(shares, kept):
    return sum(share.devices for held in (shares, *kept) for share in held) <= NODE.devices


async def test_a_group_that_ray_has_made_but_nobody_has_heard_of_yet_is_not_a_strangers(world):
    table, made, returns = world
    returns.clear()
    ours = new_groups()
    taking = asyncio.create_task(ours.take(lease(), environment=""))
    await asyncio.to_thread(made.wait, 10)
    assert await asyncio.to_thread(removed_of, ours.ours, table) == []
    returns.set()
    group, _ = await taking
    assert ours.ours() == {group.id}
    assert removed_of(ours.ours, table) == []


async def test_a_group_stays_ours_while_it_is_used_kept_and_used_again(world):
    table, _, _ = world
    ours = new_groups()
    group, _ = await ours.take(lease(), environment="")
    assert ours.keep(group)
    assert removed_of(ours.ours, table) == []
    again, _ = await ours.take(lease("job-2"), environment="")
    assert again is group
    assert removed_of(ours.ours, table) == []
    await ours.destroy(group)
    assert ours.ours() == set()


async def test_a_group_whose_lease_was_given_up_is_removed_as_soon_as_it_exists(world):
    table, made, returns = world
    returns.clear()
    ours = new_groups()
    taking = asyncio.create_task(ours.take(lease(), environment=""))
    await asyncio.to_thread(made.wait, 10)
    taking.cancel()
    await asyncio.sleep(0)
    returns.set()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert [entry["state"] for entry in table.values()] == ["REMOVED"]
    assert ours.ours() == set()


async def test_a_group_of_somebody_elses_is_removed(world):
    table, _, _ = world
    table["ab"] = {"state": "CREATED", "name": "foreign", "bundles": {0: {"GPU": 1}}}
    table["cd"] = {"state": "CREATED", "name": "harmless", "bundles": {0: {"CPU": 1}}}
    assert [use.name for use in removed_of(new_groups().ours, table)] == ["foreign"]


def slow(monkeypatch, world):
    """Ray takes its time to remove a group, or fails."""
    table, _, _ = world
    begun, goes_on, told = threading.Event(), threading.Event(), []

    def remove(placed):
        begun.set()
        assert goes_on.wait(10)
        if told:
            raise told.pop()
        table[placed.id.hex()]["state"] = "REMOVED"

    monkeypatch.setattr(placement_groups, "remove_placement_group", remove)
    return begun, goes_on, told


async def kept_by(ours, job_id):
    group, _ = await ours.take(lease_of(job_id, shares=(Share("h1", 3),)), environment="")
    assert ours.keep(group)
    return group


async def until_nothing_is_ours(ours):
    async with asyncio.timeout(10):
        while ours.ours():
            await ours.expire()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("ends_first", [True, False])
async def test_a_kept_group_that_makes_room_for_a_lease_that_is_given_up_is_removed(world, monkeypatch, ends_first):
    """Or its devices would be nobody's, and yet taken, for ever."""
    table, _, _ = world
    ours = new_groups()
    await kept_by(ours, "job-1")
    begun, goes_on, _ = slow(monkeypatch, world)
    taking = asyncio.create_task(ours.take(lease("job-2"), environment=""))
    await asyncio.to_thread(begun.wait, 10)
    taking.cancel()
    if ends_first:
        await asyncio.wait([taking])
        goes_on.set()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await taking
    await until_nothing_is_ours(ours)
    assert {entry["state"] for entry in table.values()} == {"REMOVED"}


async def test_the_runners_of_a_group_whose_end_is_broken_off_end_with_it(world, monkeypatch):
    """The lease is given up before Ray was even asked to remove the group."""
    table, _, _ = world
    ours, ended, may_end = new_groups(), [], threading.Event()
    group = await kept_by(ours, "job-1")
    actor = SimpleNamespace(actor=SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda: "ac")))
    group.runners = [placement_groups.Seated(actor=actor, seat=None, node=NODE)]

    def kill(actor, **_):
        ended.append(actor)
        assert may_end.wait(10)

    monkeypatch.setattr(placement_groups.ray, "kill", kill)
    taking = asyncio.create_task(ours.take(lease("job-2"), environment=""))
    async with asyncio.timeout(10):
        while not ended:  # noqa: ASYNC110  # it happens in a thread
            await asyncio.sleep(0.01)
    taking.cancel()
    await asyncio.wait([taking], timeout=0.1)
    may_end.set()
    await asyncio.wait([taking])
    await until_nothing_is_ours(ours)
    assert {entry["state"] for entry in table.values()} == {"REMOVED"}


async def test_a_group_that_could_not_be_removed_is_removed_later(world, monkeypatch):
    table, _, _ = world
    ours = new_groups()
    await kept_by(ours, "job-1")
    _, goes_on, told = slow(monkeypatch, world)
    goes_on.set()
    told.append(ConnectionError("the control store is away"))
    with pytest.raises(ConnectionError):
        await ours.take(lease("job-2"), environment="")
    await until_nothing_is_ours(ours)
    assert {entry["state"] for entry in table.values()} == {"REMOVED"}


class Ending:
    """Agents that remember whom they were to end."""

    def __init__(self):
        self.ended = []

    async def end(self, address, name, *, roots):
        assert roots == ()
        self.ended.append((address, name))
        return True


class Runner:
    """An actor of Ray's: it says where it sits, or is never there."""

    def __init__(self, *, sits):
        self.sits = sits
        self.seat = self

    async def remote(self):
        if not self.sits:
            await asyncio.Event().wait()
        return Seat(pid=1, ip="10.0.0.1", port=1, devices=())


@pytest.mark.parametrize("sits", [True, False])
async def test_what_was_started_for_a_runner_that_never_sat_is_ended_with_its_group(world, monkeypatch, sits):
    agents, started = Ending(), []
    made = placement_groups.Groups(nodes={"h1": NODE}, agents=agents, archive=None, settings=ClusterSettings())

    def start(group, lease, bundle, runtime_env, name):
        started.append(name)
        return Runner(sits=sits)

    monkeypatch.setattr(made, "_start", start)
    group, _ = await made.take(lease(), environment="")
    seating = asyncio.ensure_future(made.seat(group, lease(), runtime_env={}))
    while not started:  # noqa: ASYNC110  # in a thread
        await asyncio.sleep(0.01)
    await asyncio.wait({seating}, timeout=1)
    seating.cancel()
    await asyncio.wait({seating})
    group.runners.clear()
    await made.destroy(group)
    await made.close()
    assert agents.ended == [(NODE.address, name) for name in started if not sits]
