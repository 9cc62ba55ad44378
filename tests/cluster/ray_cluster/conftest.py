"""A real Ray cluster of simulated nodes, one for all modules of this folder, and what each of them hears of it.

A cluster takes tens of seconds to start and to stop. A module finds its nodes as new: who takes one away, or has Ray drain it, gives
it back (`comes_back`).
"""

import asyncio
import io
import itertools
import json
import os
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import cloudpickle
import pytest
import pytest_asyncio
import ray

from fabric.cluster.local import LocalCluster, LocalNode
from fabric.cluster.ray_cluster import RayCluster
from fabric.cluster.settings import ClusterSettings
from fabric.gate.events import JobKind, LeaseFinished, LeaseRemoved, Metered
from fabric.gate.instructions import Lease, RemoveLease, Share, StartLease
from fabric.gate.views import LeaseView
from fabric.inventory.nodes import NODE_LABEL
from fabric.storage.archive import DirectoryArchive
from fabric.worker.payload import inlined
from tests.shared import shared
from tests.worker.conftest import executing, machine

__all__ = ["executing", "local", "machine", "world"]
HERE = Path(__file__).parent
NODES = (
    LocalNode(node_id="h1", accelerator="H100", devices=4),
    LocalNode(node_id="a1", accelerator="A100", devices=2, pool="reserved"),
    LocalNode(node_id="n1", accelerator="910B", devices=8),
)


class World:
    """The cluster, and what it reported."""

    counts = itertools.count(1)
    """Of all modules' jobs: they are one fabric's."""

    def __init__(self, local, archive, settings):
        self.local = local
        self.archive = archive
        self.settings = settings
        self.events = []
        self.changed = asyncio.Event()
        self.cluster = RayCluster(report=self.report, archive=archive, settings=settings)

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
        job_id = more.pop("job_id", f"job-{os.getpid()}-{next(self.counts)}")
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

    def give_back(self, node_id):
        """Have that node as new, whatever became of it. In the main thread, as all starts of Ray's processes."""
        if node_id in self.local._raylets:
            self.local.kill(node_id)
        deadline = time.monotonic() + 60
        while any(each["Alive"] and each["Labels"].get(NODE_LABEL) == node_id for each in ray.nodes()):
            assert time.monotonic() < deadline, "Ray takes it for alive"
            time.sleep(0.1)
        self.local.add(next(node for node in NODES if node.node_id == node_id))

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


@contextmanager
def started() -> Iterator[LocalCluster]:
    cluster = LocalCluster.start(nodes=NODES, loopback=False)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def local(request) -> LocalCluster:
    return shared.of(request, HERE, "cluster", started)


@pytest.fixture(scope="module")
def ours(request, tmp_path_factory) -> tuple[DirectoryArchive, ClusterSettings]:
    """What all modules' gates have in common: each finds the node agent of the one before."""

    def made():
        work = tmp_path_factory.mktemp("work")
        settings = ClusterSettings(meter="cpu", tick_s=0.5, reconcile_s=0, work_dir=work, warm_s=60)
        return nullcontext((DirectoryArchive(tmp_path_factory.mktemp("archive")), settings))

    return shared.of(request, HERE, "ours", made)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(local, ours) -> AsyncIterator[World]:
    world = World(local, *ours)
    await world.cluster.start()
    async with asyncio.timeout(60):
        while (await world.cluster.reconcile([])).unleased:  # noqa: ASYNC110  # what a module before has left: nobody tells
            await asyncio.sleep(0.1)
    yield world
    await world.cluster.close()


@pytest.fixture(autouse=True)
def whole(request) -> None:
    """Nodes that ended with the test before are there again: what fails fails alone."""
    if "local" not in request.fixturenames:
        return
    cluster = request.getfixturevalue("local")
    cluster.mend()
    deadline = time.monotonic() + 60
    while cluster.away:
        assert time.monotonic() < deadline, "Ray takes a node that has ended for alive"
        cluster.return_nodes({each["NodeID"] for each in ray.nodes() if each["Alive"]})
        time.sleep(0.1)


@pytest.fixture
def comes_back(world) -> Iterator[Callable[[str], None]]:
    """Call it with a node that a test takes away: it is there again for the next one, however the test ends."""
    names: list[str] = []
    yield names.append
    for name in names:
        world.give_back(name)
