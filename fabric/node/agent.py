"""The agent on every machine: reads the meters of the leases there, reads their logs, and ends their processes.

A plain class that becomes a Ray actor. Samples are cut here and stay as they are until they are acknowledged, so that a
gate that dies between reading and journaling a sample asks again and gets the very same one.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from fabric.enforcement.watchdog import Known, Watchdog
from fabric.node.meters import MeterKind, open_meter
from fabric.node.zygote_keeper import Zygote
from fabric.placement.locality import Holdings
from fabric.storage.archive import Archive
from fabric.storage.log_ends import keep_log, read_part
from fabric.storage.shard_cache import ShardCache
from fabric.system.disk_watch import DiskLimits, DiskWatch
from fabric.system.guarded import Guarded
from fabric.system.private_folder import CACHE, clear, close, left_in, sweep
from fabric.system.processes import end_all, kill, seen_of
from fabric.system.ray_processes import installers
from fabric.units import Fraction
from fabric.worker.environments import Environment, is_ready
from fabric.worker.members import Members
from fabric.worker.strays import Sighting
from fabric.worker.wheels import AT_ONCE, Prepared, prepare

_ROUGHLY_BYTES: Final = 2**20
VISIBLE: Final = ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent needs to know of a lease's share on its machine."""

    lease_id: str
    devices: tuple[str, ...]
    roots: tuple[int, ...]
    marks: tuple[str, ...] = ()
    """What else, beside the lease's id, the environment of its processes may have begun with."""
    seq: int = 0
    """The last sample already reported."""
    shared: Fraction | None = None
    """Others use its device, too, of which it has such a part: its own processes' use is read, as use of that part."""


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """A sample of one lease on one machine."""

    lease_id: str
    seq: int
    window_us: int
    busy_us: int
    estimated: bool = False
    """A device could not be read for some of the window."""


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """Which of the devices that the machine's node gives away can be read now, by the names it gives them."""

    readable: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    declared: bool = False
    """None has a counter, by declaration."""


class _Watched:
    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.seq = watch.seq
        self.cut_at_ns = time.monotonic_ns()
        self.pending: Cut | None = None


