"""Placement groups and the runners in them: made for a lease, kept warm a while after it, never shared by two tenants.

Ray takes about a second to see freed devices again and about as long to start a process, so a group that a lease gave
back is kept for the next one of the same nodes and counts, and a runner that is clean for the next function of the same
account and environment. A kept group gives way at once to a lease of another shape.
"""

import asyncio
import itertools
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ray
import structlog
from ray.util.placement_group import PlacementGroup, PlacementGroupID, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fabric.cluster.agents import Agents
from fabric.cluster.settings import ClusterSettings
from fabric.enforcement.group_end import end_group, is_vacant
from fabric.gate.events import JobKind
from fabric.gate.instructions import Lease, Share
from fabric.inventory.nodes import NODE_LABEL, Node
from fabric.storage.archive import Archive
from fabric.system.guarded import Admitted, actor_id_of, sealed, secret_of
from fabric.units import Fraction, NodeId
from fabric.worker.channel import Line
from fabric.worker.runner import RunnerActor, Seat

RUNNER_PREFIX: Final = "runner-"
KEEPABLE: Final = (JobKind.FUNCTION, JobKind.SCRIPT, JobKind.PROGRAM)
"""Kinds whose devices are held by the runners alone: their groups are empty once the runners are gone."""
_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Seated:
    """A runner in its bundle."""

    actor: Admitted
    seat: Seat
    node: Node
    name: str = ""
    """The actor's, by which what it starts over Ray is known: its environment begins with it."""
    line: Line | None = None
    """The short way to it, where there is one."""


@dataclass(slots=True, eq=False)
class Group:
    """A placement group of ours."""

    placed: PlacementGroup
    shares: tuple[Share, ...]
    fraction: Fraction | None = None
    """Of its one device it has such a part."""
    runners: list[Seated] = field(default_factory=list)
    tenant: tuple[str, str] = ("", "")
    """(account, environment) of the runners."""
    kept_until: float = 0.0
    unseated: dict[str, str] = field(default_factory=dict)
    """Runners that were started in it and have not said that they are there: the addresses of their machines, by their names."""

    @property
    def id(self) -> str:
        return str(self.placed.id.hex())


@dataclass(slots=True)
class Leaving:
    """A group that must go."""

    group: Group
    known: bool
    """Whether its holder was told what its resources are called."""
    task: "asyncio.Task[None]"
    """Its end; one that has failed is begun anew."""


