"""How jobs of every kind run inside their leases, on a real cluster."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest
import ray
from ray.util import get_current_placement_group
from ray.util.placement_group import PlacementGroup, PlacementGroupID
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fabric import context
from fabric.gate.events import (
    JobKind,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    NodeUp,
)
from fabric.results import read_parcel
from fabric.storage.results import read_result
from fabric.system.processes import is_there
from fabric.worker.payload import inlined


def value_of(world, finished):
    return read_parcel(read_result(world.archive, finished.result_ref)).value()


pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


async def test_every_labelled_node_is_reported_with_its_type_and_devices(world):
    nodes = {e.node_id: (e.accelerator, e.devices, e.pool) for e in world.events if isinstance(e, NodeUp)}
    assert nodes == {"h1": ("H100", 4, "spot"), "a1": ("A100", 2, "reserved"), "n1": ("910B", 8, "spot")}


async def test_a_function_runs_on_its_devices_and_its_result_is_kept(world):
    def work(x, *, y):
        sys.stdout.write("hello from the job\n")
        return x * y, os.environ["FABRIC_ACCELERATOR"], ray.get_gpu_ids()

    lease = world.lease(world.call(work, 6, y=7), shares=(("h1", 2),))
    finished, removed = await world.run(lease)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    value, accelerator, gpus = value_of(world, finished)
    assert (value, accelerator, len(gpus)) == (42, "H100", 2)
    assert removed.final is not None
    kinds = [type(e) for e in world.events if getattr(e, "lease_id", None) == lease.lease_id]
    assert kinds == [LeaseStarted, LeaseFinished, LeaseRemoved]
    chunks = [c async for c in world.cluster.logs(lease.job_id, account_id="acme", offsets={})]
    assert b"".join(c.data for c in chunks) == b"hello from the job\n"


async def test_the_next_lease_of_the_same_shape_and_account_uses_the_same_process(world):
    def pid():
        return os.getpid(), get_current_placement_group().id.hex()

    async def where(account):
        finished, _ = await world.run(world.lease(world.call(pid), shares=(("h1", 2),), account=account))
        assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
        return value_of(world, finished)

    first, second, stranger = await where("acme"), await where("acme"), await where("globex")
    assert first == second
    assert stranger[0] != first[0]
    assert stranger[1] == first[1]
    assert not is_there(first[0])


async def test_a_process_is_kept_for_as_long_as_jobs_leave_nothing_in_it(world):
    """A thread that C has started, which Python knows nothing of, would go on in the next lease, or in none."""

    def pid(leave):
        if leave:
            library = ctypes.CDLL(None)
            sleep = ctypes.cast(library.sleep, ctypes.c_void_p)
            ctypes.CDLL("libpthread.so.0").pthread_create(
                ctypes.byref(ctypes.c_ulong()), None, sleep, ctypes.c_void_p(600)
            )
        return os.getpid()

    async def where(*, leave=False):
        finished, _ = await world.run(world.lease(world.call(pid, leave), shares=(("h1", 2),)))
        assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
        return value_of(world, finished)

    pids = [await where() for _ in range(8)]
    assert len(set(pids)) <= 2, "hardly ever is one given up for nothing"
    left = await where(leave=True)
    assert await where() != left
    assert not is_there(left)


async def test_a_child_that_a_function_forks_has_signals_of_its_own(world):
    """Ray's worker blocks one, and has a handler of which a child that waits hears nothing."""

    def look():
        reads, writes = os.pipe()
        if (pid := os.fork()) == 0:
            is_plain = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            os.write(writes, f"{is_plain} {len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))}".encode())
            os._exit(0)
        os.waitpid(pid, 0)
        blocked = subprocess.run(["grep", "SigBlk", "/proc/self/status"], capture_output=True, text=True, check=True)
        return os.read(reads, 100).decode(), int(blocked.stdout.split()[1], 16)

    finished, _ = await world.run(world.lease(world.call(look), shares=(("h1", 2),)))
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    assert value_of(world, finished) == ("True 0", 0)


