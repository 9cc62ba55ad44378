"""A real Ray cluster of simulated nodes, and what it reported."""

import asyncio
import io
import json
import os
import zipfile
from collections.abc import AsyncIterator, Iterator

import cloudpickle
import pytest
import pytest_asyncio

from fabric.cluster.local import LocalCluster, LocalNode
from fabric.cluster.ray_cluster import RayCluster
from fabric.cluster.settings import ClusterSettings
from fabric.gate.events import JobKind, LeaseFinished, LeaseRemoved, Metered
from fabric.gate.instructions import Lease, RemoveLease, Share, StartLease
from fabric.gate.views import LeaseView
from tests.worker.conftest import executing, machine

__all__ = ["executing", "local", "machine", "world"]
from fabric.storage.archive import DirectoryArchive
from fabric.worker.payload import inlined

NODES = (
    LocalNode(node_id="h1", accelerator="H100", devices=4),
    LocalNode(node_id="a1", accelerator="A100", devices=2, pool="reserved"),
    LocalNode(node_id="n1", accelerator="910B", devices=8),
)


class World:
    """The cluster, and what it reported."""

    def __init__(self, local, archive, settings):
        self.local = local
        self.archive = archive
        self.settings = settings
        self.events = []
        self.changed = asyncio.Event()
        self.cluster = RayCluster(report=self.report, archive=archive, settings=settings)
        self.count = 0

    async def report(self, events):
        self.events.extend(events)
        self.changed.set()

    async def wait(self, kind, lease_id=None, *, within_s=40, count=1):
        def found():
            same = [e for e in self.events if isinstance(e, kind)]
            return [e for e in same if lease_id is None or e.lease_id == lease_id]

        async with asyncio.timeout(within_s):
            while len(found()) < count:
                self.changed.clear()
                if len(found()) < count:
                    await self.changed.wait()
        return found()[-1]

    def lease(self, payload, *, kind=JobKind.FUNCTION, shares=(("h1", 1),), accelerator="H100", account="acme", **more):
        self.count += 1
        job_id = more.pop("job_id", f"job-{os.getpid()}-{self.count}")
        epoch = more.pop("epoch", 1)
        return Lease(
            lease_id=f"{job_id}.{epoch}",
            job_id=job_id,
            account_id=account,
            name="test",
            kind=kind,
            epoch=epoch,
            accelerator=accelerator,
            shares=tuple(Share(*share) for share in shares),
            payload=json.dumps(payload),
        )

    async def start(self, lease):
        await self.cluster.carry_out([StartLease(lease=lease)])
        return lease.lease_id

    async def remove(self, lease_id):
        await self.cluster.carry_out([RemoveLease(lease_id=lease_id)])
        return await self.wait(LeaseRemoved, lease_id)

    async def run(self, lease):
        await self.start(lease)
        finished = await self.wait(LeaseFinished, lease.lease_id)
        removed = await self.remove(lease.lease_id)
        return finished, removed

    def metered(self, lease_id):
        found = {s.seq: s for e in self.events if isinstance(e, Metered) for s in e.samples if s.lease_id == lease_id}
        for event in self.events:
            if isinstance(event, LeaseRemoved) and event.lease_id == lease_id and event.final:
                found[event.final.seq] = event.final
        return sum(s.window_us for s in found.values()), sum(s.busy_us for s in found.values()), sorted(found)

    @staticmethod
    def call(function, *args, **kwargs):
        return {"inline": inlined(cloudpickle.dumps((function, args, kwargs)))}

    @staticmethod
    def zipped(**files):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, text in files.items():
                archive.writestr(name.replace("__", "."), text)
        return packed.getvalue()

    @staticmethod
    def view(lease):
        return LeaseView(
            lease_id=lease.lease_id,
            job_id=lease.job_id,
            account_id=lease.account_id,
            accelerator=lease.accelerator,
            shares=lease.shares,
            state="running",
        )


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Iterator[LocalCluster]:
    cluster = LocalCluster.start(nodes=NODES, loopback=False)
    yield cluster
    cluster.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(local, tmp_path_factory) -> AsyncIterator[World]:
    archive = DirectoryArchive(tmp_path_factory.mktemp("archive"))
    settings = ClusterSettings(
        meter="cpu", tick_s=0.5, reconcile_s=0, work_dir=tmp_path_factory.mktemp("work"), warm_s=60
    )
    world = World(local, archive, settings)
    await world.cluster.start()
    yield world
    await world.cluster.close()
