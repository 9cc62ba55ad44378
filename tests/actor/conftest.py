"""The gate's process around its gate, started and started again in this one. Ray is a stand-in."""

import asyncio
from collections import deque
from typing import ClassVar

import pytest
from pydantic import SecretBytes

from fabric.config.cluster import ClusterConfig
from fabric.config.prices import load_catalogue, load_tariffs
from fabric.errors import Unavailable
from fabric.gate.events import Configure
from fabric.server import actor as actor_module
from fabric.server.actor import GateActor


class StandInCluster:
    """What Ray would be told, and when it is away."""

    made: ClassVar = []
    away: ClassVar = deque()

    def __init__(self, *, report, archive, settings, clock):
        self.metrics = self.outage = None
        self.carried_out, self.published, self.shown = [], [], asyncio.Event()
        StandInCluster.made.append(self)

    async def start(self):
        self._fail("start")

    async def carry_out(self, instructions):
        self.carried_out += instructions

    async def reconcile(self, leases, *, jobs):
        self._fail("reconcile")
        self.jobs = jobs

    async def publish(self, jobs):
        self.published += jobs
        self.shown.set()

    def told_by(self, view):
        return view

    async def close(self):
        pass

    def _fail(self, step):
        if step in StandInCluster.away:
            StandInCluster.away.remove(step)
            raise Unavailable(f"{step}: the archive is out of reach")


@pytest.fixture
def cluster():
    return StandInCluster


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Makes the actor anew, as Ray does after a crash."""
    monkeypatch.setattr(actor_module, "RayCluster", StandInCluster)
    monkeypatch.setattr(StandInCluster, "made", [])
    monkeypatch.setattr(StandInCluster, "away", deque())
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
    return lambda kind=GateActor: kind(config, signing_key=SecretBytes(b"k" * 32), prices=prices)