class Groups:
    """All placement groups of ours: in use, kept, and leaving."""

    def __init__(
        self, *, nodes: Mapping[NodeId, Node], agents: Agents, archive: Archive, settings: ClusterSettings
    ) -> None:
        self._nodes = nodes
        self._agents = agents
        self._archive = archive
        self._settings = settings
        self._used: dict[str, Group] = {}
        self._kept: list[Group] = []
        self._leaving: dict[str, Leaving] = {}
        self._count = itertools.count(1)
        self._ours: set[str] = set()
        self._actors: set[str] = set()
        self._ending: set[asyncio.Future[bool]] = set()

    def ours(self) -> set[str]:
        """The ids of all groups of ours, and the names of those being made, which have no id yet. From any thread: a
        group is never out of the set between its making and its end, or the reconciler would take it for a stranger's.
        """
        return self._ours.copy()

    def used(self) -> set[str]:
        """The ids of the groups that a lease is in. From any thread."""
        return set(self._used)

    def actors(self) -> set[str]:
        """Ray's ids of our runners, and the names of those being made, which have no id yet. From any thread."""
        return self._actors.copy()

    def marks(self) -> set[str]:
        """The names of all runners that live or are being started: a runner's is among them before its process is there."""
        groups = [*self._used.values(), *self._kept, *(leaving.group for leaving in self._leaving.values())]
        return {name for group in groups for name in (*group.unseated, *(runner.name for runner in group.runners))}

    def runners(self, address: str) -> list[int]:
        """All that live on a machine, by their processes' numbers."""
        return _pids([*self._used.values(), *self._kept], address)

    def busy(self, address: str) -> list[int]:
        """Those of them that a lease has."""
        return _pids(self._used.values(), address)

    def adopt(self, group: Group) -> None:
        """A group that was ours before a restart, in use."""
        self._ours.add(group.id)
        self._used[group.id] = group
        self._actors |= {actor_id_of(runner.actor) for runner in group.runners}

    async def take(self, lease: Lease, *, environment: str, forks: bool = False) -> tuple[Group, bool]:
        """A group of the lease's shape, and whether runners of this tenant sit in it already, clean for a function or for
        a job that runs in a process of its own.
        """
        tenant = (str(lease.account_id), environment)
        fitting = [
            group
            for group in self._kept
            if group.shares == lease.shares and group.fraction == lease.fraction and lease.kind in KEEPABLE
        ]
        if fitting:
            wanted = lease.kind is JobKind.FUNCTION or forks
            mine = next((group for group in fitting if wanted and group.tenant == tenant and group.runners), None)
            group = mine or fitting[0]
            self._kept.remove(group)
            self._used[group.id] = group
            group.tenant = tenant
            if mine is not None or await self._emptied_or_destroyed(group):
                return group, mine is not None
        await asyncio.gather(*(self._destroy_kept(group) for group in self._in_the_way_of(lease)))
        group = await self._made(lease)
        group.tenant = tenant
        return group, False

    async def seat(self, group: Group, lease: Lease, *, runtime_env: Mapping[str, Any]) -> None:
        """Start a runner in every bundle, and wait until they answer."""
        started = []
        for bundle, share in enumerate(group.shares):
            name = f"{RUNNER_PREFIX}{secrets.token_hex(8)}"
            group.unseated[name] = self._nodes[share.node_id].address
            actor = await asyncio.to_thread(self._start, group, lease, bundle, dict(runtime_env), name)
            started.append((name, actor))
        seats = await asyncio.gather(*(_awaited(actor.seat.remote()) for _, actor in started), return_exceptions=True)
        lines = await asyncio.gather(*(Line.open(seat.line if isinstance(seat, Seat) else None) for seat in seats))
        nodes = [self._nodes.get(share.node_id) for share in group.shares]
        for (name, actor), seat, node, line in zip(started, seats, nodes, lines, strict=True):
            if isinstance(seat, Seat) and node is not None:
                group.runners.append(Seated(actor=actor, seat=seat, node=node, name=name, line=line))
                del group.unseated[name]
            else:
                await asyncio.to_thread(ray.kill, actor.actor, no_restart=True)
        for seat in seats:
            if isinstance(seat, BaseException):
                raise seat

    async def dismiss(self, group: Group) -> list[Seated]:
        """End the group's runners (their processes may take a moment)."""
        leaving = group.runners
        for runner in leaving:
            if runner.line is not None:
                runner.line.close()
            await asyncio.to_thread(ray.kill, runner.actor.actor, no_restart=True)
            self._actors.discard(actor_id_of(runner.actor))
        group.runners = []
        return leaving

    def keep(self, group: Group) -> bool:
        """Keep a group for the next lease of its shape; whether that is wanted."""
        if self._settings.warm_s <= 0 or group.id not in self._used:
            return False
        first = self._nodes.get(group.shares[0].node_id)
        if first is None or first.is_shared(group.fraction):
            return False  # the rest of its device could be somebody's only room for a whole one
        del self._used[group.id]
        group.kept_until = time.monotonic() + self._settings.warm_s
        self._kept.append(group)
        return True

    async def destroy(self, group: Group, *, known: bool = False) -> None:
        """Remove a group and all that runs in it. That goes on though nobody waits for it any more; what fails, `expire` tries
        again: a group that is forgotten holds its devices for ever, and the reconciler takes it for one of ours.

        Args:
            group: one of ours.
            known: its holder was told what its resources are called: who got in by these names is ended first.

        Raises:
            Unavailable: somebody stays in it.
        """
        leaving = self._leaving.get(group.id)
        if leaving is None or leaving.task.done():
            task = asyncio.create_task(self._removed(group, known=known))
            task.add_done_callback(_told_of)
            leaving = self._leaving[group.id] = Leaving(group=group, known=known, task=task)
        await asyncio.shield(leaving.task)

    async def _removed(self, group: Group, *, known: bool) -> None:
        loop = asyncio.get_running_loop()

        def kill(address: str, pid: int) -> None:
            asyncio.run_coroutine_threadsafe(self._agents.kill(address, pid), loop)

        def remove() -> None:
            remove_placement_group(group.placed)

        await self.dismiss(group)
        if known:
            await asyncio.to_thread(end_group, group.id, lambda: list(self._nodes.values()), remove=remove, kill=kill)
        else:
            await asyncio.to_thread(remove)
        self.end_unseated(group.unseated.items())
        group.unseated = {}
        self._used.pop(group.id, None)
        self._leaving.pop(group.id, None)
        self._ours.discard(group.id)

    def end_unseated(self, runners: Iterable[tuple[str, str]]) -> None:
        """Have agents end what was started for runners that never sat, and what is only being started for them: Ray starts a
        process for each, also for one that is not wanted any more, and keeps it, with what its tenant gave it, for ever.

        Args:
            runners: (their names, the addresses of their machines).
        """
        for name, address in runners:
            ending = asyncio.ensure_future(self._agents.end(address, name, roots=()))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def expire(self) -> None:
        """Remove groups that were kept long enough, or whose node is gone, and those that could not be removed before."""
        now = time.monotonic()
        gone = [
            group
            for group in self._kept
            if group.kept_until < now or any(share.node_id not in self._nodes for share in group.shares)
        ]
        stayed = [each for each in self._leaving.values() if each.task.done()]
        again = [self.destroy(each.group, known=each.known) for each in stayed]
        await asyncio.gather(*(self._destroy_kept(group) for group in gone), *again)

    async def close(self) -> None:
        """Remove all kept groups. What runs in the others goes on, and is heard of over Ray by the next gate."""
        for runner in (runner for group in self._used.values() for runner in group.runners):
            if runner.line is not None:
                runner.line.close()
        await asyncio.gather(*(self._destroy_kept(group) for group in list(self._kept)))
        await asyncio.gather(*(each.task for each in list(self._leaving.values())), return_exceptions=True)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _in_the_way_of(self, lease: Lease) -> list[Group]:
        """The oldest kept groups that must go so that the lease fits on its nodes."""
        leaving: list[Group] = []
        for node_id in dict.fromkeys(share.node_id for share in lease.shares):
            node = self._nodes.get(node_id)
            staying = [*self._used.values(), *(group for group in self._kept if group not in leaving)]
            free = (node.devices if node else 0) - sum(_devices_on(group.shares, node_id) for group in staying)
            for group in self._kept:
                if free >= _devices_on(lease.shares, node_id):
                    break
                if group not in leaving and (given := _devices_on(group.shares, node_id)):
                    leaving.append(group)
                    free += given
        return leaving

    async def _destroy_kept(self, group: Group) -> None:
        if group in self._kept:
            self._kept.remove(group)
            await self.destroy(group)

    async def _emptied_or_destroyed(self, group: Group) -> bool:
        """End a former tenant's runners; whether their processes are gone, so that the group can be used again."""
        try:
            leaving = await self.dismiss(group)
            gone = await asyncio.gather(
                *(self._agents.end(r.node.address, f"former:{group.id}", roots=(r.seat.pid,)) for r in leaving)
            )
        except BaseException:
            await asyncio.shield(self.destroy(group))
            raise
        vacant = all(gone) and await asyncio.to_thread(is_vacant, group.id)
        if not vacant:
            await self.destroy(group)
        return vacant

    async def _made(self, lease: Lease) -> Group:
        name = f"fabric/{lease.account_id}/{lease.job_id}/{lease.epoch}"
        if lease.kind in KEEPABLE:
            name = f"fabric/{lease.accelerator}/{next(self._count)}-{secrets.token_hex(3)}"
        self._ours.add(name)
        creation = asyncio.ensure_future(
            asyncio.to_thread(
                placement_group,
                [self._bundle(share, lease.fraction) for share in lease.shares],
                strategy="PACK",
                name=name,
                lifetime="detached",
                bundle_label_selector=[{NODE_LABEL: str(share.node_id)} for share in lease.shares],
            )
        )
        try:
            group = Group(placed=await asyncio.shield(creation), shares=lease.shares, fraction=lease.fraction)
            self._ours.add(group.id)
            self._used[group.id] = group
            await _awaited(group.placed.ready())
        except BaseException:
            # Cancelled or not, a group that Ray may have made must not stay behind.
            await self.destroy(Group(placed=await creation, shares=lease.shares))
            raise
        finally:
            self._ours.discard(name)
        return group

    def _bundle(self, share: Share, fraction: Fraction | None) -> dict[str, float]:
        node = self._nodes[share.node_id]
        return node.bundle(share.devices, cpus=self._settings.cpus_per_share, fraction=fraction)

    def _start(self, group: Group, lease: Lease, bundle: int, runtime_env: dict[str, Any], name: str) -> Admitted:
        share = group.shares[bundle]
        held = self._nodes[share.node_id].held(share.devices, lease.fraction) if lease.kind in KEEPABLE else {}
        self._actors.add(name)
        variables = {**self._settings.marks(name), **runtime_env.get("env_vars", {})}
        secret = secret_of(self._settings.key, name)
        closed, digest = sealed(secret, archive=self._archive, placement_group_id=group.id, bundle=bundle)
        actor = (
            ray.remote(RunnerActor)
            .options(
                name=name,
                namespace=self._settings.namespace,
                lifetime="detached",
                num_cpus=0,
                num_gpus=held.pop("GPU", 0),
                resources=held,
                runtime_env={**runtime_env, "env_vars": variables},
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group.placed,
                    placement_group_bundle_index=bundle,
                    placement_group_capture_child_tasks=True,
                ),
            )
            .remote(closed, digest)
        )
        admitted = Admitted(actor, secret)
        self._actors.add(actor_id_of(admitted))
        self._actors.discard(name)
        return admitted


def group_of(placement_group_id: str, shares: Sequence[Share], fraction: Fraction | None = None) -> Group:
    """A group known by its id, after a restart."""
    placed = PlacementGroup(PlacementGroupID(bytes.fromhex(placement_group_id)))
    return Group(placed=placed, shares=tuple(shares), fraction=fraction)


def _pids(groups: Iterable[Group], address: str) -> list[int]:
    return [runner.seat.pid for group in groups for runner in group.runners if runner.node.address == address]


def _told_of(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("group_not_removed", why=str(error)[:500])


def _devices_on(shares: Sequence[Share], node_id: NodeId) -> int:
    return sum(share.devices for share in shares if share.node_id == node_id)


async def _awaited(reference: Any) -> Any:
    return await reference
