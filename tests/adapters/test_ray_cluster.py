"""What the Ray side promises, on a real cluster of simulated nodes."""

import asyncio
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import AsyncIterator, Iterator

import cloudpickle
import pytest
import pytest_asyncio
import ray
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray.util import get_current_placement_group
from ray.util.placement_group import PlacementGroup, PlacementGroupID, placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fabric import context
from fabric.adapters.archive import DirectoryArchive
from fabric.adapters.cluster_settings import ClusterSettings
from fabric.adapters.local_cluster import LocalCluster, LocalNode
from fabric.adapters.payload import inlined
from fabric.adapters.processes import is_there, tree_of
from fabric.adapters.ray_cluster import RayCluster
from fabric.gate.events import (
    JobKind,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    Metered,
    NodeDown,
    NodeUp,
)
from fabric.gate.instructions import Lease, RemoveLease, Share, StartLease, StopLease
from fabric.gate.views import JobView, LeaseView

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

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


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Iterator[LocalCluster]:
    cluster = LocalCluster.start(nodes=NODES)
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


def call(function, *args, **kwargs):
    return {"inline": inlined(cloudpickle.dumps((function, args, kwargs)))}


def zipped(**files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "."), text)
    return packed.getvalue()


async def test_every_labelled_node_is_reported_with_its_type_and_devices(world):
    nodes = {e.node_id: (e.accelerator, e.devices, e.pool) for e in world.events if isinstance(e, NodeUp)}
    assert nodes == {"h1": ("H100", 4, "spot"), "a1": ("A100", 2, "reserved"), "n1": ("910B", 8, "spot")}


async def test_a_function_runs_on_its_devices_and_its_result_is_kept(world):
    def work(x, *, y):
        sys.stdout.write("hello from the job\n")
        return x * y, os.environ["FABRIC_ACCELERATOR"], ray.get_gpu_ids()

    lease = world.lease(call(work, 6, y=7), shares=(("h1", 2),))
    finished, removed = await world.run(lease)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    value, accelerator, gpus = pickle.loads(world.archive.get(finished.result_ref))
    assert (value, accelerator, len(gpus)) == (42, "H100", 2)
    assert removed.final is not None
    kinds = [type(e) for e in world.events if getattr(e, "lease_id", None) == lease.lease_id]
    assert kinds == [LeaseStarted, LeaseFinished, LeaseRemoved]
    chunks = [c async for c in world.cluster.logs(lease.job_id, account_id="acme", offsets={}, follow=True)]
    assert b"hello from the job" in b"".join(c.data for c in chunks)
    assert chunks[-1].end


async def test_the_next_lease_of_the_same_shape_and_account_uses_the_same_process(world):
    def pid():
        return os.getpid(), get_current_placement_group().id.hex()

    async def where(account):
        finished, _ = await world.run(world.lease(call(pid), shares=(("h1", 2),), account=account))
        assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
        return pickle.loads(world.archive.get(finished.result_ref))

    first, second, stranger = await where("acme"), await where("acme"), await where("globex")
    assert first == second
    assert stranger[0] != first[0]
    assert stranger[1] == first[1]
    assert not is_there(first[0])


async def test_a_function_that_raises_fails_with_its_traceback_and_its_exception(world):
    def broken():
        raise KeyError("no such column")

    finished, _ = await world.run(world.lease(call(broken), shares=(("h1", 2),)))
    assert finished.outcome is LeaseOutcome.FAILED
    assert finished.error.endswith("KeyError: 'no such column'")
    assert isinstance(pickle.loads(world.archive.get(finished.result_ref)), KeyError)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"inline": inlined(b"not a pickle")}, "unpicklable"),
        ({"entrypoint": "missing.py"}, "script_not_found"),
        ({"entrypoint": ["no-such-command"]}, "script_not_found"),
        ({"blob": "nothing/here"}, "blob_not_found"),
        ({"surprise": 1}, "payload_invalid"),
        (call(lambda: (i for i in ())), "result_not_picklable"),
    ],
)
async def test_what_can_never_run_fails_with_a_code(world, payload, code):
    finished, _ = await world.run(world.lease(payload, shares=(("h1", 2),)))
    assert finished.outcome is LeaseOutcome.FAILED
    assert finished.error.startswith(f"{code}: ")


