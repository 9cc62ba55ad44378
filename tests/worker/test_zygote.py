"""Jobs forked from the zygote: isolated, found by the lease's id, told of by exit code, and asked like any other."""

import asyncio
import base64
import io
import json
import os
import signal
import socket
import time
import zipfile
from pathlib import Path

import cloudpickle
import pytest
import pytest_asyncio
from msgspec import structs

from fabric import context
from fabric.gate.events import JobKind, LeaseOutcome
from fabric.gate.instructions import Share
from fabric.node.zygote_keeper import Zygote
from fabric.results import read_parcel
from fabric.storage.archive import DirectoryArchive
from fabric.storage.results import read_result
from fabric.system.ports import free_port
from fabric.system.processes import end_all, tree_of
from fabric.worker.fork import Fork
from fabric.worker.rank_processes import Crew
from fabric.worker.runner import Order, encode_order, ranks_of, stage_of
from tests.worker.leases import lease_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zygote():
    """One for all: it takes seconds to come up, which is what it is for."""
    keeper = Zygote()
    assert await keeper.socket()
    yield keeper
    keeper._process.kill()
    await keeper._process.wait()


class Runner:
    """The runner's side, without Ray."""

    def __init__(self, tmp_path, zygote):
        self.tmp_path, self.zygote, self.count = tmp_path, zygote, 0
        self.archive = DirectoryArchive(tmp_path / "archive")
        self.saves, self.reports = [], []

    def stage(self, payload, kind=JobKind.FUNCTION, epoch=1):
        self.count += 1
        lease_id = f"job-{os.getpid()}-{self.count}.{epoch}"
        lease = lease_of("j", lease_id=lease_id, epoch=epoch, kind=kind, payload=json.dumps(payload))
        order = Order(
            lease=lease, rank=0, master_addr="127.0.0.1", master_port=1, work_dir=str(self.tmp_path),
        )  # fmt: skip
        stage = stage_of(
            order, archive=self.archive, devices=("0",), on_saved=lambda *facts: self.saves.append(facts),
            on_report=lambda: self.reports.append(stage.context.progress),
        )  # fmt: skip
        return stage, order

    async def begin(self, payload, **more):
        stage, order = self.stage(payload, **more)
        path = await self.zygote.socket()
        stage.fork = Fork.begin(stage, zygote=path, order=encode_order(order), devices=("0",))
        assert stage.fork is not None
        return stage

    async def run(self, payload, **more):
        stage = await self.begin(payload, **more)
        return stage, await asyncio.to_thread(stage.fork.perform, stage)

    def value(self, end):
        assert end.outcome is LeaseOutcome.SUCCEEDED, end.error
        return read_parcel(read_result(self.archive, end.result_ref)).value()


@pytest.fixture
def runner(tmp_path, zygote):
    runner = Runner(tmp_path, zygote)
    yield runner
    for at in range(1, runner.count + 1):
        assert end_all((), lease_id=f"job-{os.getpid()}-{at}.1")


async def until(found, within_s=30):
    async with asyncio.timeout(within_s):
        while not found():  # noqa: ASYNC110  # what it waits for happens in another process
            await asyncio.sleep(0.02)


def call(function, *args):
    return {"inline": base64.b64encode(cloudpickle.dumps((function, args, {}))).decode()}


async def test_a_job_finds_torch_imported_no_thread_and_no_device_opened(runner):
    def look():
        import sys

        ready = "torch" in sys.modules and "torch._dynamo" in sys.modules
        import torch

        return ready, torch.cuda.is_initialized(), float((torch.ones(3) * 2).sum()), os.environ["RANK"]

    _, end = await runner.run(call(look))
    assert runner.value(end) == (True, False, 6.0, "0")


async def test_what_a_job_does_to_its_process_never_reaches_the_next(runner):
    def spoil():
        import torch

        torch.ones = None
        os.environ["SPOILED"] = "yes"
        return (os.getpid(),)

    def look():
        import torch

        return torch.ones is not None, os.environ.get("SPOILED"), os.getpid()

    first = runner.value((await runner.run(call(spoil)))[1])
    whole, spoiled, pid = runner.value((await runner.run(call(look)))[1])
    assert (whole, spoiled) == (True, None)
    assert pid != first[0]
    assert first[0] != runner.zygote.pid


