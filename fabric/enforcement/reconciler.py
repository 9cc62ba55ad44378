"""Finds what runs without a lease, and ends it: the ledger's word against Ray's.

That is what holds an accelerator outside of our placement groups, whoever started it: an actor, restarted or detached or of
another namespace, a task and its retries, a placement group. And what a job has started over Ray that no lease holds any
more, or never did: through its runner, or through a driver of its own, for which it has Ray's token (`drivers`). What of
this runs in a process that an agent counts to a lease ends with the lease, and is left alone until then.

A look costs three questions to the control store; raylets are asked only where more devices are held than placement groups
hold there. Every item is ended on its own: one that can't be, or a table that doesn't answer, keeps nothing from the rest.
Such failures are counted and told. A Ray job that takes devices again and again is ended as a whole (`retaking`).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import grpc
import msgspec
import structlog

from fabric.accelerators import DEVICE_RESOURCES
from fabric.enforcement.group_end import Entered
from fabric.enforcement.health import HEALTH_EVERY_S, HEALTH_KEY, Health
from fabric.enforcement.leaks import Leaks, excess
from fabric.enforcement.retaking import Retaking
from fabric.enforcement.unleased import Unleased
from fabric.inventory.drivers import Drivers, Had, nobody_says
from fabric.inventory.nodes import Node
from fabric.inventory.ray_tables import ActorRow, GroupRow, RayTables, Tables, WorkerRow

_SUSPECT_S: Final = 0.8
"""How long something without a lease must have been seen: what is ours may be younger than what we know."""
_SUPERVISOR: Final = "JobSupervisor"
"""What Ray's jobs API starts for a command, outside of any lease."""
_NODES_AT_ONCE: Final = 16
_NODES_IN_TURN: Final = 32
"""So many nodes, beside those that hold too much, are looked at each time for tasks that hold no device."""
_WHY: Final = (
    "{kind} {name} held an accelerator without a lease and was ended: submit the program with ray_program=True, or"
    " schedule it with the options of a fabric.lease()"
)
_log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Ours:
    """What is the fabric's own, asked after Ray was: so nothing new of ours is taken for a stranger's."""

    groups: Callable[[], set[str]]
    """The ids of our placement groups, and the names of those being made."""
    used: Callable[[], set[str]] = set
    """The ids of those that a lease is in."""
    actors: Callable[[], set[str]] = set
    """The ids of our actors, and the names of those being made."""
    job_id: str = ""
    """The gate's Ray job; what its runners start has the same."""
    cluster: bool = False
    """Whether nobody but us may start anything through Ray: then its jobs, by their supervisors, are nobody's."""


class Kill(Protocol):
    """Ends a process of a node, by the node's address and the process' number."""

    def __call__(self, address: str, pid: int) -> None: ...


@dataclass(slots=True)
class Use:
    """Something that holds a device without a lease, in these placement groups, whatever has become of them."""

    found: Unleased
    job_id: str
    end: Callable[[], None]
    pid: int = 0
    group_ids: Iterable[str] = ()


@dataclass(slots=True)
class Suspect:
    """Something of a job's that no lease holds, as it seems, and that holds no device."""

    found: Unleased
    address: str
    pid: int
    job_id: str
    end: Callable[[], None]


@dataclass(slots=True)
class Look:
    """What one look has found, and hasn't ended yet."""

    unleased: list[Use] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    is_whole: bool = False
    """Whether raylets were asked, too."""
    held: Mapping[str, float] = field(default_factory=dict)
    """Devices that no placement group holds, by Ray's ids of the nodes."""
    explained: set[str] = field(default_factory=set)
    """Nodes, by Ray's ids, where somebody was found to hold some, or whose raylet did not say who does."""


