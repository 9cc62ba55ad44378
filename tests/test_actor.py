"""The gate's process around its gate: coming up, coming up again, and telling of what changed. Ray is a stand-in."""

import asyncio
from collections import deque
from typing import ClassVar

import pytest
from pydantic import SecretBytes

from fabric import actor as actor_module
from fabric.actor import GateActor
from fabric.adapters.price_files import load_catalogue, load_tariffs
from fabric.errors import Unavailable
from fabric.gate.events import Configure, JobKind, JobSpec, NodeUp, OpenAccount, Pool, Submit, TopUp
from fabric.gate.instructions import Accepted, StartLease
from fabric.settings import ClusterConfig
from fabric.units import UHS_PER_CT


class Cluster:
    """What Ray would be told, and when it is away."""

    made: ClassVar = []
    away: ClassVar = deque()

    def __init__(self, *, report, archive, settings, clock):
        self.metrics = None
        self.carried_out, self.published, self.shown = [], [], asyncio.Event()
        Cluster.made.append(self)

    async def start(self):
        self._fail("start")

    async def carry_out(self, instructions):
        self.carried_out += instructions

    async def reconcile(self, leases):
        self._fail("reconcile")

    async def publish(self, jobs):
        self.published += jobs
        self.shown.set()

    def told_by(self, view):
        return view

    async def close(self):
        pass

    def _fail(self, step):
        if step in Cluster.away:
            Cluster.away.remove(step)
            raise Unavailable(f"{step}: the archive is out of reach")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Makes the actor anew, as Ray does after a crash."""
    monkeypatch.setattr(actor_module, "RayCluster", Cluster)
    monkeypatch.setattr(Cluster, "made", [])
    monkeypatch.setattr(Cluster, "away", deque())
    config = ClusterConfig.model_validate(
        {
            "name": "test",
            "ray": {"mode": "local", "nodes": [{"node": "h1", "accelerator": "H100", "devices": 4}]},
            "journal": {"kind": "sqlite", "path": str(tmp_path / "journal.db")},
            "archive": {"kind": "directory", "path": str(tmp_path / "archive")},
        }
    )
    prices = Configure(
        tariffs=load_tariffs(config.tariffs), catalogue=load_catalogue(config.plans), operator="op", request_id="prices"
    )
    return lambda: GateActor(config, signing_key=SecretBytes(b"k" * 32), prices=prices)


JOB = [
    NodeUp(node_id="h1", accelerator="H100", devices=4, pool=Pool.SPOT),
    OpenAccount(account_id="acme", name="Acme", plan="starter", request_id="open"),
    TopUp(account_id="acme", amount_uhs=100 * UHS_PER_CT, payment_ref="p", request_id="top-up"),
    Submit(
        job_id="job-1",
        account_id="acme",
        spec=JobSpec(name="train", kind=JobKind.FUNCTION, limit_uhs=10 * UHS_PER_CT, payload="{}"),
        request_id="submit",
    ),
]


def writers():
    return [task for task in asyncio.all_tasks() if task.get_name() == "journal-writer"]


@pytest.mark.parametrize("step", ["start", "reconcile"])
async def test_a_start_that_failed_half_way_is_finished_by_the_next_call_and_writes_with_one_hand(world, step):
    Cluster.away.append(step)
    gate = world()
    with pytest.raises(Unavailable):
        await gate.ready()
    assert all(isinstance(outcome, Accepted) for outcome in await gate.decide(JOB))
    assert len(writers()) == 1
    await gate.close()


async def test_a_gate_that_comes_up_again_shows_the_jobs_that_are_not_over(world, monkeypatch):
    monkeypatch.setattr(actor_module, "PUBLISH_S", 0.01)
    first = world()
    await first.decide(JOB)
    await first.close()
    second = world()
    await second.ready()
    await Cluster.made[-1].shown.wait()
    assert [view.job_id for view in Cluster.made[-1].published] == ["job-1"]
    assert [type(said) for said in Cluster.made[-1].carried_out] == [StartLease]
    await second.close()
