"""One lease's life on Ray: built, run, asked to stop, removed, each reported. Devices are free only when nothing is left."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import ray
import structlog

from fabric.adapters.agents import Agents
from fabric.adapters.archive import Archive
from fabric.adapters.cluster_settings import BundleInfo, ClusterSettings, LeaseInfo, lease_info_key
from fabric.adapters.groups import KEEPABLE, Group, Groups, Seated
from fabric.adapters.node_agent import Cut, Watch
from fabric.adapters.nodes import Node, answers
from fabric.adapters.outbox import Outbox
from fabric.adapters.payload import Payload, read_payload, runtime_env_of
from fabric.adapters.processes import LEASE_VARIABLE
from fabric.adapters.runner import Order
from fabric.adapters.stages import JobEnd
from fabric.adapters.testimony import end_of, is_number, text
from fabric.errors import InvalidRequest
from fabric.gate.events import (
    JobKind,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    Metered,
    Sample,
)
from fabric.gate.instructions import Lease
from fabric.gate.lifecycle import StopReason
from fabric.units import NodeId

_WATCH_SAVES_AFTER_S: Final = 0.05
_STARTED_WITHIN_S: Final = 0.02
"""A job shorter than this is told of in one piece: one commit for its start and its end."""
_NODE_PROBES: Final = 4
_NODE_PROBE_S: Final = 0.2
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every lease works with."""

    nodes: Mapping[NodeId, Node]
    groups: Groups
    agents: Agents
    outbox: Outbox
    archive: Archive
    settings: ClusterSettings
    gone: set[str]
    """Ray's ids of nodes that were seen to be gone."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One lease. `start` and `remove` run as tasks of the cluster's loop; each is done once."""

    lease: Lease
    around: Surroundings
    group: Group | None = None
    orders: list[Order] = field(default_factory=list)
    info: LeaseInfo | None = None
    end: JobEnd | None = None
    reused: bool = False
    addresses: tuple[str, ...] = ()
    stop_asked: tuple[str, float] | None = None
    """(why, when it must have ended by the monotonic clock)"""
    task: "asyncio.Task[None] | None" = None
    removal: "asyncio.Task[None] | None" = None
    reported_saves: int = 0

    async def start(self) -> None:
        """Build the lease, run the job, report how it ended."""
        try:
            payload = read_payload(self.lease.payload)
            async with asyncio.timeout(self.around.settings.start_timeout_s):
                await self._build(payload)
        except InvalidRequest as error:
            self._finish(JobEnd(outcome=LeaseOutcome.FAILED, error=f"{error.code}: {error.message}"))
        except ray.exceptions.RuntimeEnvSetupError as error:
            self._finish(JobEnd(outcome=LeaseOutcome.FAILED, error=f"runtime_env_failed: {error}"))
        except TimeoutError:
            limit_s = self.around.settings.start_timeout_s
            self._finish(JobEnd(outcome=LeaseOutcome.LOST, error=f"the lease could not be built within {limit_s:g} s"))
        except Exception as error:  # noqa: BLE001  # whatever Ray raises here, the platform failed and not the job
            _log.warning("lease_not_built", lease_id=self.lease.lease_id, why=str(error)[:500])
            self._finish(JobEnd(outcome=LeaseOutcome.LOST, error=f"the lease could not be built: {error}"[:500]))
        else:
            await self._run()

    async def resume(self, group: Group, orders: list[Order]) -> None:
        """Watch a lease that survived the gate's restart."""
        self.group, self.orders = group, orders
        self.addresses = _addresses(group.runners)
        await self._attach()
        await self._until_ended([runner.actor.wait.remote() for runner in group.runners])

    async def watch_again(self) -> None:
        """Have the agents watch a bare lease that survived the gate's restart."""
        nodes = self.around.nodes
        self.addresses = tuple(dict.fromkeys(nodes[s.node_id].address for s in self.lease.shares if s.node_id in nodes))
        await self._attach()

    async def ask_to_stop(self, reason: str, *, seconds_left: float) -> None:
        """Hand the wish to the job. A lease without code of ours waits to be closed, which is what its owner's wish is."""
        self.stop_asked = (reason, time.monotonic() + seconds_left)
        if self.group is None or self.end is not None:
            return
        if not self.orders:
            if reason == StopReason.CANCELLED:
                self._finish(JobEnd(outcome=LeaseOutcome.SUCCEEDED))
            return
        for runner in self.group.runners:
            with suppress(ray.exceptions.RayError):
                await runner.actor.stop.remote(reason, seconds_left=seconds_left)

    async def remove(self) -> None:
        """End what is left, free the devices, and say so."""
        if self.task is not None and self.end is None:
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task
        if self.group is not None and await self._gives_back(self.group):
            final = await self._release()
        else:
            final = await self._tear_down()
        self.around.outbox.put(LeaseRemoved(lease_id=self.lease.lease_id, final=final))
        for order, address in zip(self.orders, self.rank_addresses(), strict=False):
            await self.around.agents.tidy(
                address, folder=str(order.folder), log_file=str(order.log_file), log_key=order.log_key
            )

    def roots(self, address: str) -> tuple[int, ...]:
        """The runners' processes on one machine."""
        runners = self.group.runners if self.group else ()
        return tuple(runner.seat.pid for runner in runners if runner.node.address == address)

    async def _build(self, payload: Payload) -> None:
        lease, around = self.lease, self.around
        environment = msgspec.json.encode(payload.runtime_env, order="sorted").decode()
        self.group, self.reused = await around.groups.take(lease, environment=environment)
        if lease.kind is JobKind.LEASE:
            await self._publish_info(self.group)
            return
        if not self.reused:
            marks = {} if lease.kind in KEEPABLE else {**payload.env, LEASE_VARIABLE: str(lease.lease_id)}
            await around.groups.seat(self.group, lease, runtime_env=runtime_env_of(payload, extra=marks))
        first = self.group.runners[0].seat
        self.addresses = _addresses(self.group.runners)
        self.orders = [
            Order(
                lease=lease,
                rank=rank,
                master_addr=first.ip,
                master_port=first.port,
                work_dir=str(around.settings.work_dir),
            )
            for rank in range(len(self.group.runners))
        ]

    async def _publish_info(self, group: Group) -> None:
        """Tell the client of a bare lease how to schedule into it."""
        nodes = [self.around.nodes[share.node_id] for share in self.lease.shares]
        bundles = tuple(
            BundleInfo(index=i, node_id=str(s.node_id), devices=s.devices, resources=node.held(s.devices))
            for i, (s, node) in enumerate(zip(self.lease.shares, nodes, strict=True))
        )
        self.info = LeaseInfo(
            lease_id=str(self.lease.lease_id),
            placement_group_id=group.id,
            namespace=self.around.settings.namespace,
            bundles=bundles,
            env_vars={LEASE_VARIABLE: str(self.lease.lease_id)},
        )
        self.addresses = tuple(dict.fromkeys(node.address for node in nodes))
        key = lease_info_key(self.lease.account_id, self.lease.job_id)
        await asyncio.to_thread(self.around.archive.put, key, msgspec.json.encode(self.info))

    async def _run(self) -> None:
        group = self.group
        assert group is not None
        if not self.reused:
            await self._attach()
        self.around.outbox.put(LeaseStarted(lease_id=self.lease.lease_id), within_s=_STARTED_WITHIN_S)
        if not self.orders:
            return
        calls = [runner.actor.run.remote(order) for runner, order in zip(group.runners, self.orders, strict=True)]
        if self.stop_asked is not None:
            reason, at = self.stop_asked
            await self.ask_to_stop(reason, seconds_left=max(0.0, at - time.monotonic()))
        # A kept runner is known to the meters, which count what it does from its last lease on: no need to wait for them.
        await asyncio.gather(self._until_ended(calls), *([self._attach()] if self.reused else []))

    async def _attach(self) -> None:
        """Have the agents watch the lease: all its devices on one machine are one share there."""
        for address in self.addresses:
            here = [runner for runner in (self.group.runners if self.group else ()) if runner.node.address == address]
            devices = tuple(device for runner in here for device in runner.seat.devices) or self._devices_at(address)
            roots = tuple(runner.seat.pid for runner in here)
            with suppress(KeyError, TimeoutError, ray.exceptions.RayError):
                watch = Watch(lease_id=str(self.lease.lease_id), devices=devices, roots=roots)
                await self.around.agents.attach(address, watch)

    def _devices_at(self, address: str) -> tuple[str, ...]:
        """Which devices those are, where nobody told: Ray gives a group's tasks any of the node's."""
        nodes = self.around.nodes
        shares = [s for s in self.lease.shares if s.node_id in nodes and nodes[s.node_id].address == address]
        return tuple(str(i) for i in range(sum(share.devices for share in shares)))

    async def _until_ended(self, calls: Iterable[Any]) -> None:
        """Wait for all ranks, or for the first that spoils it; report checkpoints meanwhile."""
        ranks = [asyncio.ensure_future(self._rank_end(rank, call)) for rank, call in enumerate(calls)]
        saves = asyncio.create_task(self._report_saves())
        try:
            waiting = set(ranks)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if any(_spoils(rank.result()) for rank in done):
                    break
            ends = [rank.result() for rank in ranks if rank.done()]
        finally:
            for task in (saves, *ranks):
                task.cancel()
        first = ends[0] if ranks[0].done() else JobEnd(outcome=LeaseOutcome.LOST)
        for step, write_us in first.saves[self.reported_saves :]:
            self._report_save(step, write_us)
        self._finish(_together(ends))

    async def _rank_end(self, rank: int, call: Any) -> JobEnd:
        try:
            end = end_of(await call, lease=self.lease)
        except ray.exceptions.RayActorError as error:
            assert self.group is not None
            if await self._node_is_gone(self.group.runners[rank].node, error):
                return JobEnd(outcome=LeaseOutcome.LOST, error=f"node {self.group.shares[rank].node_id} is gone")
            return JobEnd(outcome=LeaseOutcome.FAILED, error=f"worker_died: {_reason(error)}")
        except ray.exceptions.RayError as error:
            return JobEnd(outcome=LeaseOutcome.LOST, error=str(error)[:500])
        return end

    async def _node_is_gone(self, node: Node, error: BaseException) -> bool:
        """Whether the process went with its node. Then the node is down from now on, whatever Ray still thinks."""
        for _ in range(_NODE_PROBES):
            now = self.around.nodes.get(node.node_id)
            if now is None or now.ray_id != node.ray_id or "node has died" in str(error) or not await answers(node):
                self.around.gone.add(node.ray_id)
                return True
            await asyncio.sleep(_NODE_PROBE_S)
        return False

    async def _report_saves(self) -> None:
        await asyncio.sleep(_WATCH_SAVES_AFTER_S)
        assert self.group is not None
        with suppress(ray.exceptions.RayError):
            while True:
                for step, write_us in await self.group.runners[0].actor.saves.remote(self.reported_saves):
                    self._report_save(step, write_us)

    def _report_save(self, step: int, write_us: int) -> None:
        self.reported_saves += 1
        if not (is_number(step) and is_number(write_us)):
            return
        self.around.outbox.put(LeaseSaved(lease_id=self.lease.lease_id, step=step, write_us=write_us))

    def _finish(self, end: JobEnd) -> None:
        self.end = end
        self.around.outbox.put(
            LeaseFinished(
                lease_id=self.lease.lease_id, outcome=end.outcome, error=text(end.error), result_ref=end.result_ref
            )
        )

    async def _gives_back(self, group: Group) -> bool:
        """Whether the runners may serve the next job as they are."""
        return self.end is not None and self.end.reusable and bool(group.runners)

    async def _release(self) -> Sample | None:
        """Give the group back with its runners in it."""
        assert self.group is not None
        lease_id = str(self.lease.lease_id)
        answers = await asyncio.gather(*(self.around.agents.release(a, lease_id) for a in self.addresses))
        if not all(clear for _, clear in answers) or not self.around.groups.keep(self.group):
            await self._clear()
        return self._final([cuts for cuts, _ in answers])

    async def _tear_down(self) -> Sample | None:
        """Read the meters, kill, and destroy or keep the empty group."""
        lease_id = str(self.lease.lease_id)
        cuts = await asyncio.gather(*(self.around.agents.detach(address, lease_id) for address in self.addresses))
        await self._clear()
        return self._final(cuts)

    async def _clear(self) -> None:
        group, agents = self.group, self.around.agents
        if group is None:
            return
        lease_id = str(self.lease.lease_id)
        roots = {address: self.roots(address) for address in self.addresses}
        # While the runners live, nothing that they started can hide from them.
        ended = await asyncio.gather(*(agents.end(a, lease_id, roots=pids) for a, pids in roots.items()))
        keepable = self.lease.kind in KEEPABLE and self.end is not None and not self.end.used_ray
        keepable = keepable and all(share.node_id in self.around.nodes for share in group.shares)
        if keepable:
            await self.around.groups.dismiss(group)
        else:
            await self.around.groups.destroy(group)
            ended = await asyncio.gather(*(agents.end(a, lease_id, roots=pids) for a, pids in roots.items()))
        if keepable and not (all(ended) and self.around.groups.keep(group)):
            await self.around.groups.destroy(group)

    def _final(self, cuts: Iterable[list[Cut]]) -> Sample | None:
        """The last sample of all machines together; one that was cut before it is reported on its own."""
        samples = merged([cut for machine in cuts for cut in machine])
        self.around.agents.acknowledged.pop(str(self.lease.lease_id), None)
        if not samples:
            return None
        if samples[:-1]:
            self.around.outbox.put(Metered(samples=tuple(samples[:-1])))
        return samples[-1]

    def rank_addresses(self) -> list[str]:
        nodes = self.around.nodes
        return [nodes[share.node_id].address if share.node_id in nodes else "" for share in self.lease.shares]