async def test_its_processes_are_found_by_the_lease_also_those_that_hide(runner):
    def hide():
        if os.fork() == 0:
            os.setsid()
            os.environ.clear()
            if os.fork() == 0:
                time.sleep(100)
            os._exit(0)
        time.sleep(100)

    stage = await runner.begin(call(hide))
    deadline = time.monotonic() + 20
    while len(found := tree_of((), lease_id=stage.lease.lease_id)) < 3:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)
    assert runner.zygote.pid not in found
    assert end_all((), lease_id=stage.lease.lease_id)
    end = await asyncio.to_thread(stage.fork.perform, stage)
    assert end.outcome is LeaseOutcome.FAILED


async def test_when_its_runner_is_gone_nothing_of_the_job_stays(runner):
    def work():
        if os.fork() == 0:
            os.setsid()
        while True:
            time.sleep(1)

    stage = await runner.begin(call(work))
    await until(lambda: len(tree_of((), lease_id=stage.lease.lease_id)) >= 3)
    stage.fork._talk.close()
    await until(lambda: not tree_of((), lease_id=stage.lease.lease_id))


async def test_a_job_that_is_killed_is_told_of_by_the_signal(runner):
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    _, end = await runner.run(call(die))
    assert (end.outcome, end.error.partition(" (")[0]) == (
        LeaseOutcome.FAILED, "worker_died: its process was ended by SIGKILL",
    )  # fmt: skip
    _, end = await runner.run(call(lambda: os._exit(3)))
    assert end.error == "worker_died: its process exited with 3"


async def test_wishes_progress_and_checkpoints_pass_between_runner_and_job(runner):
    def work():
        job = context.current()
        step = int(job.load() or b"0")
        while True:
            step += 1
            job.report(step=step, steps_total=1_000, loss=0.5)
            if job.save_requested:
                job.save(str(step).encode(), step=step)
            if job.wait_for_stop(0.01):
                job.save(str(step).encode(), step=step)
                job.park()

    stage = await runner.begin(call(work))
    ended = asyncio.create_task(asyncio.to_thread(stage.fork.perform, stage))
    await until(lambda: stage.context.progress.step)
    stage.ask_to_save()
    await until(lambda: runner.saves)
    stage.ask_to_stop("evicted", seconds_left=10, save=True)
    assert (await ended).outcome is LeaseOutcome.SAVED
    assert len(runner.saves) == 2
    assert stage.context.progress.step >= runner.saves[-1][0]
    assert not stage.context.save_requested


