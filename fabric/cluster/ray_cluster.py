"""The cluster behind the gate: carries out its instructions on Ray, and reports what happens there as events."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, assert_never

import ray
import structlog

from fabric.clock import Clock, SteadyClock
from fabric.cluster.agents import PROMPT_S, Agents
from fabric.cluster.attempts import Attempt
from fabric.cluster.cuts import merged
from fabric.cluster.dashboard import JobsPage
from fabric.cluster.left_logs import Jobs, clear_away, clear_machines, no_jobs
from fabric.cluster.logs import JobLogs
from fabric.cluster.metrics import Metrics
from fabric.cluster.offering import Offering, readable
from fabric.cluster.placement_groups import Groups
from fabric.cluster.recovery import lease_of, survivors
from fabric.cluster.reports import Report, Reports
from fabric.cluster.services import Services
from fabric.cluster.settings import ClusterSettings, LeaseInfo, ReconcileReport
from fabric.cluster.unleased import UnleasedUse
from fabric.enforcement.reconciler import Ours, Reconciler
from fabric.enforcement.unleased import Unleased
from fabric.enforcement.watchdog import known_of
from fabric.gate.events import LeaseFinished, LeaseOutcome, LeaseTooLarge, Metered, NodeHolds
from fabric.gate.instructions import AnyInstruction, Lease, RemoveLease, SaveLease, StartLease, StopLease
from fabric.gate.views import JobView, LeaseView, LogChunk
from fabric.inventory.drains import noticed
from fabric.inventory.nodes import Node, nodes_of
from fabric.node.agent import Sight
from fabric.outage import Outage
from fabric.placement.locality import Holdings
from fabric.storage.archive import Archive
from fabric.system.private_folder import attempt_folder
from fabric.units import LeaseId, NodeId
from fabric.worker.strays import Living

__all__ = ["ClusterSettings", "LeaseInfo", "RayCluster", "ReconcileReport", "Unleased"]

_CACHES_S = 10.0
_DISKS_S = 5.0
_log = structlog.get_logger(__name__)


class RayCluster:
    """Lives in the gate's process, on its event loop, which it never blocks. Needs an initialised Ray."""

    def __init__(
        self, *, report: Report, archive: Archive, settings: ClusterSettings, clock: Clock | None = None
    ) -> None:
        self._settings = settings
        self._clock = clock or SteadyClock()
        self._nodes: dict[NodeId, Node] = {}
        self._outbox = Reports(report)
        self._agents = Agents(archive=archive, settings=settings)
        self._groups = Groups(nodes=self._nodes, agents=self._agents, archive=archive, settings=settings)
        self._around = Services(
            nodes=self._nodes,
            groups=self._groups,
            agents=self._agents,
            outbox=self._outbox,
            archive=archive,
            settings=settings,
            gone=set(),
        )
        here = ray.get_runtime_context() if ray.is_initialized() else None
        self_id = {here.get_actor_id()} - {None} if here is not None else set[str]()
        self._ours = Ours(
            groups=self._groups.ours,
            used=self._groups.used,
            actors=lambda: {*self._groups.actors(), *self._agents.actors(), *self_id},
            job_id=here.get_job_id() if here is not None else "",
            cluster=settings.own_cluster,
        )
        self._reconciler = Reconciler(self._ours)
        self._unleased = UnleasedUse(
            self._reconciler, agents=self._agents, nodes=self._nodes, begin=self._begin, count=self._count
        )
        self._looks: asyncio.Task[None] | None = None
        """Looks for unleased use: from the first comparison with the leases on, which says what is ours."""
        self._clearing: asyncio.Task[None] | None = None
        self._attempts: dict[LeaseId, Attempt] = {}
        self._by_job: dict[str, list[Attempt]] = {}
        self._reads_data = False
        self._held: dict[str, Holdings] = {}
        """By machine: what it said last that it holds."""
        self._offering = Offering()
        self._unreadable: dict[NodeId, tuple[tuple[str, ...], int, str]] = {}
        """By node: the devices that its agent can't read, how many those are, and of which type."""
        self._lost: set[LeaseId] = set()
        """Leases that were reported as lost: not started again, although a gate that hasn't heard yet may say so."""
        self._logs = JobLogs(archive=archive, agents=self._agents, attempts_of=self._attempts_of)
        self._page: JobsPage | None = None
        self._metrics: Metrics | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Find the nodes (`NodeUp` for each), watch again what survived a restart. Call before `carry_out`.

        May be called again if it raised.
        """
        self._outbox.start()
        self._page = self._page or JobsPage()
        self._metrics = self._metrics or (Metrics() if self._settings.metrics else None)
        await self._look_at_nodes()
        await self._find_survivors()
        for loop, period_s in (
            (self._look_at_nodes, self._settings.watch_s),
            (self._read_meters, self._settings.tick_s),
            (self._groups.expire, self._settings.watch_s),
            (self._look_at_caches, _CACHES_S),
            (self._look_at_disks, _DISKS_S),
        ):
            if period_s > 0:
                self._begin(_every(period_s, loop))

    async def carry_out(self, instructions: Sequence[AnyInstruction]) -> None:
        """Begin to carry them out; returns at once. Saying an instruction again is harmless."""
        for instruction in instructions:
            match instruction:
                case StartLease():
                    self._start_lease(instruction.lease)
                case StopLease():
                    self._stop_lease(instruction)
                case SaveLease():
                    self._save_lease(instruction.lease_id)
                case RemoveLease():
                    self._remove_lease(instruction.lease_id, instruction.lease)
                case _:
                    assert_never(instruction)

    async def reconcile(self, leases: Sequence[LeaseView], *, jobs: Jobs = no_jobs) -> ReconcileReport:
        """Compare what Ray runs with what is leased: watch survivors again, report what is gone, remove the rest. And do what
        was left undone of leases that are over.
        """
        known = {LeaseId(view.lease_id): view for view in leases}
        before = set(self._attempts)
        for view in leases:
            self._agents.acknowledge(view.lease_id, view.sampled)
            if view.lease_id not in self._attempts and view.state != "starting":
                attempt = await lease_of(view, self._around)
                if attempt is not None:
                    self._take_on(attempt)
        gone = [i for i, view in known.items() if i not in self._attempts and view.state in ("running", "stopping")]
        for lease_id in gone:
            self._lost.add(lease_id)
            self._outbox.put(await self._end_of_gone(known[lease_id]))
        for lease_id in before - set(known):
            if lease_id in self._attempts:
                self._remove_lease(lease_id)
        self._agents.forget_all_but({*known, *self._attempts})
        self._lost.intersection_update(known)
        if self._looks is None and self._settings.reconcile_s > 0:
            await self._be_heard()  # before anything of its own is new to agents that still go by a gate before it
            self._looks = self._begin(_every(self._settings.reconcile_s, self._unleased.end))
            self._begin(_every(self._settings.watch_s, self._end_strays))
            self._begin(_every(self._settings.reconcile_s, self._be_heard))
        if self._clearing is None or self._clearing.done():
            clearing = clear_machines(self._around, living=lambda: {*known, *self._attempts}, jobs=jobs)
            self._clearing = self._begin(clearing)
        await asyncio.wait((self._clearing,), timeout=PROMPT_S)  # a start waits for no silent machine
        return ReconcileReport(
            reattached=tuple(i for i in self._attempts if i in known and i not in before),
            gone=tuple(gone),
            unleased=(*await self._unleased.end_all(), *await self._end_strays()),
        )

    async def _end_of_gone(self, view: LeaseView) -> LeaseFinished:
        """How a lease ended of which nothing is left. Where all its agents went on, its own processes did: that is no refund."""
        nodes = [self._nodes.get(share.node_id) for share in view.shares]
        addresses = dict.fromkeys(node.address for node in nodes if node is not None)
        watched = await asyncio.gather(*(self._agents.watches(address, view.lease_id) for address in addresses))
        outcome, error = LeaseOutcome.LOST, "nothing of the lease was left"
        if None not in nodes and all(watched):
            outcome, error = LeaseOutcome.INTERRUPTED, "its processes ended, or fell silent, while the gate was away"
        return LeaseFinished(lease_id=LeaseId(view.lease_id), outcome=outcome, error=error)

    async def publish(self, jobs: Sequence[JobView]) -> None:
        """Show the jobs on Ray's dashboard and in its metrics."""
        if self._metrics is not None:
            self._metrics.jobs(jobs)
        if self._page is not None:
            await self._page.show(jobs)

    @property
    def outage(self) -> Outage | None:
        """Since when nothing new can be started, and why; None while it can."""
        return self._around.control.outage

    @property
    def metrics(self) -> Metrics | None:
        """Where the gate may tell of its decisions and commits; None when metrics are off, or before `start`."""
        return self._metrics

    def told_by(self, view: JobView) -> JobView:
        """A job's view with what the job itself tells of its progress."""
        return self._around.progress.shown(view)

    def lease_info(self, lease_id: str) -> LeaseInfo | None:
        """How a client schedules into a running lease."""
        return attempt.info if (attempt := self._attempts.get(LeaseId(lease_id))) else None

    def logs(self, job_id: str, *, account_id: str, offsets: Mapping[str, int]) -> AsyncIterator[LogChunk]:
        """A job's logs from `offsets` ("attempt/rank" → bytes already had) on, as far as they go now."""
        return self._logs.read(job_id, account_id=account_id, offsets=offsets)

    async def close(self) -> None:
        """Stop watching. What runs goes on running; what is kept warm is given back."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._unleased.close()
        await self._agents.be_heard(None)
        await self._agents.close()
        await self._groups.close()
        await self._outbox.close()

    def _start_lease(self, lease: Lease) -> None:
        if lease.lease_id in self._attempts or lease.lease_id in self._lost:
            return
        self._reads_data = self._reads_data or bool(lease.data)
        attempt = Attempt(lease=lease, around=self._around)
        self._take_on(attempt)
        attempt.task = self._begin(attempt.start())

    def _stop_lease(self, instruction: StopLease) -> None:
        attempt = self._attempts.get(instruction.lease_id)
        if attempt is not None and attempt.removal is None:
            seconds_left = max(0.0, (instruction.deadline_us - self._clock.now_us()) / 1_000_000)
            wish = attempt.ask_to_stop(instruction.reason, seconds_left=seconds_left, save=instruction.save)
            self._begin(wish)

    def _save_lease(self, lease_id: LeaseId) -> None:
        attempt = self._attempts.get(lease_id)
        if attempt is not None and attempt.removal is None:
            self._begin(attempt.ask_to_save())

    def _remove_lease(self, lease_id: LeaseId, lease: Lease | None = None) -> None:
        attempt = self._attempts.get(lease_id)
        if attempt is None:
            self._begin(clear_away(lease_id, lease, self._around))
        elif attempt.removal is None:
            attempt.removal = self._begin(self._removed(attempt))

    async def _removed(self, attempt: Attempt) -> None:
        while True:
            try:
                await attempt.remove()
            except Exception:  # noqa: BLE001  # whatever went wrong: devices that are never freed are lost to everybody
                _log.exception("lease_not_removed", lease_id=attempt.lease.lease_id)
                await asyncio.sleep(self._settings.watch_s)
            else:
                break
        del self._attempts[attempt.lease.lease_id]
        of_job = self._by_job[attempt.lease.job_id]
        of_job.remove(attempt)
        if not of_job:
            del self._by_job[attempt.lease.job_id]

    def _take_on(self, attempt: Attempt) -> None:
        self._attempts[attempt.lease.lease_id] = attempt
        self._by_job.setdefault(attempt.lease.job_id, []).append(attempt)

    def _attempts_of(self, job_id: str) -> Sequence[Attempt]:
        return tuple(self._by_job.get(job_id, ()))

    async def _look_at_nodes(self) -> None:
        now = nodes_of(await self._around.control.nodes(), gone=self._around.gone)
        self._nodes.clear()
        self._nodes.update(now)
        for gone in self._offering.gone(now):
            self._outbox.put(gone)
        await self._agents.cover(now.values())
        busy = {share.node_id for attempt in self._attempts.values() for share in attempt.lease.shares}
        sights, notices = await self._sights(now.values()), await noticed()
        for change in self._offering.changes(now, sights, busy=busy, notices=notices, stuck=self._reconciler.stuck):
            self._outbox.put(change)

    async def _sights(self, nodes: Iterable[Node]) -> dict[str, Sight | None]:
        """What the agents can read, by machine, where devices have counters that can be read, or should have."""
        with_counters = [node for node in nodes if not node.by_cpu]
        addresses = list(dict.fromkeys(node.address for node in with_counters))
        found = dict(zip(addresses, await asyncio.gather(*(map(self._agents.sight, addresses))), strict=True))
        unreadable = {
            node.node_id: (sight.unreadable, short, node.accelerator)
            for node in with_counters
            if (sight := found[node.address]) is not None and (short := node.devices - (readable(node, sight) or 0)) > 0
        }
        if unreadable != self._unreadable:
            told = {node_id: f"{short}: {', '.join(names)}" for node_id, (names, short, _) in unreadable.items()}
            _log.warning("devices_unreadable", devices=told, remedy="run `fabric doctor` on the node")
            self._unreadable = unreadable
        if self._metrics is not None and with_counters:
            self._metrics.unreadable([(kind, short) for _, short, kind in unreadable.values()])
        return found

    async def _find_survivors(self) -> None:
        for lease, group, orders in await survivors(self._nodes, self._groups, self._settings):
            if lease.lease_id in self._attempts:
                continue
            attempt = Attempt.found(lease, self._around, group=group, orders=orders)
            self._take_on(attempt)
            attempt.task = self._begin(attempt.resume())

    async def _read_meters(self) -> None:
        by_lease = await self._agents.samples()
        samples = [
            sample
            for lease_id, cuts in by_lease.items()
            if LeaseId(lease_id) in self._attempts
            for sample in merged(cuts)
            if sample.seq > self._agents.acknowledged.get(lease_id, 0)
        ]
        if samples:
            await self._outbox.deliver(Metered(samples=tuple(samples)))
        for sample in samples:
            self._agents.acknowledge(sample.lease_id, sample.seq)
        if self._metrics is not None:
            self._metrics.leases(len(self._attempts))

    async def _look_at_caches(self) -> None:
        """Tell what machines hold of datasets, where that has changed; nobody is asked before a job had any."""
        if not self._reads_data:
            return
        by_address: dict[str, list[NodeId]] = {}
        for node in self._nodes.values():
            by_address.setdefault(node.address, []).append(node.node_id)
        for address, node_ids in by_address.items():
            found = await self._agents.holdings(address, work_dir=str(self._settings.work_dir))
            if found is None or found == self._held.get(address):
                continue
            self._held[address] = found
            for node_id in node_ids:
                self._outbox.put(NodeHolds(node_id=node_id, holdings=found))

    async def _look_at_disks(self) -> None:
        """Tell of attempts that take more of a machine's disk than others can spare."""
        by_address: dict[str, dict[str, LeaseId]] = {}
        for lease_id, attempt in self._attempts.items():
            if attempt.removal is None:
                for address in attempt.addresses:
                    folder = attempt_folder(self._settings.work_dir, lease_id).name
                    by_address.setdefault(address, {})[folder] = lease_id
        await asyncio.gather(*(self._look_at_disk(address, there) for address, there in by_address.items()))

    async def _look_at_disk(self, address: str, there: Mapping[str, LeaseId]) -> None:
        found = await self._agents.too_large(
            address, work_dir=str(self._settings.work_dir), folders=tuple(there), limits=self._settings.disk
        )
        for folder, why in found.items():
            _log.warning("attempt_too_large", lease_id=there[folder], why=why)
            self._outbox.put(LeaseTooLarge(lease_id=there[folder], error=why))

    async def _be_heard(self) -> None:
        await self._agents.be_heard(known_of(self._ours, self._nodes.values()))

    async def _end_strays(self) -> list[Unleased]:
        found = []
        ended = await self._agents.end_strays(self._groups.runners, self._living)
        for address, pids in ended.items():
            _log.warning("strays_ended", address=address, processes=len(pids))
            found += [Unleased(kind="process", id=str(pid), name=address) for pid in pids]
        self._count(found)
        return found

    def _living(self, address: str) -> Living:
        leases = {str(lease_id) for lease_id in self._attempts}
        return Living(marks=leases | self._groups.marks(), leases=leases, busy=self._groups.busy(address))

    def _count(self, found: Sequence[Unleased]) -> None:
        if self._metrics is not None:
            self._metrics.removed_unleased(len(found))
            self._metrics.looked(self._reconciler.health)

    def _begin(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task_failed", exc_info=error)


async def _every(period_s: float, do: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Do it every period; one that fails is logged and tried again."""
    while True:
        began = time.monotonic()
        try:
            await do()
        except Exception:  # noqa: BLE001  # a watch that ends at the first hiccup is none
            _log.exception("watch_failed", what=getattr(do, "__name__", str(do)))
        await asyncio.sleep(max(0.05, period_s - (time.monotonic() - began)))