async def test_a_script_runs_in_its_working_directory_with_its_arguments(world):
    world.archive.put(
        "jobs/acme/wd",
        zipped(
            train__py="import sys, ray, part\nray.init()\nprint('args', sys.argv[1:], part.VALUE, open('data.txt').read())\n",
            part__py="VALUE = 7\n",
            data__txt="data!",
        ),
    )
    payload = {"entrypoint": "train.py", "args": ["--lr", "1"], "working_dir_blob": "jobs/acme/wd"}
    lease = world.lease(payload, kind=JobKind.SCRIPT, shares=(("h1", 2),))
    finished, _ = await world.run(lease)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    chunks = [c async for c in world.cluster.logs(lease.job_id, account_id="acme", offsets={}, follow=True)]
    assert b"args ['--lr', '1'] 7 data!" in b"".join(c.data for c in chunks)


async def test_a_command_that_exits_non_zero_fails_with_the_end_of_its_log(world):
    payload = {"entrypoint": ["bash", "-c", "echo it is broken; exit 3"]}
    finished, _ = await world.run(world.lease(payload, kind=JobKind.SCRIPT, shares=(("h1", 2),)))
    assert (finished.outcome, finished.error) == (LeaseOutcome.FAILED, "exit code 3\nit is broken")


async def test_the_tasks_of_a_program_run_inside_its_lease(world):
    def program():
        @ray.remote(num_gpus=1)
        def inside():
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                pass
            return get_current_placement_group().id.hex()

        return get_current_placement_group().id.hex(), ray.get([inside.remote() for _ in range(2)])

    lease = world.lease(call(program), kind=JobKind.PROGRAM, shares=(("h1", 2),))
    finished, _ = await world.run(lease)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    mine, theirs = pickle.loads(world.archive.get(finished.result_ref))
    assert theirs == [mine, mine]
    _, busy_us, _ = world.metered(lease.lease_id)
    assert busy_us > 1_000_000


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

    lease = world.lease(call(counting), job_id=f"saver-{os.getpid()}")
    await world.start(lease)
    await world.wait(LeaseStarted, lease.lease_id)
    await asyncio.sleep(0.3)
    soon = time.time_ns() // 1000 + 5_000_000
    await world.cluster.carry_out([StopLease(lease_id=lease.lease_id, reason="evicted", deadline_us=soon)])
    finished = await world.wait(LeaseFinished, lease.lease_id)
    assert finished.outcome is LeaseOutcome.SAVED, finished.error
    saved = await world.wait(LeaseSaved, lease.lease_id)
    await world.remove(lease.lease_id)
    again = world.lease(call(counting), job_id=lease.job_id, epoch=2)
    finished, _ = await world.run(again)
    assert pickle.loads(world.archive.get(finished.result_ref)) == saved.step


async def test_a_job_that_ignores_the_wish_is_ended_with_all_its_processes(world):
    def deaf():
        subprocess.Popen(["setsid", "sleep", "1000"])
        while True:
            time.sleep(1)

    lease = world.lease(call(deaf))
    await world.start(lease)
    await world.wait(LeaseStarted, lease.lease_id)
    await asyncio.sleep(0.5)
    assert len(tree_of((), lease_id=lease.lease_id)) == 1
    removed = await world.remove(lease.lease_id)
    assert removed.final is not None
    assert tree_of((), lease_id=lease.lease_id) == []


async def test_a_job_whose_process_dies_has_failed_by_itself(world):
    finished, _ = await world.run(world.lease(call(lambda: os.kill(os.getpid(), signal.SIGKILL))))
    assert finished.outcome is LeaseOutcome.FAILED
    assert finished.error.startswith("worker_died")