async def test_a_function_that_raises_fails_with_its_traceback_and_its_exception(world):
    def broken():
        raise KeyError("no such column")

    finished, _ = await world.run(world.lease(world.call(broken), shares=(("h1", 2),)))
    assert finished.outcome is LeaseOutcome.FAILED
    assert finished.error.endswith("KeyError: 'no such column'")
    assert isinstance(value_of(world, finished), KeyError)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"inline": inlined(b"not a pickle")}, "unpicklable"),
        ({"entrypoint": "missing.py"}, "script_not_found"),
        ({"entrypoint": ["no-such-command"]}, "script_not_found"),
        ({"blob": "nothing/here"}, "blob_not_found"),
        ({"surprise": 1}, "payload_invalid"),
        ({"inline": inlined(cloudpickle.dumps((lambda: (i for i in ()), (), {})))}, "result_not_picklable"),
    ],
)
async def test_what_can_never_run_fails_with_a_code(world, payload, code):
    finished, _ = await world.run(world.lease(payload, shares=(("h1", 2),)))
    assert finished.outcome is LeaseOutcome.FAILED
    assert finished.error.startswith(f"{code}: ")


async def test_a_script_runs_in_its_working_directory_with_its_arguments(world):
    world.archive.put(
        "jobs/acme/wd",
        world.zipped(
            train__py="import sys, ray, part\nray.init()\nprint('args', sys.argv[1:], part.VALUE, open('data.txt').read())\n",
            part__py="VALUE = 7\n",
            data__txt="data!",
        ),
    )
    payload = {"entrypoint": "train.py", "args": ["--lr", "1"], "working_dir_blob": "jobs/acme/wd"}
    lease = world.lease(payload, kind=JobKind.SCRIPT, shares=(("h1", 2),))
    finished, _ = await world.run(lease)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    chunks = [c async for c in world.cluster.logs(lease.job_id, account_id="acme", offsets={})]
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
            return ray.get_runtime_context().get_placement_group_id()

        mine = ray.get_runtime_context().get_placement_group_id()
        return mine, ray.get([inside.remote() for _ in range(2)])

    lease = world.lease(world.call(program), kind=JobKind.PROGRAM, shares=(("h1", 2),))
    finished, _ = await world.run(lease)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    mine, theirs = value_of(world, finished)
    assert mine
    assert theirs == [mine, mine]
    _, busy_us, _ = world.metered(lease.lease_id)
    assert busy_us > 1_000_000


async def test_a_gang_runs_once_a_share_and_one_failing_rank_fails_it(world):
    def rank(failing):
        if failing == context.current().rank:
            raise ValueError("rank fails")
        if failing is not None:
            time.sleep(1000)
        return os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_PORT"]

    def gang(failing):
        return world.lease(world.call(rank, failing), shares=(("n1", 4), ("n1", 4)), accelerator="910B")

    finished, _ = await world.run(gang(None))
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    assert value_of(world, finished)[:2] == ("0", "2")
    finished, _ = await world.run(gang(1))
    assert finished.outcome is LeaseOutcome.FAILED
    assert "rank fails" in finished.error


TRAINING = """
import hashlib, os, sys, time, torch
from pathlib import Path
from torch.utils.data import TensorDataset
from training import session

torch.set_num_threads(1)
torch.manual_seed(7)
model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 8))
opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
inputs = torch.randn(640, 32)
with session(model=model, opt=opt) as run:
    for (x,) in run.batches(TensorDataset(inputs), global_batch=32, virtual=8, epochs=2):
        time.sleep(float(sys.argv[2]))
        run.step(((model(x) - x[:, :8].tanh()) ** 2).mean())
        Path(sys.argv[1], "rank-" + os.environ.get("RANK", "0")).write_text(f"{os.getpid()} {run.done}")
state = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
Path(sys.argv[1], "digest").write_text(hashlib.sha256(state).hexdigest())
"""


