"""The runner: the process in which one rank of a job runs, inside the bundle that was leased for it.

A plain class that becomes a detached, named Ray actor, so that it outlives the gate's restarts. Its event loop answers
the gate while the job runs in a thread of its own (not the main thread: see `execution`). After a function that left nothing
behind it may serve the same account again: that is looked at when the gate asks, while its result is on its way already.
"""

import asyncio
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import ray

from fabric import context
from fabric.accelerators import DEVICE_RESOURCES
from fabric.checkpoints.jobs import checkpoints_in
from fabric.context.host import storage_variables
from fabric.context.link import Invitation
from fabric.gate.events import JobKind, LeaseOutcome
from fabric.progress import Progress
from fabric.storage.archive import Archive
from fabric.storage.layout import cache_folder
from fabric.storage.publishing import publisher
from fabric.storage.quota import ArchiveQuota
from fabric.storage.shard_cache import ShardCache
from fabric.system.guarded import Guarded
from fabric.system.ports import free_port
from fabric.system.private_folder import make_private
from fabric.system.processes import adopt_orphans
from fabric.system.standby import Standby
from fabric.worker.channel import Address, Listener
from fabric.worker.checkpointed_call import perform_beside
from fabric.worker.clean_process import CleanProcess
from fabric.worker.execution import perform
from fabric.worker.fork import Fork, ForkedCall
from fabric.worker.installation import furnish
from fabric.worker.job_signals import own_in_children
from fabric.worker.lease_ray_settings import lease_ray
from fabric.worker.payload import read_payload
from fabric.worker.rank_order import (
    ARE_YOU_CLEAN,
    CLEAN,
    LEFT_SOMETHING,
    Order,
    accelerator_of,
    decode_end,
    decode_order,
    encode_end,
    encode_order,
    ranks_of,
)
from fabric.worker.rank_processes import Crew
from fabric.worker.ray_hosts import Meeting, host
from fabric.worker.ready_folder import ReadyFolder
from fabric.worker.saves import Saves
from fabric.worker.spawned import Spawned
from fabric.worker.stage import JobEnd, Save, Stage, Wishes