async def test_a_gang_runs_once_a_share_and_one_failing_rank_fails_it(world):
    def rank(failing):
        if failing == context.current().rank:
            raise ValueError("rank fails")
        if failing is not None:
            time.sleep(1000)
        return os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_PORT"]

    def gang(failing):
        return world.lease(call(rank, failing), shares=(("n1", 4), ("n1", 4)), accelerator="910B")

    finished, _ = await world.run(gang(None))
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    assert pickle.loads(world.archive.get(finished.result_ref))[:2] == ("0", "2")
    finished, _ = await world.run(gang(1))
    assert finished.outcome is LeaseOutcome.FAILED
    assert "rank fails" in finished.error


async def test_a_job_that_waits_half_of_the_time_is_metered_at_half(world):
    def load(share):
        end = time.monotonic() + 4
        while time.monotonic() < end:
            stop = time.monotonic() + 0.1 * share
            while time.monotonic() < stop:
                pass
            if share < 1:
                time.sleep(max(0.0, 0.1 * (1 - share)))

    async def utilisation(share):
        lease = world.lease(call(load, share), shares=(("a1", 1),), accelerator="A100")
        finished, _ = await world.run(lease)
        assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
        window_us, busy_us, seqs = world.metered(lease.lease_id)
        assert seqs == list(range(1, len(seqs) + 1))
        assert window_us > 3_900_000
        return busy_us / window_us

    busy, half = await utilisation(1.0), await utilisation(0.5)
    assert busy >= 0.8
    assert 0.35 <= half <= 0.65


async def test_a_bare_lease_gives_the_client_its_placement_group(world):
    lease = world.lease({}, kind=JobKind.LEASE, shares=(("a1", 2),), accelerator="A100")
    await world.start(lease)
    await world.wait(LeaseStarted, lease.lease_id)
    info = world.cluster.lease_info(lease.lease_id)
    placed = PlacementGroup(PlacementGroupID(bytes.fromhex(info.placement_group_id)))

    @ray.remote
    def inside():
        return os.environ["FABRIC_LEASE_ID"], ray.get_gpu_ids()

    reference = inside.options(
        num_cpus=0,
        num_gpus=1,
        runtime_env={"env_vars": info.env_vars},
        scheduling_strategy=PlacementGroupSchedulingStrategy(placed, placement_group_bundle_index=0),
    ).remote()
    found, gpus = await reference
    assert (found, len(gpus)) == (lease.lease_id, 1)
    assert (await world.cluster.reconcile([_view(lease)])).unleased == ()
    removed = await world.remove(lease.lease_id)
    assert removed.final is not None


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

    lease = world.lease(call(slow), shares=(("n1", 8),), accelerator="910B")
    await world.start(lease)
    await world.wait(LeaseStarted, lease.lease_id)
    await asyncio.sleep(1)
    await world.cluster.close()
    world.cluster = RayCluster(report=world.report, archive=world.archive, settings=world.settings)
    await world.cluster.start()
    await world.cluster.carry_out([StartLease(lease=lease)])
    report = await world.cluster.reconcile([_view(lease), _view(world.lease({}))])
    assert len(report.gone) == 1
    finished = await world.wait(LeaseFinished, lease.lease_id)
    assert pickle.loads(world.archive.get(finished.result_ref)) == "done"
    await world.remove(lease.lease_id)
    window_us, _, seqs = world.metered(lease.lease_id)
    assert seqs == list(range(1, len(seqs) + 1))
    assert window_us > 3_800_000


async def test_a_node_that_dies_loses_its_leases_and_nothing_else(world):
    lease = world.lease(call(time.sleep, 1000), shares=(("n1", 8),), accelerator="910B")
    await world.start(lease)
    await world.wait(LeaseStarted, lease.lease_id)
    await asyncio.to_thread(world.local.kill, "n1")
    finished = await world.wait(LeaseFinished, lease.lease_id)
    assert finished.outcome is LeaseOutcome.LOST
    await world.wait(NodeDown)
    await world.remove(lease.lease_id)


def _view(lease):
    return LeaseView(
        lease_id=lease.lease_id,
        job_id=lease.job_id,
        account_id=lease.account_id,
        accelerator=lease.accelerator,
        shares=lease.shares,
        state="running",
    )
