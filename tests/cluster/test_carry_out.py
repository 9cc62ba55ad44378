"""Instructions that are said again, and leases of which nothing is left. Without Ray."""

import asyncio
from typing import ClassVar

import pytest

from fabric.cluster import ray_cluster
from fabric.cluster.ray_cluster import RayCluster
from fabric.cluster.settings import ClusterSettings
from fabric.enforcement.reconciler import Look, Reconciler
from fabric.gate.events import LeaseFinished, LeaseOutcome, LeaseRemoved
from fabric.gate.instructions import RemoveLease, Share, StartLease, StopLease
from fabric.gate.views import LeaseView
from fabric.storage.archive import DirectoryArchive
from fabric.worker.rank_order import Order
from tests.worker.leases import NODE, lease_of

LEASE = lease_of(shares=(Share("h1", 1),))
START, REMOVE = StartLease(lease=LEASE), RemoveLease(lease_id=LEASE.lease_id)
STOP = StopLease(lease_id=LEASE.lease_id, reason="evicted", deadline_us=0)


def view(state):
    return LeaseView(
        lease_id=LEASE.lease_id,
        job_id=LEASE.job_id,
        account_id=LEASE.account_id,
        accelerator=LEASE.accelerator,
        shares=LEASE.shares,
        state=state,
    )


class Attempt:
    """Told what to do with its lease, it does nothing."""

    told: ClassVar = []

    def __init__(self, *, lease, around):
        self.lease, self.around = lease, around
        self.task = self.removal = None

    async def start(self):
        self.told.append("start")

    async def ask_to_stop(self, reason, *, seconds_left):
        self.told.append("stop")

    async def remove(self):
        self.told.append("remove")
        if self.told.count("remove") == 1:
            raise KeyError("something that nobody thought of")
        self.around.outbox.put(LeaseRemoved(lease_id=self.lease.lease_id))


@pytest.fixture
async def cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "Attempt", Attempt)
    monkeypatch.setattr(Attempt, "told", [])
    monkeypatch.setattr(Reconciler, "look", lambda *_, **__: Look())
    monkeypatch.setattr(Reconciler, "end", lambda *_, **__: [])
    reported = []

    async def report(events):
        reported.extend(events)

    made = RayCluster(
        report=report, archive=DirectoryArchive(tmp_path), settings=ClusterSettings(watch_s=0.01, metrics=False)
    )
    made._around.outbox.start()
    made.reported = reported
    yield made
    await made.close()


async def soon():
    for _ in range(5):
        await asyncio.sleep(0.01)


async def test_a_lease_that_is_started_twice_is_built_once(cluster):
    await cluster.carry_out([START, START])
    await cluster.carry_out([START])
    await soon()
    assert Attempt.told == ["start"]


async def test_a_removal_goes_on_until_it_works_whatever_goes_wrong(cluster):
    await cluster.carry_out([START, REMOVE, REMOVE])
    await soon()
    assert Attempt.told == ["start", "remove", "remove"]
    assert [type(event) for event in cluster.reported] == [LeaseRemoved]


async def test_a_removed_lease_is_not_asked_to_stop_and_its_removal_is_told_again(cluster):
    await cluster.carry_out([START, REMOVE, STOP])
    await soon()
    assert "stop" not in Attempt.told
    await cluster.carry_out([REMOVE])
    await soon()
    assert [type(event) for event in cluster.reported] == [LeaseRemoved, LeaseRemoved]


@pytest.mark.parametrize("state", ["running", "stopping"])
async def test_a_lease_that_did_not_outlive_the_gate_is_lost_and_not_run_again(cluster, state):
    report = await cluster.reconcile([view(state)])
    assert report.gone == (LEASE.lease_id,)
    await cluster.carry_out([START, STOP])
    await soon()
    assert Attempt.told == []
    (finished,) = cluster.reported
    assert isinstance(finished, LeaseFinished)
    assert finished.outcome is LeaseOutcome.LOST


async def test_a_lease_whose_machine_never_went_was_not_lost_by_the_platform(cluster, monkeypatch):
    """Its runner ended, or was ended by its job, while the gate was away: the agent that watched it is still there."""

    async def watches(address, lease_id):
        return (address, lease_id) == (NODE.address, LEASE.lease_id)

    cluster._nodes["h1"] = NODE
    monkeypatch.setattr(cluster._agents, "watches", watches)
    await cluster.reconcile([view("running")])
    await soon()
    (finished,) = cluster.reported
    assert finished.outcome is LeaseOutcome.INTERRUPTED


async def test_a_lease_that_was_being_built_when_the_gate_died_is_built_again(cluster):
    report = await cluster.reconcile([view("starting")])
    assert report.gone == ()
    await cluster.carry_out([START])
    await soon()
    assert Attempt.told == ["start"]


async def test_a_lease_that_was_being_removed_when_the_gate_died_is_said_to_be_gone(cluster):
    report = await cluster.reconcile([view("removing")])
    assert report.gone == ()
    await cluster.carry_out([REMOVE])
    await soon()
    assert [type(event) for event in cluster.reported] == [LeaseRemoved]


async def test_the_logs_of_a_lease_that_ended_as_the_gate_died_are_kept(cluster, monkeypatch, tmp_path):
    """It was to be removed by a gate that died before that had moved them."""
    cluster._nodes["h1"] = NODE
    tidied, ended = [], []

    async def tidy(address, *, folder, log_file, log_key):
        tidied.append((address, folder, log_file, log_key))

    async def end(address, lease_id, *, roots):
        ended.append((address, lease_id))

    monkeypatch.setattr(cluster._agents, "tidy", tidy)
    monkeypatch.setattr(cluster._agents, "end", end)
    monkeypatch.setattr(cluster._agents, "cover", lambda _: asyncio.sleep(0))
    await cluster.carry_out([RemoveLease(lease_id=LEASE.lease_id, lease=LEASE)])
    await soon()
    order = Order(
        lease=LEASE, rank=0, master_addr="", master_port=0, work_dir=str(cluster._settings.work_dir)
    )  # fmt: skip
    assert tidied == [(NODE.address, str(order.folder), str(order.log_file), order.log_key)]
    assert ended == [(NODE.address, LEASE.lease_id)], "Ray may have started something for a runner that never sat"
    assert [type(event) for event in cluster.reported] == [LeaseRemoved]


async def test_a_lease_that_the_gate_knows_nothing_of_is_removed(cluster):
    await cluster.carry_out([START])
    await cluster.reconcile([])
    await soon()
    assert Attempt.told == ["start", "remove", "remove"]