__all__ = [
    "Described", "Order", "Runner", "RunnerActor", "Seat", "accelerator_of", "decode_end", "decode_order", "encode_end",
    "encode_order", "ranks_of", "stage_of",
]  # fmt: skip


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """Where a runner sits: what the gate must know to watch, address and end it."""

    pid: int
    ip: str
    port: int
    """Free on this machine a moment ago: the gang's meeting point if this is rank 0."""
    devices: tuple[str, ...]
    line: Address | None = None
    """Where it takes orders without Ray between."""


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner tells a gate that has restarted."""

    seat: Seat
    placement_group_id: str
    bundle: int
    order: Order | None
    """What it runs, or ran last; None = nothing yet."""


class Runner:
    """One process, one job at a time."""

    def __init__(self, *, archive: Archive, placement_group_id: str, bundle: int) -> None:
        self._archive = archive
        self._placement_group_id = placement_group_id
        self._bundle = bundle
        adopt_orphans()
        own_in_children()
        self._process = CleanProcess()
        self._order: Order | None = None
        self._stage: Stage | None = None
        self._end: asyncio.Future[JobEnd] | None = None
        self._may_stay = False
        """The last job has ended, and was of a kind after which another may run here."""
        self._saves = Saves()
        self._began = 0.0
        self._restore_us = 0
        self._saved = asyncio.Event()
        self._reported = asyncio.Event()
        self._devices = _devices()
        self._listener = Listener(self._answer)
        self._next: Standby | None = Standby()
        self._folder = ReadyFolder()

    async def seat(self) -> Seat:
        """Who and where this runner is."""
        ip = ray.util.get_node_ip_address()
        line = await self._listener.address(ip)
        return Seat(pid=os.getpid(), ip=ip, port=free_port(""), devices=self._devices, line=line)

    async def describe(self) -> Described:
        """All a restarted gate needs to watch this runner again."""
        return Described(
            seat=await self.seat(), placement_group_id=self._placement_group_id, bundle=self._bundle, order=self._order
        )

    async def run(self, order: Order) -> JobEnd:
        """Run the job; the answer comes when it has ended. Said again for the same attempt, waits for the first."""
        if self._order != order:
            self._begin(order)
        return await self.wait()

    async def wait(self) -> JobEnd:
        """The end of the job that runs."""
        assert self._end is not None
        return await asyncio.shield(self._end)

    async def saves(self, after: int) -> list[Save]:
        """Checkpoints that became durable since the first `after`: waits for one."""
        while len(self._saves) <= after and not (self._end is not None and self._end.done()):
            self._saved.clear()
            await self._saved.wait()
        return self._saves.tell(after)

    async def progress(self) -> Progress | None:
        """The job's newest word on its progress: waits for one; None when it has ended."""
        await self._reported.wait()
        self._reported.clear()
        return self._stage.context.progress if self._stage is not None else None

    async def is_clean(self) -> bool:
        """Whether the job that ran last has ended and left nothing in this process: then another may run in it. The same
        when asked again.
        """
        if self._next is None and self._may_stay and self._process.is_as_before():
            self._next = Standby()
            self._process.before_a_job()
            if self._order is not None:  # and once that is said, what the next one needs first
                asyncio.get_running_loop().call_soon(self._folder.make, Path(self._order.work_dir))
        return self._next is not None

    async def save(self) -> None:
        """Ask the job for a checkpoint."""
        if self._stage is not None:
            self._stage.ask_to_save()

    async def stop(self, reason: str, *, seconds_left: float, save: bool = True) -> None:
        """Ask the job to end."""
        if self._stage is not None:
            self._stage.ask_to_stop(reason, seconds_left=seconds_left, save=save)

    async def _answer(self, question: bytes) -> bytes:
        if question == ARE_YOU_CLEAN:
            return CLEAN if await self.is_clean() else LEFT_SOMETHING
        return encode_end(await self.run(decode_order(question)))

    def _begin(self, order: Order) -> None:
        loop = asyncio.get_running_loop()
        end: asyncio.Future[JobEnd] = loop.create_future()
        self._order, self._end, self._saves = order, end, Saves()
        self._began, self._restore_us = time.monotonic(), 0
        self._reported.clear()
        self._stage = self._set(order, loop)
        standby, self._next, self._may_stay = self._next or Standby(), None, False
        self._process.before_a_job()
        stage = self._stage

        def work() -> None:
            try:
                self._folder.become(stage.folder)
                ended = self._perform(stage, order)
            except BaseException as error:  # noqa: BLE001 - or the job would never end, and burn on
                ended = JobEnd(outcome=LeaseOutcome.FAILED, error=f"the job could not be run: {type(error).__name__}")
            kind = order.lease.kind
            is_one = kind is JobKind.FUNCTION or (kind is not JobKind.PROGRAM and stage.fork is not None)
            may_stay = is_one and not order.environment
            if stage.context.checkpoints is not None and ended.outcome is LeaseOutcome.SUCCEEDED:
                stage.context.checkpoints.forget_near()
            told = stage.context.progress
            final = msgspec.structs.replace(
                ended, reusable=may_stay, used_ray=self._process.used_ray, step=told.step, progress=told
            )
            loop.call_soon_threadsafe(self._finish, end, final)

        standby.begin(work)

    def _set(self, order: Order, loop: asyncio.AbstractEventLoop) -> Stage:
        """The stage for the job, whose news come to this loop."""

        def on_saved(step: int, write_us: int, size: int) -> None:
            loop.call_soon_threadsafe(self._note_save, Save(step, write_us, size))

        def on_report() -> None:
            loop.call_soon_threadsafe(self._note_report)

        first = ranks_of(order)[0]
        devices = self._devices if first.local is None else self._devices[:1]
        stage = stage_of(first, archive=self._archive, devices=devices, on_saved=on_saved, on_report=on_report)
        if stage.own_ray is not None:
            stage.own_ray = msgspec.structs.replace(stage.own_ray, group=self._placement_group_id)
        return stage

    def _perform(self, stage: Stage, order: Order) -> JobEnd:
        """Run the job: in processes of its own if it wants that and there is a zygote, else here."""
        if order.furnishes:
            return furnish(stage, Path(order.environment))
        if order.per_device:
            return self._perform_all(stage, order)
        if order.zygote and (order.lease.kind is JobKind.SCRIPT or order.ray_word):
            fork = Fork.begin(stage, zygote=order.zygote, order=encode_order(order), devices=self._devices)
            if fork is not None:
                stage.fork = fork
                _hand_on_stop(stage, fork)
                return fork.perform(stage)
        if order.ray_word:
            return host(stage, word=order.ray_word) if order.rank > 0 else self._perform_with_hosts(stage, order)
        return self._perform_apart(stage, order)

    def _perform_with_hosts(self, stage: Stage, order: Order) -> JobEnd:
        """Run a program here, while the other ranks have their nodes join its Ray."""
        shares, bell = order.lease.shares, make_private(stage.folder) / "ranks"
        assert stage.own_ray is not None
        words = f"{sum(share.devices for share in shares)} × {order.lease.accelerator} on {len(shares)} nodes"
        stage.own_ray = msgspec.structs.replace(stage.own_ray, lease=words, nodes=len(shares), bell=str(bell))
        meeting = Meeting(port=order.master_port, word=order.ray_word, bell=bell)
        try:
            return self._perform_apart(stage, order)
        finally:
            meeting.close()

    def _perform_apart(self, stage: Stage, order: Order) -> JobEnd:
        """Run the job: a function that uses Ray, or wants torch imported, in a process of its own."""

        def start() -> Spawned | ForkedCall:
            word, devices = encode_order(order), self._devices
            forked = ForkedCall.begin(stage, zygote=order.zygote, order=word, devices=devices) if order.zygote else None
            stage.fork = apart = forked or Spawned.start(stage, order=word, devices=devices)
            _hand_on_stop(stage, apart)
            return apart

        is_apart = order.lease.kind is JobKind.PROGRAM or bool(order.zygote)
        if is_apart and read_payload(order.lease.payload).is_call:
            return perform_beside(stage, start)
        return perform(stage)

    def _perform_all(self, stage: Stage, order: Order) -> JobEnd:
        """Run a rank for each device. `stage` is the first one's."""

        def on_saved(step: int, write_us: int, size: int) -> None:
            stage.context.durable(step=step, write_us=write_us, size=size)

        ranks = ranks_of(order)
        stages = [stage]
        for at, rank in enumerate(ranks[1:], start=1):
            own = self._devices[at : at + 1]
            stages.append(stage_of(rank, archive=self._archive, devices=own, on_saved=on_saved, on_report=lambda: None))
        words = [(stage, encode_order(rank)) for stage, rank in zip(stages, ranks, strict=True)]
        crew = Crew.begin(words, zygote=order.zygote)
        if crew is None:
            return JobEnd(
                outcome=LeaseOutcome.INTERRUPTED, error="the machine's zygote is gone, which forks a job's ranks"
            )
        stage.fork = crew
        _hand_on_stop(stage, crew)
        return crew.perform(lambda: bool(self._saves))

    def _note_save(self, save: Save) -> None:
        self._saves.note(save._replace(restore_us=self._restore_us))
        self._saved.set()

    def _note_report(self) -> None:
        self._reported.set()
        if not self._restore_us and self._stage is not None and self._stage.context.progress.step:
            self._restore_us = round((time.monotonic() - self._began) * 1_000_000)

    def _finish(self, end: "asyncio.Future[JobEnd]", ended: JobEnd) -> None:
        end.set_result(msgspec.structs.replace(ended, saves=self._saves.all()))
        self._saved.set()
        self._stage = None
        self._reported.set()
        self._may_stay = ended.reusable