async def test_a_script_on_its_main_thread_hears_sigterm_and_says_75(runner):
    code = (
        "import os, signal, sys, threading, time\n"
        "def save(*_):\n"
        "    open(os.environ['FABRIC_CHECKPOINT_DIR'] + '/step', 'w').write('5'); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('up', threading.current_thread() is threading.main_thread(), flush=True)\n"
        "time.sleep(100)\n"
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as files:
        files.writestr("train.py", code)
    runner.archive.put("blobs/acme/code", packed.getvalue())
    payload = {"entrypoint": ["python", "train.py"], "working_dir_blob": "blobs/acme/code"}
    stage = await runner.begin(payload, kind=JobKind.SCRIPT)
    ended = asyncio.create_task(asyncio.to_thread(stage.fork.perform, stage))
    await until(lambda: stage.log_file.exists() and stage.log_file.read_text())
    stage.ask_to_stop("evicted", seconds_left=10, save=True)
    end = await ended
    assert (end.outcome, [save[0] for save in runner.saves]) == (LeaseOutcome.SAVED, [5])
    assert stage.log_file.read_text() == "up True\n"


async def test_many_jobs_at_once_end_each_as_itself(runner):
    def echo(at):
        time.sleep(0.05)
        return at, os.environ["FABRIC_LEASE_ID"]

    done = await asyncio.gather(*(runner.run(call(echo, at)) for at in range(12)))
    assert [stage.log_file.exists() for stage, _ in done] == [True] * 12
    assert {stage.lease.lease_id: end.outcome for stage, end in done} == {
        stage.lease.lease_id: LeaseOutcome.SUCCEEDED for stage, _ in done
    }


async def test_without_a_zygote_the_job_starts_cold(runner):
    stage, order = runner.stage(call(os.getpid))
    assert Fork.begin(stage, zygote="/nowhere", order=encode_order(order), devices=()) is None


async def test_a_stranger_that_says_nonsense_costs_the_zygote_nothing(runner):
    for nonsense in (b"", b"\0\0\0\1x", b"\xff" * 64):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(await runner.zygote.socket())
            stranger.sendall(nonsense)
    assert runner.value((await runner.run(call(lambda: "well")))[1]) == "well"


async def test_a_zygote_that_died_is_started_again(zygote):
    before = zygote.pid
    folder = Path(await zygote.socket()).parent
    assert folder.stat().st_mode & 0o077 == 0
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while zygote._process.returncode is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert await zygote.socket()
    assert zygote.pid != before


# -- a rank for each device --------------------------------------------------------------------------------------------


class Crewed(Runner):
    """A runner whose jobs have a rank for each of its devices."""

    async def run_all(self, payload, *, devices, before=0):
        _, order = self.stage(payload)
        shares = tuple(Share(f"n{at}", count) for at, count in enumerate([before, devices] if before else [devices]))
        whole = structs.replace(
            order,
            lease=structs.replace(order.lease, shares=shares),
            rank=len(shares) - 1,
            per_device=True,
            master_port=free_port(),
        )
        stages = []
        for at, rank in enumerate(ranks_of(whole)):
            own = stage_of(
                rank, archive=self.archive, devices=(str(at),), on_saved=lambda *facts: self.saves.append(facts),
                on_report=lambda: None,
            )  # fmt: skip
            stages.append((own, encode_order(rank)))
        crew = Crew.begin(stages, zygote=await self.zygote.socket())
        return (
            [own for own, _ in stages],
            crew,
            asyncio.create_task(asyncio.to_thread(crew.perform, lambda: bool(self.saves))),
        )


@pytest.fixture
def crewed(tmp_path, zygote):
    runner = Crewed(tmp_path, zygote)
    yield runner
    for at in range(1, runner.count + 1):
        assert end_all((), lease_id=f"job-{os.getpid()}-{at}.1")


def meet():
    """What a gang does: sums its ranks' numbers, and then all save or end."""
    import torch
    import torch.distributed as dist

    job = context.current()
    dist.init_process_group("gloo")
    total = torch.tensor([job.rank])
    dist.all_reduce(total)
    dist.destroy_process_group()
    print("rank", job.rank, "of", job.world_size)
    return int(total), job.world_size, os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"], job.devices


async def test_a_job_has_a_rank_for_each_device_and_the_result_of_the_first(crewed):
    stages, _, ending = await crewed.run_all(call(meet), devices=3)
    assert crewed.value(await ending) == (3, 3, "0", "3", ("0",))
    for at, stage in enumerate(stages):
        assert stage.log_file.read_text() == f"rank {at} of 3\n"


async def test_ranks_are_numbered_over_all_shares(crewed):
    def look():
        job = context.current()
        context.current().save(b"", step=1)
        print(job.rank, job.world_size, os.environ["LOCAL_RANK"])

    stages, _, ending = await crewed.run_all(call(look), devices=2, before=4)
    end = await ending
    assert end.outcome is LeaseOutcome.SUCCEEDED, end.error
    assert [stage.log_file.read_text() for stage in stages] == ["4 6 0\n", "5 6 1\n"]


def outlive():
    """Rank 1 is killed; the other notices after a moment, saves and ends."""
    job = context.current()
    if job.rank == 1:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    job.wait_for_stop(1.0)
    job.save(b"whole", step=7)
    job.park()


async def test_whoever_outlives_a_rank_has_time_to_save_and_the_job_asks_to_go_on(crewed):
    _, _, ending = await crewed.run_all(call(outlive), devices=2)
    end = await ending
    assert (end.outcome, end.again) == (LeaseOutcome.SAVED, True)
    assert "SIGKILL" in end.error
    assert [step for step, _, _ in crewed.saves] == [7]


async def test_all_ranks_are_asked_to_stop_at_once(crewed):
    def wait():
        if context.current().wait_for_stop(60):
            context.current().park()

    stages, crew, ending = await crewed.run_all(call(wait), devices=3)
    stages[0].fork = crew
    await asyncio.sleep(0.5)
    stages[0].ask_to_stop("evicted", seconds_left=10, save=True)
    assert (await ending).outcome is LeaseOutcome.SAVED


async def test_a_session_that_waits_where_no_line_of_python_runs_is_saved_and_its_process_ended(runner):
    def train():
        import time

        import torch

        from training import session

        os.environ["WORLD_SIZE"] = "1"
        model = torch.nn.Linear(2, 1)
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in session(model=model, opt=opt).steps(10):
            if step == 4:
                time.sleep(2 * context.REPORT_S)
                context.current().report(step=step)
                time.sleep(600)
            model(torch.ones(1, 2)).sum().backward()
            opt.step()

    stage = await runner.begin(call(train))
    ending = asyncio.create_task(asyncio.to_thread(stage.fork.perform, stage))
    await until(lambda: ending.done() or any(progress.step == 4 for progress in runner.reports))
    stage.ask_to_stop("evicted", seconds_left=60, save=True)
    end = await ending
    assert end.outcome is LeaseOutcome.SAVED, end.error
    assert [step for step, *_ in runner.saves] == [4]