async def test_a_gang_whose_rank_is_killed_saves_and_goes_on_with_more_ranks_to_the_same_weights(world, tmp_path):
    alone, gang = tmp_path / "alone", tmp_path / "gang"
    for folder in (alone, gang):
        folder.mkdir()
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    plain = await asyncio.create_subprocess_exec(sys.executable, script, alone, "0", cwd=alone)
    world.archive.put("jobs/acme/gang", world.zipped(train__py=TRAINING))

    def attempt(epoch, shares):
        command = ["python", "train.py", str(gang), "0.02"]
        payload = {"entrypoint": command, "working_dir_blob": "jobs/acme/gang", "preload": "torch"}
        more = {"job_id": f"gang-{os.getpid()}", "epoch": epoch, "accelerator": "910B"}
        return world.lease(payload, kind=JobKind.SCRIPT, shares=shares, **more)

    first = attempt(1, (("n1", 2), ("n1", 2)))
    await world.start(first)
    told = gang / "rank-1"

    def steps():
        said = told.read_text().split() if told.exists() else []
        return int(said[1]) if len(said) > 1 else 0

    async with asyncio.timeout(90):
        while steps() < 5:  # noqa: ASYNC110  # another process tells, through a file
            await asyncio.sleep(0.02)
    os.kill(int(told.read_text().split()[0]), signal.SIGKILL)
    finished = await world.wait(LeaseFinished, first.lease_id)
    assert (finished.outcome, finished.again) == (LeaseOutcome.SAVED, True), finished.error
    saved = await world.wait(LeaseSaved, first.lease_id)
    assert saved.step >= 5
    await world.remove(first.lease_id)
    second = attempt(2, (("n1", 2), ("n1", 2), ("n1", 4)))
    await world.start(second)
    finished = await world.wait(LeaseFinished, second.lease_id, within_s=120)
    await world.remove(second.lease_id)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    assert await plain.wait() == 0
    assert (gang / "digest").read_text() == (alone / "digest").read_text()


async def test_a_job_that_waits_half_of_the_time_is_metered_at_half(world):
    def load(share):
        """Parts of its time: how long its process ran, and how long it ran or waited for a core, by its own account."""

        def so_far():
            threads = [file.read_text().split() for file in Path("/proc/self/task").glob("*/schedstat")]
            return [sum(int(spent[0]) for spent in threads), sum(int(spent[1]) for spent in threads)]

        began, before = time.monotonic(), so_far()
        while (now := time.monotonic()) < began + 4:
            while time.monotonic() < now + 0.1 * share:
                pass
            if share < 1:
                time.sleep(0.1 * (1 - share))
        ran, waited = (after - spent for after, spent in zip(so_far(), before, strict=True))
        total = (time.monotonic() - began) * 1e9
        return ran / total, (ran + waited) / total

    async def utilisation(share):
        lease = world.lease(world.call(load, share), shares=(("a1", 1),), accelerator="A100")
        finished, _ = await world.run(lease)
        assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
        window_us, busy_us, seqs = world.metered(lease.lease_id)
        assert seqs == list(range(1, len(seqs) + 1))
        assert window_us > 3_900_000
        return busy_us / window_us, value_of(world, finished)

    busy, _ = await utilisation(1.0)
    half, (ran, wanted) = await utilisation(0.5)
    assert busy >= 0.8
    assert ran - 0.1 <= half <= wanted + 0.1, "on an idle machine both are a half"
    assert ran <= 0.6


@pytest.mark.parametrize("marked", [True, False])
async def test_a_lease_ends_without_its_node_whoever_is_in_it_by_name(world, marked):
    """As Serve's replicas are: Ray doesn't end who isn't in a group by its own word, and the node died of the rest."""
    lease = world.lease({}, kind=JobKind.LEASE, shares=(("a1", 2),), accelerator="A100")
    await world.start(lease)
    await world.wait(LeaseStarted, lease.lease_id)
    info = world.cluster.lease_info(lease.lease_id)

    @ray.remote
    class Serves:
        def here(self):
            return os.getpid()

    group = info.placement_group_id
    serves = Serves.options(
        num_cpus=0,
        resources={name: share for at in ("_0", "") for name, share in in_group(at, group).items()},
        runtime_env={"env_vars": info.env_vars if marked else {"OF": "nobody"}},
        max_restarts=-1,
    ).remote()
    assert await serves.here.remote()
    removed = await world.remove(lease.lease_id)
    assert removed.final is not None
    (raylet,) = world.local._raylets["a1"].all_processes["raylet"]
    again = world.lease(world.call(os.getpid), shares=(("a1", 2),), accelerator="A100")
    finished, _ = await world.run(again)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    assert raylet.process.poll() is None
    ray.kill(serves)
    async with asyncio.timeout(30):  # what Ray had started for it once more is found, and ended
        while (await world.cluster.reconcile([])).unleased:  # noqa: ASYNC110 - it says so to nobody
            await asyncio.sleep(0.2)


def in_group(at, group):
    return {f"bundle_group{at}_{group}": 0.001, f"GPU_group{at}_{group}": 1.0}


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
    assert (await world.cluster.reconcile([world.view(lease)])).unleased == ()
    removed = await world.remove(lease.lease_id)
    assert removed.final is not None
