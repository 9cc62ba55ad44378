"""What the Ray side does when jobs must stop, processes die, or somebody takes what isn't leased."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import msgspec
import pytest
import ray
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray.util.placement_group import placement_group, placement_group_table

from fabric import context
from fabric.cluster.ray_cluster import RayCluster
from fabric.errors import Unavailable
from fabric.gate.events import (
    JobKind,
    LeaseFinished,
    LeaseOutcome,
    LeaseSaved,
    LeaseStarted,
    NodeDown,
)
from fabric.gate.instructions import StartLease, StopLease
from fabric.gate.views import JobView
from fabric.results import read_parcel
from fabric.storage.results import read_result
from fabric.system.processes import tree_of

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


async def test_a_job_that_is_asked_to_stop_saves_parks_and_resumes_where_it_was(world):
    def counting():
        job = context.current()
        start = int((job.load() or b"0").decode())
        for step in range(start, start + 10_000):
            if job.wait_for_stop(0.02):
                job.save(str(step + 1).encode(), step=step + 1)
                job.park()
            if start and step > start:
                return start
        return -1

    lease = world.lease(world.call(counting), job_id=f"saver-{os.getpid()}")
    await world.start(lease)
    await world.wait(LeaseStarted, lease.lease_id)
    await asyncio.sleep(0.3)
    soon = time.time_ns() // 1000 + 5_000_000
    await world.cluster.carry_out([StopLease(lease_id=lease.lease_id, reason="evicted", deadline_us=soon)])
    finished = await world.wait(LeaseFinished, lease.lease_id)
    assert finished.outcome is LeaseOutcome.SAVED, finished.error
    saved = await world.wait(LeaseSaved, lease.lease_id)
    await world.remove(lease.lease_id)
    again = world.lease(world.call(counting), job_id=lease.job_id, epoch=2)
    finished, _ = await world.run(again)
    assert read_parcel(read_result(world.archive, finished.result_ref)).value() == saved.step


async def test_a_job_that_ignores_the_wish_is_ended_with_all_its_processes(world):
    def deaf():
        subprocess.Popen(["setsid", "sleep", "1000"])
        while True:
            time.sleep(1)

    lease = world.lease(world.call(deaf))
    await world.start(lease)
    await world.wait(LeaseStarted, lease.lease_id)
    await asyncio.sleep(0.5)
    assert len(tree_of((), lease_id=lease.lease_id)) == 1
    removed = await world.remove(lease.lease_id)
    assert removed.final is not None
    assert tree_of((), lease_id=lease.lease_id) == []


async def test_a_job_whose_process_dies_has_failed_by_itself(world):
    finished, _ = await world.run(world.lease(world.call(lambda: os.kill(os.getpid(), signal.SIGKILL))))
    assert finished.outcome is LeaseOutcome.FAILED
    assert finished.error.startswith("worker_died")


def raising(made):
    """Does the work, publishes it, and says that the platform failed."""
    context.current().publish(b"a day's work")
    raise made()


def lying():
    """Has its own runner report a loss."""
    import gc

    from fabric.worker.runner import Runner

    (runner,) = [found for found in gc.get_objects() if type(found).__name__ == Runner.__name__]
    finish = runner._finish
    runner._finish = lambda end, ended: finish(
        end, msgspec.structs.replace(ended, outcome=LeaseOutcome.LOST, result_ref="")
    )


def breaking():
    """Has its own runner answer with Ray's word for a node that died."""
    import gc

    from fabric.worker.runner import Runner

    class NodeDied(ray.exceptions.RayActorError):
        def __str__(self):
            return "The actor died because its node has died."

    (runner,) = [found for found in gc.get_objects() if type(found).__name__ == Runner.__name__]
    runner._finish = lambda end, _: end.set_exception(NodeDied())


CHEATS = {
    "raises Unavailable": (raising, lambda: Unavailable("the archive is away", code="archive_failed")),
    "raises an error of Ray's": (raising, ray.exceptions.NodeDiedError),
    "exits": (os._exit, 0),
    "is killed by itself": (lambda: os.kill(os.getpid(), signal.SIGKILL),),
    "ends itself as if asked": (lambda: sys.exit(-signal.SIGTERM),),
    "lies": (lying,),
    "breaks the answer": (breaking,),
}


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS)
async def test_no_end_that_a_job_brings_about_is_the_platforms_fault(world, cheat):
    finished, _ = await world.run(world.lease(world.call(*cheat)))
    assert finished.outcome is LeaseOutcome.FAILED, finished.error
    assert not [event for event in world.events if isinstance(event, NodeDown)]