class NodeAgent:
    """One a machine. Async, so that ticks, logs and endings don't wait for each other."""

    def __init__(
        self, *, meter: MeterKind, archive: Archive, owns_cluster: bool = False, fabric: str = "", address: str = ""
    ) -> None:
        """Nothing is watched yet. On a cluster of the fabric's own nothing but leases may have Ray install anything.

        Args:
            meter: what it reads.
            archive: where logs go.
            owns_cluster: whether nobody else is on the cluster.
            fabric: what its leases' processes carry beside their mark.
            address: its machine's.
        """
        self._owns_cluster, self._fabric = owns_cluster, fabric
        self._meter = open_meter(meter)
        self._archive = archive
        self._given = given_devices()
        self._watched: dict[str, _Watched] = {}
        self._members = Members(fabric=fabric, machine=address)
        self._zygote: Zygote | None = None
        self._preparing = asyncio.Semaphore(AT_ONCE)
        self._lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By account: whose turn it is."""
        self._disk = DiskWatch()
        self._watchdog = Watchdog(kill=kill)
        self._watching: asyncio.Task[None] | None = None

    async def warm(self) -> str:
        """Have a zygote ready; its socket. "" if it can't be had."""
        if self._zygote is None:
            self._zygote = Zygote(fabric=self._fabric)
        return await self._zygote.socket()

    async def has_environment(self, folder: str) -> bool:
        """Whether packages were installed there to their end."""
        return await asyncio.to_thread(is_ready, Path(folder))

    async def prepare(self, folder: str, wanted: Environment, *, for_s: float) -> Prepared:
        """Have packages installed there before a job's devices burn, if wheels are enough. One job of an account at a time, so
        that one whose packages come slowly keeps no other account waiting.
        """
        line = self._lines.setdefault(Path(folder).parent.name, asyncio.Lock())
        try:
            async with asyncio.timeout(for_s), line, self._preparing:
                return await prepare(Path(folder), wanted, within_s=for_s)
        except TimeoutError:
            return Prepared()

    async def sight(self) -> Sight:
        """Which devices can be read now."""
        found = await asyncio.to_thread(self._meter.readable, self._given)
        return Sight(declared=True) if found is None else Sight(readable=found[0], unreadable=found[1])

    async def holdings(self, work_dir: str) -> Holdings:
        """What this machine's caches hold of datasets, and how fast the rest comes."""
        return await asyncio.to_thread(_holdings, Path(work_dir))

    async def attach(self, watch: Watch) -> None:
        """Watch a lease from now on; one that is watched already goes on as it was, with the runners that it has now: others may
        have been started in the place of its first ones.
        """
        known = self._watched.get(watch.lease_id)
        if known is not None and known.watch.roots == watch.roots:
            return
        self._members.follow(watch.lease_id, watch.roots, marks=watch.marks)
        if known is not None:
            self._meter.detach(watch.lease_id)
        self._meter.attach(watch.lease_id, devices=watch.devices, roots=watch.roots, shared=watch.shared is not None)
        if known is not None:
            known.watch = watch
        else:
            self._watched[watch.lease_id] = _Watched(watch)

    async def watches(self, lease_id: str) -> bool:
        """Whether it watches the lease: it does from the lease's start to its removal, unless the agent is younger."""
        return lease_id in self._watched

    async def samples(self, acknowledged: dict[str, int]) -> list[Cut]:
        """One sample for every lease: the same again where the last one was not acknowledged."""
        cuts = []
        members = self._members.all()
        for lease_id, watched in self._watched.items():
            if watched.pending is None or watched.pending.seq <= acknowledged.get(lease_id, 0):
                self._cut(watched, members=members.get(lease_id, []))
            if watched.pending is not None:
                cuts.append(watched.pending)
        return cuts

    async def detach(self, lease_id: str, *, acknowledged: int) -> list[Cut]:
        """Stop watching: what has not been acknowledged yet, the last sample included."""
        return self._detach(lease_id, acknowledged=acknowledged)

    async def release(self, lease_id: str, *, acknowledged: int) -> tuple[list[Cut], bool]:
        """`detach`, and end what escaped from the lease's runners; whether nothing is left of it but them. Looking at all
        processes is what takes time, so they are looked at once where only the runners are there.
        """
        watched = self._watched.get(lease_id)
        members = self._members.of(lease_id) if watched is not None else None
        cuts = self._detach(lease_id, acknowledged=acknowledged, members=members)
        if watched is not None and members is not None and set(members) <= set(watched.watch.roots):
            self._members.forget(lease_id)
            return cuts, True
        return cuts, await self._end(lease_id, roots=() if watched is None else watched.watch.roots, spare=True)

    async def tidy(self, folder: str, log_file: str, log_key: str) -> bool:
        """Move a rank's log into the archive, unless it is empty, and remove its folder. To be repeated until it says that it has
        done so: until then the log stays where it is.
        """
        await asyncio.to_thread(self._tidy, Path(folder), Path(log_file), log_key)
        return True

    async def left(self, work_dir: str, living: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        """What is there of attempts whose folders' names are not among the `living`: by the folder's name, which ranks'."""
        return await asyncio.to_thread(left_in, Path(work_dir), living=frozenset(living))

    async def too_large(self, work_dir: str, folders: tuple[str, ...], limits: DiskLimits) -> dict[str, str]:
        """Of these folders of attempts, those that take too much of the disk, and why that is too much."""
        return await asyncio.to_thread(self._disk.too_large, Path(work_dir), folders, limits)

    async def sweep(self, work_dir: str, living: tuple[str, ...]) -> list[str]:
        """Remove the folders that attempts have left behind; those of these names stay."""
        return await asyncio.to_thread(sweep, Path(work_dir), living=frozenset(living))

    async def end(self, lease_id: str, *, roots: Sequence[int]) -> bool:
        """Kill what is left of a lease; whether nothing is left."""
        return await self._end(lease_id, roots=roots)

    async def claimed(self) -> list[int]:
        """The processes that are counted to a lease."""
        return [pid for pids in self._members.all().values() for pid in pids]

    async def had(self, asked: dict[int, float]) -> list[int]:
        """Which of these processes, that were there at that time, were a lease's; gone by now or not."""
        return await asyncio.to_thread(self._members.had, asked)

    async def hear(self, known: Known | None) -> None:
        """The gate is there, and says what is its own: while it is silent, what holds an accelerator and is none of that is
        ended from here. None: it goes in order, or has another agent do this.
        """
        self._watchdog.hear(known)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watchdog.run())

    async def strays(self, runners: Sequence[int]) -> Sighting:
        """What belongs to no lease that is watched here, and is known for this fabric's; on a cluster of our own also what Ray
        installs for a job: that is done within the lease, or not at all.

        Args:
            runners: those that live on this machine by the gate's word, by their processes' numbers.
        """
        if self._owns_cluster:
            self._members.contain(installers())
        found = await asyncio.to_thread(self._members.strays, runners)
        return Sighting(strays=tuple(found), watched=tuple(self._watched))

    async def end_strays(self, strays: Sequence[tuple[int, int]], *, over: Sequence[str] = ()) -> list[int]:
        """End what the gate says is nobody's, as it was seen: what has begun since may be a new lease's.

        Args:
            strays: processes, by their numbers and starts.
            over: leases that are over, and that this agent was not told to stop watching.
        """
        for lease_id in over:
            if self._watched.pop(lease_id, None) is not None:
                self._meter.detach(lease_id)
                self._members.forget(lease_id)
        ended = [pid for pid, started_at in strays if (seen := seen_of(pid)) and seen.started_at == started_at]
        for pid in ended:
            kill(pid)
        return ended

    async def _end(self, lease_id: str, *, roots: Sequence[int], spare: bool = False) -> bool:
        """Kill what is left of a lease, but for its runners where these are to be spared."""
        self._members.follow(lease_id, roots)

        def left() -> list[int]:
            return [pid for pid in self._members.of(lease_id) if not (spare and pid in roots)]

        gone = await asyncio.to_thread(end_all, () if spare else roots, lease_id=lease_id, find=left)
        if lease_id not in self._watched:
            self._members.forget(lease_id)
        return gone

    async def kill(self, pid: int) -> None:
        """Kill a process that holds an accelerator without a lease."""
        kill(pid)

    async def read_log(self, path: str, *, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes of a running job's log."""
        return await asyncio.to_thread(read_part, Path(path), offset, limit)

    def _detach(self, lease_id: str, *, acknowledged: int, members: Sequence[int] | None = None) -> list[Cut]:
        watched = self._watched.pop(lease_id, None)
        if watched is None:
            return []
        cuts = [watched.pending] if watched.pending is not None and watched.pending.seq > acknowledged else []
        self._cut(watched, members=self._members.of(lease_id) if members is None else members)
        self._meter.detach(lease_id)
        if watched.pending is not None and watched.pending not in cuts:
            cuts.append(watched.pending)
        return cuts

    def _cut(self, watched: _Watched, *, members: Sequence[int] | None = None) -> None:
        now_ns = time.monotonic_ns()
        window_us = (now_ns - watched.cut_at_ns) // 1000
        if window_us <= 0:
            return
        watch = watched.watch
        used_us = self._meter.read(watch.lease_id, members=members)
        if watch.shared is not None:
            used_us = used_us * watch.shared[1] // watch.shared[0]
        busy_us = min(used_us, max(1, len(watch.devices)) * window_us)
        watched.seq += 1
        watched.cut_at_ns += window_us * 1000
        watched.pending = Cut(
            lease_id=watch.lease_id,
            seq=watched.seq,
            window_us=window_us,
            busy_us=busy_us,
            estimated=self._meter.is_estimated(watch.lease_id),
        )

    def _tidy(self, folder: Path, log_file: Path, log_key: str) -> None:
        try:
            keep_log(self._archive, log_file, log_key)
        except Exception:
            for entry in folder.iterdir():
                if entry != log_file:  # what waits for an archive that is away is the log alone
                    clear(entry)
            raise
        close(folder)


class NodeAgentActor(Guarded):
    """What Ray runs."""

    INSIDE = NodeAgent


def given_devices(pid: int | None = None) -> tuple[str, ...] | None:
    """The devices that Ray may give away here, as the node's own process was told; None = all there are."""
    try:
        entries = Path(f"/proc/{pid or os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    told = dict(entry.decode(errors="replace").partition("=")[::2] for entry in entries)
    words = [word.strip() for name in VISIBLE for word in told.get(name, "").split(",") if word.strip()]
    return tuple(words) or None


def _holdings(work_dir: Path) -> Holdings:
    held: dict[str, int] = {}
    rates = []
    for folder in (work_dir / CACHE).glob("*"):
        found, rate = ShardCache(folder).holdings()
        rates.append(rate)
        for prefix, size in found.items():
            if prefix:
                held[prefix] = held.get(prefix, 0) + size
    # Roughly, so that it is told again only when it makes a difference.
    rate = max(rates, default=0)
    step = 10 ** max(len(str(rate)) - 2, 0)
    rough = {prefix: size // _ROUGHLY_BYTES * _ROUGHLY_BYTES for prefix, size in held.items()}
    return Holdings(bytes_by_prefix=rough, rate_bytes_per_s=rate // step * step)