class RunnerActor(Guarded):
    """What Ray runs. The process is a tenant's, but what the gate alone may say to it, no other tenant can."""

    INSIDE = Runner
    TENANTS = True


def _hand_on_stop(stage: Stage, to: Wishes) -> None:
    """A wish that came before there was anybody to hear it."""
    if stage.context.stop_requested:
        left_s = stage.context.deadline_s_left() or 0.0
        to.ask_to_stop(stage.context.stop_reason, seconds_left=left_s, save=stage.context.save_wanted)


def stage_of(
    order: Order,
    *,
    archive: Archive,
    devices: tuple[str, ...],
    on_saved: Callable[[int, int, int], None],
    on_report: Callable[[], None],
    on_checkpoints: Callable[[], None] | None = None,
) -> Stage:
    """All that one rank runs with: its place, its checkpoints, its folder."""
    lease, folder, accelerator = order.lease, order.folder, accelerator_of(order)
    place = context.Place(
        job_id=lease.job_id,
        account_id=lease.account_id,
        attempt=lease.epoch,
        rank=order.rank,
        world_size=order.world_size,
        devices=devices,
        accelerator=accelerator,
    )
    attempt_id, cache = lease.lease_id.replace("/", "_"), cache_folder(Path(order.work_dir), lease.account_id)
    quota = ArchiveQuota(archive, lease.account_id, order.limits)
    checkpoints = checkpoints_in(
        archive,
        lease.account_id,
        lease.job_id,
        epoch=lease.epoch,
        attempt_id=attempt_id,
        stage_dir=order.stage_dir,
        quota=quota,
    )
    stage = Stage(
        lease=lease,
        folder=folder,
        log_file=order.log_file,
        archive=archive,
        context=context.Context(
            place,
            checkpoints=checkpoints,
            on_saved=on_saved,
            on_report=on_report,
            on_checkpoints=on_checkpoints,
            publish=publisher(archive, lease.account_id, lease.job_id, quota=quota),
            cache=ShardCache(cache, limit_bytes=order.cache_bytes),
            prefixes=lease.data,
            folder=folder / "data",
        ),
        master=(order.master_addr, order.master_port),
        local=order.local or (0, 1),
    )
    if lease.kind is JobKind.FUNCTION and not order.zygote:
        return stage  # it is called in the runner: no process is the job's alone
    over, under = lease.fraction or (1, 1)
    stage.own_ray = lease_ray(
        accelerator=accelerator,
        kind=order.devices_are,
        devices=len(devices),
        share=len(devices) / max(order.devices_of_node, len(devices), 1) * over / under,
        folder=folder,
        memory_bytes=psutil.virtual_memory().total,
        cores=os.cpu_count() or 1,
    )
    stage.invitation = Invitation(
        place=place,
        attempt_id=attempt_id,
        archive=pickle.dumps(archive),
        stage_dir=order.stage_dir,
        cache=str(cache),
        cache_bytes=order.cache_bytes,
        limits=order.limits,
        prefixes=lease.data,
        folder=str(folder / "data"),
        storage=storage_variables(),
    )
    return stage


def _devices() -> tuple[str, ...]:
    ids = ray.get_runtime_context().get_accelerator_ids()
    return tuple(device for kind in DEVICE_RESOURCES for device in ids.get(kind, ()))