COMMANDS = {
    "leaves a folder that is written to": (
        "head -c 100000000 /dev/zero > big; (while :; do echo more >> big; done) & sleep 0.1; exit 75"
    ),
    "kills its parent, the runner": "kill -9 $PPID; sleep 60",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
async def test_no_end_that_a_command_brings_about_is_the_platforms_fault(world, command):
    line = f"cd $FABRIC_CHECKPOINT_DIR; {command}"
    lease = world.lease({"entrypoint": ["bash", "-c", line]}, kind=JobKind.SCRIPT)
    finished, _ = await world.run(lease)
    assert finished.outcome is LeaseOutcome.FAILED, finished.error


async def test_what_holds_an_accelerator_without_a_lease_is_removed_and_reported(world):
    foreign = placement_group([{"GPU": 1, "CPU": 1}], name="foreign", bundle_label_selector=[{"fabric.io/node": "a1"}])
    await foreign.ready()

    @ray.remote(num_gpus=1, num_cpus=0, label_selector={"fabric.io/node": "h1"})
    class Squatter:
        def here(self):
            return True

    squatter = Squatter.remote()
    assert await squatter.here.remote()
    report = await world.cluster.reconcile([])
    assert {(u.kind, u.name.rpartition(".")[2]) for u in report.unleased} >= {
        ("placement_group", "foreign"),
        ("actor", "Squatter"),
    }
    with pytest.raises(ray.exceptions.RayActorError):
        await squatter.here.remote()
    table = await asyncio.to_thread(placement_group_table, foreign)
    assert table["state"] == "REMOVED"


async def test_the_dashboard_shows_account_and_tokens(world):
    view = JobView(
        job_id="job-shown",
        account_id="acme",
        name="train",
        kind="function",
        state="running",
        reason="",
        accelerator="H100",
        devices=2,
        nodes=("h1",),
        limit_uhs=7_200_000_000,
        held_uhs=3_600_000_000,
        burned_uhs=1_800_000_000,
        burn_uhs_per_s=1,
        utilisation_ppm=800_000,
        runway_us=1,
        attempts=1,
        submitted_at_us=1_700_000_000_000_000,
        started_at_us=1_700_000_001_000_000,
        ended_at_us=None,
        settled=False,
        error="",
        result_ref="",
        lease_id="l",
        revision=1,
    )
    await world.cluster.publish([view])

    def page():
        request = urllib.request.Request(
            f"{world.local.dashboard_url}/api/jobs/", headers=get_auth_headers_if_auth_enabled({})
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    shown = next(j for j in await asyncio.to_thread(page) if j["submission_id"] == "job-shown")
    assert shown["status"] == "RUNNING"
    assert shown["message"] == "acme · H100×2 · running · held 1 CT · burned 0.5 CT"
    assert shown["metadata"]["tokens_burned"] == "0.5"


async def test_a_restarted_gate_finds_its_running_jobs_again(world):
    def slow():
        time.sleep(4)
        return "done"

    lease = world.lease(world.call(slow), shares=(("n1", 8),), accelerator="910B")
    await world.start(lease)
    await world.wait(LeaseStarted, lease.lease_id)
    await asyncio.sleep(1)
    await world.cluster.close()
    world.cluster = RayCluster(report=world.report, archive=world.archive, settings=world.settings)
    await world.cluster.start()
    await world.cluster.carry_out([StartLease(lease=lease)])
    report = await world.cluster.reconcile([world.view(lease), world.view(world.lease({}))])
    assert len(report.gone) == 1
    finished = await world.wait(LeaseFinished, lease.lease_id)
    assert read_parcel(read_result(world.archive, finished.result_ref)).value() == "done"
    await world.remove(lease.lease_id)
    window_us, _, seqs = world.metered(lease.lease_id)
    assert seqs == list(range(1, len(seqs) + 1))
    assert window_us > 3_800_000


async def test_a_node_that_dies_loses_its_leases_and_nothing_else(world, comes_back):
    comes_back("n1")
    lease = world.lease(world.call(time.sleep, 1000), shares=(("n1", 8),), accelerator="910B")
    await world.start(lease)
    await world.wait(LeaseStarted, lease.lease_id)
    await asyncio.to_thread(world.local.kill, "n1")
    finished = await world.wait(LeaseFinished, lease.lease_id)
    assert finished.outcome is LeaseOutcome.LOST
    await world.wait(NodeDown)
    await world.remove(lease.lease_id)