def merged(cuts: Iterable[Cut]) -> list[Sample]:
    """The samples of a lease's machines, those of one seq together: device time adds up, wall time doesn't."""
    by_seq: dict[int, list[Cut]] = {}
    for cut in cuts:
        by_seq.setdefault(cut.seq, []).append(cut)
    return [
        Sample(
            lease_id=same[0].lease_id,  # type: ignore[arg-type]
            seq=seq,
            window_us=max(cut.window_us for cut in same),
            busy_us=sum(cut.busy_us for cut in same),
        )
        for seq, same in sorted(by_seq.items())
    ]


def _addresses(runners: Iterable[Seated]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(runner.node.address for runner in runners))


def _spoils(end: JobEnd) -> bool:
    return end.outcome in (LeaseOutcome.FAILED, LeaseOutcome.LOST)


def _together(ends: list[JobEnd]) -> JobEnd:
    """How the gang ended: the worst of its ranks, and rank 0's result."""
    order = (LeaseOutcome.LOST, LeaseOutcome.FAILED, LeaseOutcome.SAVED, LeaseOutcome.SUCCEEDED)
    worst = min(ends, key=lambda end: order.index(end.outcome))
    return msgspec.structs.replace(
        worst,
        result_ref=worst.result_ref or (ends[0].result_ref if worst.outcome is LeaseOutcome.SUCCEEDED else ""),
        reusable=all(end.reusable for end in ends),
        used_ray=any(end.used_ray for end in ends),
    )


def _reason(error: BaseException) -> str:
    """What Ray knows of a death, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "died" in line or "exit" in line.lower() or "memory" in line.lower()]
    return " ".join(told[-2:] or lines[-1:])[:500]
