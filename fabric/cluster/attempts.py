"""One lease's life on Ray: built, run, asked to stop, removed, each reported. Devices are free only when nothing is left."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
import structlog

from fabric.cluster.cuts import merged
from fabric.cluster.dispatch import carry_out, is_clean
from fabric.cluster.placement_groups import KEEPABLE, Group, Seated
from fabric.cluster.preparation import prepared
from fabric.cluster.ranks import Ranks, not_built
from fabric.cluster.services import Services
from fabric.cluster.settings import BundleInfo, LeaseInfo
from fabric.cluster.validation import text
from fabric.errors import InvalidRequest
from fabric.gate.events import JobKind, LeaseFinished, LeaseOutcome, LeaseRemoved, LeaseStarted, Metered, Sample
from fabric.gate.instructions import Lease
from fabric.gate.lifecycle import StopReason
from fabric.inventory.nodes import Node
from fabric.node.agent import Cut, Watch
from fabric.storage.layout import lease_info_key
from fabric.units import Fraction, NodeId
from fabric.worker.environments import environment_folder, python_of
from fabric.worker.payload import Payload, read_payload, runtime_env_of
from fabric.worker.ray_hosts import new_word
from fabric.worker.runner import Order, ranks_of
from fabric.worker.stage import JobEnd

_STARTED_WITHIN_S: Final = 0.02
"""A job shorter than this is told of in one piece: one commit for its start and its end."""
_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Attempt:
    """One lease. `start` and `remove` run as tasks of the cluster's loop; each is done once."""

    lease: Lease
    around: Services
    group: Group | None = None
    orders: list[Order] = field(default_factory=list)
    info: LeaseInfo | None = None
    end: JobEnd | None = None
    reused: bool = False
    own_start: bool = False
    """Whether code of the tenant's may run in the start of its runners: in an interpreter with its packages or variables."""
    nodes: Mapping[NodeId, Node | None] = field(default_factory=dict)
    """Those that it is built on, as they were when that began."""
    addresses: tuple[str, ...] = ()
    stop_asked: tuple[str, float, bool] | None = None
    """(why, when it must have ended by the monotonic clock, whether a checkpoint is wanted)"""
    task: "asyncio.Task[None] | None" = None
    removal: "asyncio.Task[None] | None" = None
    cuts: list[Cut] = field(default_factory=list)
    """What the meters said last, until it is reported."""

    async def start(self) -> None:
        """Build the lease, run the job, report how it ended."""
        try:
            payload = read_payload(self.lease.payload)
            await self.around.control.back()
            await prepared(self.lease, payload, self.around)
            await self.around.control.within(self.around.settings.start_timeout_s, self._build(payload))
        except InvalidRequest as error:
            self._finish(JobEnd(outcome=LeaseOutcome.FAILED, error=f"{error.code}: {error.message}"))
        except ray.exceptions.RuntimeEnvSetupError as error:
            self._finish(JobEnd(outcome=LeaseOutcome.FAILED, error=f"runtime_env_failed: {error}"))
        except Exception as error:  # noqa: BLE001  # whatever Ray raises here
            await self._not_built(error)
        else:
            await self._run()

    @classmethod
    def found(cls, lease: Lease, around: Services, *, group: Group, orders: list[Order]) -> "Attempt":
        """A lease whose runners outlived the gate's process."""
        return cls(lease=lease, around=around, group=group, orders=orders, addresses=_addresses(group.runners))

    async def resume(self) -> None:
        """Watch a found lease to its end. The former gate may have died before it heard that the job runs."""
        assert self.group is not None
        self.around.outbox.put(LeaseStarted(lease_id=self.lease.lease_id))
        await self._attach()
        calls = [runner.actor.wait.remote() for runner in self.group.runners]
        if not any(order.furnishes for order in self.orders):
            await self._until_ended(calls)
        elif await self._is_furnished(calls):
            await self._until_ended(self._begun())

    async def watch_again(self) -> None:
        """Have the agents watch a bare lease that survived the gate's restart."""
        nodes = self.around.nodes
        self.addresses = tuple(dict.fromkeys(nodes[s.node_id].address for s in self.lease.shares if s.node_id in nodes))
        await self._attach()

    async def ask_to_save(self) -> None:
        """Hand the wish for a checkpoint to all ranks; one that has none yet isn't told again."""
        runners = self.group.runners if self.group is not None and self.end is None else ()
        await asyncio.gather(*(runner.actor.save.remote() for runner in runners), return_exceptions=True)

    async def ask_to_stop(self, reason: str, *, seconds_left: float, save: bool = True) -> None:
        """Hand the wish to all ranks at once. A bare lease waits to be closed, which is what its owner's wish is."""
        self.stop_asked = (reason, time.monotonic() + seconds_left, save)
        if self.group is None or self.end is not None:
            return
        if self.lease.kind is JobKind.LEASE:
            if reason == StopReason.CANCELLED:
                self._finish(JobEnd(outcome=LeaseOutcome.SUCCEEDED))
            return
        wishes = [
            runner.actor.stop.remote(reason, seconds_left=seconds_left, save=save) for runner in self.group.runners
        ]
        await asyncio.gather(*wishes, return_exceptions=True)

    async def remove(self) -> None:
        """End what is left, free the devices, and say so. To be repeated if it raises: what the meters said is kept."""
        if self.task is not None and self.end is None:
            self.task.cancel()
            await asyncio.wait([self.task])
        if self.group is not None and self._gives_back(self.group):
            await self._release(self.group)
        else:
            await self._tear_down()
        lease_id = self.lease.lease_id
        self.around.outbox.put(
            LeaseRemoved(lease_id=lease_id, final=self._final(), step=self.around.progress.step_of(self.lease.job_id))
        )
        for order, address in self.ranks():
            await self.around.agents.tidy(
                address, folder=str(order.folder), log_file=str(order.log_file), log_key=order.log_key
            )

    def roots(self, address: str) -> tuple[int, ...]:
        """The runners' processes on one machine."""
        runners = self.group.runners if self.group else ()
        return tuple(runner.seat.pid for runner in runners if runner.node.address == address)

    async def _build(self, payload: Payload) -> None:
        lease, around = self.lease, self.around
        self.nodes = {share.node_id: around.nodes.get(share.node_id) for share in lease.shares}
        self.addresses = tuple(dict.fromkeys(node.address for node in self.nodes.values() if node is not None))
        environment = msgspec.json.encode(payload.runtime_env, order="sorted").decode()
        self.group, self.reused = await around.groups.take(lease, environment=environment, forks=payload.forks)
        if lease.kind is JobKind.LEASE:
            await self._publish_info(self.group)
            return
        wanted = payload.environment
        folder = environment_folder(around.settings.work_dir, lease.account_id, wanted.digest) if wanted else None
        is_there = folder is not None and await self._has(folder)
        if not self.reused:
            await self._seat(payload, folder if is_there else None)
        if payload.forks:
            around.agents.warm_up()
        zygotes = around.agents.zygotes if payload.forks else {}
        first = self.group.runners[0].seat
        self.addresses = _addresses(self.group.runners)
        if payload.per_device:
            zygotes = {address: await around.agents.zygote_of(address) for address in self.addresses}
        joins = lease.kind is JobKind.PROGRAM and len(lease.shares) > 1 and not payload.per_device
        ray_word = new_word() if joins else ""
        self.orders = [
            Order(
                lease=lease,
                rank=rank,
                ray_word=ray_word,
                master_addr=first.ip,
                master_port=first.port,
                work_dir=str(around.settings.work_dir),
                cache_bytes=around.settings.cache_bytes,
                limits=around.settings.limits,
                zygote=zygotes.get(runner.node.address, ""),
                stage_dir=str(around.settings.stage_dir or ""),
                devices_are=runner.node.resource,
                devices_of_node=runner.node.devices,
                per_device=payload.per_device,
                environment=str(folder or ""),
                furnishes=folder is not None and not is_there,
            )
            for rank, runner in enumerate(self.group.runners)
        ]

    async def _has(self, folder: Path) -> bool:
        """Whether the job's packages are on every machine of the lease."""
        addresses = dict.fromkeys(self.around.nodes[share.node_id].address for share in self.lease.shares)
        return all(await asyncio.gather(*(self.around.agents.has_environment(a, str(folder)) for a in addresses)))

    async def _seat(self, payload: Payload, environment: Path | None) -> None:
        """Start the runners; with an environment, in its interpreter, and known by the lease's mark from their start."""
        assert self.group is not None
        mark = self.around.settings.marks(str(self.lease.lease_id))
        marks = {**payload.env, **mark} if self.lease.kind is JobKind.PROGRAM else {}
        python = ""
        if environment is not None:
            python, marks = str(python_of(environment)), {**marks, **mark}
        wanted = runtime_env_of(payload, extra=marks, python=python)
        if python or set(wanted.get("env_vars", {})) - set(mark):
            # An interpreter runs what its variables and packages name before anything of ours: that is in the lease.
            self.own_start = True
            self.around.outbox.put(LeaseStarted(lease_id=self.lease.lease_id))
        await self.around.groups.seat(self.group, self.lease, runtime_env=wanted)

    async def _is_furnished(self, calls: Sequence[Any]) -> bool:
        """Wait until the job's packages are installed, by the runners that sit in the group, and seat others that have them.
        Meanwhile the devices are held, metered and paid for. If it can't be done, says how the attempt ended.
        """
        group = self.group
        assert group is not None
        end = await Ranks(self.lease, group.runners, self.around).ended(calls)
        if end.outcome is not LeaseOutcome.SUCCEEDED:
            self._finish(end)
            return False
        try:
            await self.around.control.within(self.around.settings.start_timeout_s, self._seat_again(group))
        except Exception as error:  # noqa: BLE001  # as at the start
            await self._not_built(error)
            return False
        await self._attach()
        return True

    async def _seat_again(self, group: Group) -> None:
        """What the installation has left running ends with its runners."""
        agents, lease_id = self.around.agents, str(self.lease.lease_id)
        roots = {address: self.roots(address) for address in self.addresses}
        await asyncio.gather(*(agents.end(a, lease_id, roots=pids) for a, pids in roots.items()))
        await self.around.groups.dismiss(group)
        await self._seat(read_payload(self.lease.payload), Path(self.orders[0].environment))
        first = group.runners[0].seat
        self.orders = [
            msgspec.structs.replace(order, furnishes=False, master_addr=first.ip, master_port=first.port)
            for order in self.orders
        ]

    async def _not_built(self, error: Exception) -> None:
        _log.warning("lease_not_built", lease_id=self.lease.lease_id, why=repr(error)[:500])
        self._finish(await not_built(error, nodes=self.nodes, around=self.around, own_start=self.own_start))

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
            env_vars=self.around.settings.marks(str(self.lease.lease_id)),
        )
        self.addresses = tuple(dict.fromkeys(node.address for node in nodes))
        key = lease_info_key(self.lease.account_id, self.lease.job_id)
        await asyncio.to_thread(self.around.archive.put, key, msgspec.json.encode(self.info))

    async def _run(self) -> None:
        group = self.group
        assert group is not None
        if not self.reused:
            await self._attach()
        if not self.own_start:
            self.around.outbox.put(LeaseStarted(lease_id=self.lease.lease_id), within_s=_STARTED_WITHIN_S)
        calls = self._begun()
        await self._ask_again_to_stop()
        if not calls:
            return
        if any(order.furnishes for order in self.orders):
            if not await self._is_furnished(calls):
                return
            calls = self._begun()
            await self._ask_again_to_stop()
        # A kept runner is known to the meters, which count what it does from its last lease on: no need to wait for them.
        await asyncio.gather(self._until_ended(calls), *([self._attach()] if self.reused else []))

    def _begun(self) -> list[Any]:
        """Every rank's order, on its way."""
        runners = self.group.runners if self.group is not None else ()
        return [carry_out(order, runner) for runner, order in zip(runners, self.orders, strict=True)]

    async def _ask_again_to_stop(self) -> None:
        """A wish that came before there was anybody to hear it."""
        if self.stop_asked is not None:
            reason, at, save = self.stop_asked
            await self.ask_to_stop(reason, seconds_left=max(0.0, at - time.monotonic()), save=save)

    async def _attach(self) -> None:
        """Have the agents watch the lease: all its devices on one machine are one share there."""
        for address in self.addresses:
            here = [runner for runner in (self.group.runners if self.group else ()) if runner.node.address == address]
            devices = tuple(device for runner in here for device in runner.seat.devices) or self._devices_at(address)
            roots = tuple(runner.seat.pid for runner in here)
            with suppress(KeyError, TimeoutError, ray.exceptions.RayError):
                watch = Watch(
                    lease_id=str(self.lease.lease_id),
                    devices=devices,
                    roots=roots,
                    marks=tuple(runner.name for runner in here if runner.name),
                    shared=self._shared(address),
                )
                await self.around.agents.attach(address, watch)

    def _shared(self, address: str) -> Fraction | None:
        """Which part it has there of a device that others use, too."""
        nodes = [self.around.nodes.get(share.node_id) for share in self.lease.shares]
        here = [node for node in nodes if node is not None and node.address == address]
        return self.lease.fraction if any(node.is_shared(self.lease.fraction) for node in here) else None

    def _devices_at(self, address: str) -> tuple[str, ...]:
        """So many, of which nobody can tell which they are, nor read them: Ray gives a group's tasks any of the node's."""
        nodes = self.around.nodes
        shares = [s for s in self.lease.shares if s.node_id in nodes and nodes[s.node_id].address == address]
        return tuple(f"any:{i}" for i in range(sum(share.devices for share in shares)))

    async def _until_ended(self, calls: Sequence[Any]) -> None:
        assert self.group is not None
        ranks = Ranks(self.lease, self.group.runners, self.around, asked=lambda: self.stop_asked is not None)
        self._finish(await ranks.ended(calls))

    def _finish(self, end: JobEnd) -> None:
        self.end = end
        self.around.outbox.put(
            LeaseFinished(
                lease_id=self.lease.lease_id,
                outcome=end.outcome,
                error=text(end.error),
                result_ref=end.result_ref,
                step=end.step,
                again=end.again,
                exit_code=end.exit_code,
            )
        )

    def _gives_back(self, group: Group) -> bool:
        """Whether the runners may serve the next job as they are."""
        return self.end is not None and self.end.reusable and bool(group.runners)

    async def _release(self, group: Group) -> None:
        """Read the meters, and give the group back with its runners in it, if nothing was left in or beside them."""
        lease_id = str(self.lease.lease_id)
        answers, clean = await asyncio.gather(
            asyncio.gather(*(self.around.agents.release(a, lease_id) for a in self.addresses)),
            asyncio.gather(*map(is_clean, group.runners)),
        )
        self.cuts += [cut for cuts, _ in answers for cut in cuts]
        if not all(clean) or not all(clear for _, clear in answers) or not self.around.groups.keep(group):
            await self._clear()

    async def _tear_down(self) -> None:
        """Read the meters, kill, and destroy or keep the empty group."""
        lease_id = str(self.lease.lease_id)
        answers = await asyncio.gather(*(self.around.agents.detach(address, lease_id) for address in self.addresses))
        self.cuts += [cut for cuts in answers for cut in cuts]
        await self._clear()

    async def _clear(self) -> None:
        group, agents = self.group, self.around.agents
        if group is None:
            return
        lease_id = str(self.lease.lease_id)
        roots = {address: self.roots(address) for address in self.addresses}
        # While the runners live, nothing that they started can hide from them.
        ended = await asyncio.gather(*(agents.end(a, lease_id, roots=pids) for a, pids in roots.items()))
        # Of a lease that was not built to its end a runner may still be on its way into the group.
        built = self.lease.kind in KEEPABLE and bool(self.orders)
        keepable = built and self.end is not None and not self.end.used_ray
        keepable = keepable and all(share.node_id in self.around.nodes for share in group.shares)
        if keepable:
            await self.around.groups.dismiss(group)
        else:
            await self.around.groups.destroy(group, known=self.lease.kind is JobKind.LEASE)
            ended = await asyncio.gather(*(agents.end(a, lease_id, roots=pids) for a, pids in roots.items()))
        if keepable and not (all(ended) and self.around.groups.keep(group)):
            await self.around.groups.destroy(group)

    def _final(self) -> Sample | None:
        """The last sample of all machines together; one that was cut before it is reported on its own."""
        samples = merged(self.cuts)
        if not samples:
            return None
        if samples[:-1]:
            self.around.outbox.put(Metered(samples=tuple(samples[:-1])))
        return samples[-1]

    def ranks(self) -> list[tuple[Order, str]]:
        """Every rank's order, and the machine it is on; "" where that is gone."""
        nodes = self.around.nodes
        addresses = [nodes[share.node_id].address if share.node_id in nodes else "" for share in self.lease.shares]
        shares = zip(self.orders, addresses, strict=False)
        return [(rank, address) for order, address in shares for rank in ranks_of(order)]


def _addresses(runners: Iterable[Seated]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(runner.node.address for runner in runners))
