"""The gate's looks for unleased use go on, whoever is silent meanwhile. Without Ray."""

import asyncio
import os
import threading

import pytest

from fabric.cluster.ray_cluster import RayCluster
from fabric.cluster.settings import ClusterSettings
from fabric.enforcement.reconciler import Ours, Reconciler
from tests.enforcement.test_reconciler import GATE, Tables, actor, group, worker
from tests.worker.leases import NODE

THREADS = 32 + (os.cpu_count() or 1)
"""More than a process has for whatever blocks."""


class Agents:
    """They end what they are told to, and say what leases have only when they may."""

    def __init__(self):
        self.speak, self.ended = asyncio.Event(), []

    async def claimed(self):
        await self.speak.wait()
        return {NODE.address: set()}

    async def kill(self, address, pid):
        self.ended.append(f"{address} {pid}")


@pytest.fixture
async def looking(tmp_path):
    """A gate's side of a cluster, with tables of the test's, as it looks again and again; and what its loop awaits."""
    made = RayCluster(report=None, archive=None, settings=ClusterSettings(work_dir=tmp_path, metrics=False))
    made._nodes[NODE.node_id] = NODE
    made._agents.claimed, made._agents.kill = (agents := Agents()).claimed, agents.kill
    yield made, agents
    agents.speak.set()
    await asyncio.gather(*made._tasks)


def with_tables(cluster, tables):
    cluster._reconciler._tables = tables
    cluster._ours.job_id = GATE
    return tables


async def test_an_agent_that_is_silent_keeps_no_look_waiting(looking):
    cluster, agents = looking
    tables = with_tables(cluster, Tables(actors=[actor("left", job_id=GATE, required={}, pid=31)]))
    await asyncio.wait_for(cluster._unleased.end(), 10)
    tables.rows["actors"].append(actor("taken"))
    await asyncio.wait_for(cluster._unleased.end(), 10)
    assert tables.ended == ["taken"]
    assert not agents.speak.is_set()


async def test_threads_that_all_wait_keep_no_look_waiting(looking):
    cluster, _ = looking
    tables, over = with_tables(cluster, Tables(actors=[actor("taken")])), threading.Event()
    waiting = [asyncio.ensure_future(asyncio.to_thread(over.wait, 60)) for _ in range(THREADS)]
    try:
        await asyncio.wait_for(cluster._unleased.end(), 10)
        assert tables.ended == ["taken"]
    finally:
        over.set()
        await asyncio.gather(*waiting)


def test_what_the_control_store_tells_is_ended_before_raylets_are_asked():
    """One whose worker stands still takes its time to answer."""
    tables = Tables(groups=[group("g")], actors=[actor("a")], workers=[worker(5)])
    looking, before = Reconciler(Ours(groups=set, job_id=GATE), tables=lambda: tables), []
    ask = tables.workers

    def asked(*about):
        before.extend(tables.ended)
        return ask(*about)

    tables.workers = asked

    def end(look):
        return looking.end(look, kill=lambda _, pid: tables.ended.append(str(pid)))

    end(looking.look([NODE], kill=lambda _, pid: tables.ended.append(str(pid)), first=end))
    assert before == ["g", "a", "7"]
    assert tables.ended == ["g", "a", "7", "5"]
    assert (looking.health.looks, looking.health.removed) == (1, 3)