class Reconciler:
    """Remembers between looks who is suspected, and who has taken devices before."""

    def __init__(self, ours: Ours, *, tables: Callable[[], Tables] = RayTables.here, tells: bool = True) -> None:
        """Nothing is asked yet.

        Args:
            ours: what is the fabric's own.
            tables: called at the first look, and after a failure of all of them.
            tells: whether it keeps how it goes for `fabric doctor`.
        """
        self._ours = ours
        self._tells, self._open = tells, tables
        self._tables: Tables | None = None
        self._suspected: dict[str, float] = {}
        self._retaking = Retaking()
        self._turn = self._failed = 0
        self._told_at = -HEALTH_EVERY_S
        self._drivers = Drivers(own_cluster=ours.cluster)
        self._classes: dict[str, str] = {}
        self._entered = Entered()
        self._leaks = Leaks(restarts=ours.cluster)
        self.health = Health()

    def look(self, nodes: Sequence[Node], *, kill: Kill, first: Callable[[Look], object] = lambda _: None) -> Look:
        """Ask Ray. Blocks: run it in a thread. `first` is given what the control store alone tells: raylets may take seconds
        to answer, and what is known by then need not wait for them.
        """
        look, self._failed, self._classes = Look(), 0, {}
        with self._attempt("connect"):
            self._tables = self._tables or self._open()
        if self._tables is not None:
            seen = _Seen(nodes)
            groups = self._asked(self._tables.groups) or []
            self._retaking.remember(self._ours.groups())
            actors = self._asked(self._tables.actors) or []
            self._classes = {row.id: row.class_name.rpartition(".")[2] for row in actors}
            self._look_at_groups(look, groups, seen, actors, kill)
            self._look_at_actors(look, actors, seen, kill)
            mine, found = self._ours.actors(), {use.found.id for use in look.unleased if use.found.kind == "actor"}
            first(look)
            spared = {row.pid for row in actors if row.id in mine}
            self._look_at_workers(look, groups, seen, kill, spared=spared, actors=found)
            if self._tells:
                self._mend_leaks(look, seen)
        look.is_whole = True
        return look

    @property
    def stuck(self) -> Mapping[str, int]:
        """Devices that are held for nobody and not to be had, by node. From any thread."""
        return self._leaks.stuck

    def _mend_leaks(self, look: Look, seen: "_Seen") -> None:
        self._leaks.see(look.held, unknown=look.explained, at=(at := time.monotonic()))
        with self._attempt("give devices back"):
            self._leaks.mend(self._known, seen.nodes, at=at)
        self.health.stuck = dict(self.stuck)

    def end(self, look: Look, *, kill: Kill) -> list[Unleased]:
        """End what a look has found to hold a device, once. Blocks. `kill` ends a process."""
        removed, at = [], time.monotonic()
        uses, look.unleased = look.unleased, []
        for use in uses:
            found, job_id = use.found, use.job_id
            with self._attempt(f"end {found.kind} {found.id[:16]}"):
                use.end()
                removed.append(found)
                _log.warning("unleased_use_removed", kind=found.kind, id=found.id, name=found.name, ray_job=job_id)
            if self._retaking.is_left(use.group_ids):
                continue
            if job_id not in ("", self._ours.job_id):
                with self._attempt(f"tell Ray job {job_id}"):
                    self._known.tell_job(job_id, _WHY.format(kind=found.kind, name=found.name or found.id))
            with self._attempt(f"end Ray job {job_id}"):
                self._end_taker(use, kill, at=at)
        self.health.removed += len(removed)
        if look.is_whole:
            self._tell()
        return removed

    def end_suspects(self, look: Look, *, claimed: Mapping[str, set[int]], had: Had = nobody_says) -> list[Unleased]:
        """End what is seen for some time, and in no process that is counted to a lease. Blocks.

        Args:
            look: what was found.
            claimed: by machine, the processes that its agent counts to a lease; what runs on a machine that doesn't say may
                be a lease's.
            had: asks an agent which processes that are gone were a lease's.
        """
        now, tables, removed = time.monotonic(), self._tables, []
        before, self._suspected = self._suspected, {}
        others = {suspect.job_id for suspect in look.suspects} - {"", self._ours.job_id}
        if others and tables is not None and (rows := self._asked(tables.jobs)) is not None:
            self._drivers.judge(others, rows, claimed=claimed, had=had)
        for suspect in look.suspects:
            if suspect.job_id in others and not self._drivers.is_a_leases(suspect.job_id):
                continue
            if suspect.pid in claimed.get(suspect.address, ()):
                continue
            key = suspect.found.id
            self._suspected[key] = before.get(key, now)
            is_told = suspect.address in claimed or not suspect.address
            if now - self._suspected[key] < _SUSPECT_S or not is_told:
                continue
            with self._attempt(f"end {suspect.found.kind} {key[:16]}"):
                suspect.end()
                removed.append(suspect.found)
                _log.warning("runaway_ended", kind=suspect.found.kind, id=key, name=suspect.found.name)
        self.health.removed += len(removed)
        return removed

    def _look_at_groups(
        self, look: Look, groups: Sequence[GroupRow], seen: "_Seen", actors: Sequence[ActorRow], kill: Kill
    ) -> None:
        """Who is in one by name is ended before it: its node's raylet would die of removing it, and all that runs there."""
        known, at = self._ours.groups(), time.monotonic()
        for row in groups:
            if not known.isdisjoint((row.id, row.name)) or not any(seen.holds(bundle) for _, bundle in row.bundles):
                continue
            inside = self._entered.by(row.id, actors, at=at)
            for actor in inside:
                found, end = self._actor(actor, seen, kill)
                look.unleased.append(Use(found, actor.job_id, end, pid=actor.pid, group_ids={row.id}))
            with self._attempt(f"look into group {row.id[:16]}"):
                if not inside and self._entered.is_over(self._known, row.id, seen.nodes, actors, at=at):
                    found, gone = Unleased(kind="placement_group", id=row.id, name=row.name), self._known.remove_group
                    look.unleased.append(Use(found, row.job_id, partial(gone, row.id), group_ids={row.id}))

    def _actor(self, row: ActorRow, seen: "_Seen", kill: Kill) -> tuple[Unleased, Callable[[], None]]:
        """What is told of an actor, and its end."""
        name, node_id = row.class_name.rpartition(".")[2] or row.name, seen.names.get(row.node_id, "")

        def end() -> None:
            self._known.kill_actor(row.id)
            if (address := seen.addresses.get(row.node_id)) and row.pid:
                kill(address, row.pid)

        return Unleased(kind="actor", id=row.id, name=name, node_id=node_id), end

    def _look_at_actors(self, look: Look, actors: Sequence[ActorRow], seen: "_Seen", kill: Kill) -> None:
        known, mine = self._ours.groups(), self._ours.actors()
        for row in actors:
            if not mine.isdisjoint((row.id, row.name)):
                continue
            (found, end), at = self._actor(row, seen, kill), seen.addresses.get(row.node_id, "")
            holds = row.is_alive and row.group_id not in known and seen.holds(row.required)
            if holds or (self._ours.cluster and row.class_name == _SUPERVISOR):
                look.explained.add(row.node_id)
                look.unleased.append(Use(found, row.job_id, end, pid=row.pid, group_ids={row.group_id}))
            elif row.group_id not in self._ours.used():
                look.suspects.append(Suspect(found, at, row.pid, row.job_id, end))

    def _look_at_workers(
        self,
        look: Look,
        groups: Sequence[GroupRow],
        seen: "_Seen",
        kill: Kill,
        *,
        spared: set[int],
        actors: set[str],
    ) -> None:
        """Tasks, by the processes that run them; and actors, but for those that were found before."""
        full, others = self._nodes_to_ask(look, groups, seen)
        wanted = [*full, *others]
        if not wanted:
            return
        with ThreadPoolExecutor(min(len(wanted), _NODES_AT_ONCE)) as pool:
            rows = list(pool.map(self._workers_of, wanted))
        known = self._ours.groups()
        for node, found in zip(wanted, rows, strict=True):
            if found is None:
                look.explained.add(node.ray_id)
            if found is None and node in full:
                found = self._workers_apart(look, node, kill, spared=spared)  # noqa: PLW2901
            for row in found or ():
                if row.actor_id in actors:
                    continue
                takes = seen.holds(row.held) and known.isdisjoint(row.group_ids)
                self._take_worker(look, node, row, takes, kill)

    def _workers_apart(self, look: Look, node: Node, kill: Kill, *, spared: set[int]) -> list[WorkerRow]:
        """Where a raylet is silent, because a worker of its stands still, and somebody holds what isn't leased: that is the
        one, unless a lease is charged for it.
        """
        asked = self._asked(lambda: self._known.workers_apart(node.ray_id), what=f"workers of {node.node_id}")
        rows, silent = asked or ([], [])
        for pid in set(silent) - spared:
            found = Unleased(
                kind="task", id=f"{node.address} {pid}", name="that stands still", node_id=str(node.node_id)
            )
            look.suspects.append(
                Suspect(found, node.address, pid, "", lambda at=node.address, pid=pid: kill(at, pid))  # type: ignore[misc]
            )
        return list(rows)

    def _take_worker(self, look: Look, node: Node, row: WorkerRow, takes: bool, kill: Kill) -> None:
        kind = "actor" if row.actor_id else "task"
        name = self._classes.get(row.actor_id, str(row.pid))
        unleased = Unleased(kind=kind, id=row.actor_id or str(row.pid), name=name, node_id=str(node.node_id))

        def end() -> None:
            if row.actor_id:
                self._known.kill_actor(row.actor_id)
            kill(node.address, row.pid)
            self._known.end_worker(row)  # the agent may be gone with its own node

        is_task = row.runs and not row.actor_id
        if takes:
            look.explained.add(node.ray_id)
            look.unleased.append(Use(unleased, row.job_id, end, pid=row.pid, group_ids=row.group_ids))
        elif is_task and self._ours.used().isdisjoint(row.group_ids):
            look.suspects.append(Suspect(unleased, node.address, row.pid, row.job_id, end))

    def _nodes_to_ask(self, look: Look, groups: Sequence[GroupRow], seen: "_Seen") -> tuple[list[Node], list[Node]]:
        """Those where more is held than placement groups hold; and some others, in turn."""
        free = self._asked(self._known.free)
        if free is None:
            return list(seen.nodes), []
        look.held = excess(seen.nodes, groups, free)
        found = {node.ray_id: node for node in seen.nodes if node.ray_id in look.held}
        in_turn = [
            seen.nodes[(self._turn + at) % len(seen.nodes)] for at in range(min(_NODES_IN_TURN, len(seen.nodes)))
        ]
        self._turn += _NODES_IN_TURN
        return list(found.values()), [node for node in in_turn if node.ray_id not in found]

    def _workers_of(self, node: Node) -> list[WorkerRow] | None:
        found: list[WorkerRow] | None = self._asked(
            lambda: self._known.workers(node.address, node.port), what=f"workers of {node.node_id}"
        )
        return found

    def _end_taker(self, use: Use, kill: Kill, *, at: float) -> None:
        """A program that has what it lost started again and again is ended itself."""
        job_id = use.job_id
        if not self._retaking.again(job_id, use.found.id, use.pid, at=at) or job_id in ("", self._ours.job_id):
            return
        row = self._known.jobs().get(job_id)
        _log.warning("ray_job_ended", ray_job=job_id, why="it takes devices without a lease again and again")
        self._known.end_job(job_id)
        if row is not None and not row.is_over and row.driver_address:
            kill(row.driver_address, row.driver_pid)

    @property
    def _known(self) -> Tables:
        assert self._tables is not None
        return self._tables

    def _asked(self, ask: Callable[[], Any], *, what: str = "") -> Any:
        """The answer; None, and the failure noted, if there is none."""
        with self._attempt(what or getattr(ask, "__name__", "ask")):
            return ask()
        return None

    @contextmanager
    def _attempt(self, what: str) -> Iterator[None]:
        """One item: what goes wrong with it is counted, and keeps nothing from the others."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever it is
            said = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else repr(error)
            self._failed += 1
            self.health.failures += 1
            self.health.last_failure = f"{what}: {said}"[:300]
            _log.warning("unleased_use_not_looked_at", what=what, why=said[:300])

    def _tell(self) -> None:
        """Keep how it goes where `fabric doctor` finds it."""
        health = self.health
        health.looks += 1
        health.failing = health.failing + 1 if self._failed else 0
        if not self._tells or self._tables is None or time.monotonic() - self._told_at < HEALTH_EVERY_S:
            return
        self._told_at = time.monotonic()
        health.at_s = int(time.time())
        with self._attempt("tell"):
            self._known.put(HEALTH_KEY, msgspec.json.encode(health))
        if self._failed and health.failing > 1:
            self._tables = None  # the control store may have moved


class _Seen:
    """The nodes that are sold, by Ray's ids, and what counts as their devices."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = tuple(nodes)
        self.addresses = {node.ray_id: node.address for node in nodes}
        self.names = {node.ray_id: str(node.node_id) for node in nodes}
        self._wanted = {*DEVICE_RESOURCES, *(node.accelerator for node in nodes)}

    def holds(self, resources: Mapping[str, float]) -> bool:
        return any(amount > 0 and name in self._wanted for name, amount in resources.items())
