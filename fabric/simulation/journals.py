"""A fabric's own journal: decided again, and read as a workload with what became of it.

File or database, it is only read, also while a gate writes it. What is simulated of it are its jobs as they were asked for, each for as
long as it computed to the end of the journal; what happened stands beside it, measured as a simulation is.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fabric.errors import InvalidRequest, JournalCorrupt
from fabric.gate import Gate
from fabric.gate.events import (
    AnyEvent,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    NodeUp,
    Pool,
    Submit,
)
from fabric.gate.instructions import Accepted, Decision, Lease, StartLease, StopLease
from fabric.gate.lifecycle import JobState, StopReason
from fabric.journal.postgres import PostgresJournal
from fabric.journal.replay import Replay, read_entry
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.store import Entry
from fabric.simulation.money import Prices, Sums
from fabric.simulation.workload import TIERS, Cluster, Nodes, Work
from fabric.simulation.world import Task, Usage
from fabric.units import AccountId, JobId

SQLITE = b"SQLite format 3\x00"
Tell = Callable[[str, float], None]


class Parting(msgspec.Struct, frozen=True, kw_only=True):
    """Where a journal and this version decide otherwise."""

    seq: int
    written: str
    decided: str


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What deciding a journal again has shown."""

    entries: int
    """How many were decided the same."""
    rules: int
    parting: Parting | None = None
    """None = all of them."""


Source = Path | str
"""The file of a journal, or the address of a PostgreSQL database that has one."""


def in_database(source: Source) -> bool:
    """Whether it is the address of a database: `postgresql://…`."""
    return isinstance(source, str) and source.startswith(("postgresql://", "postgres://"))


def is_journal(source: Source) -> bool:
    """Whether it is a database, or a file of SQLite."""
    if in_database(source):
        return True
    path = Path(source)
    with path.open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE


def replay(path: Source, *, tell: Tell | None = None) -> Replayed:
    """Decide the journal again from its beginning.

    Raises:
        InvalidRequest: there is no journal, or its beginning is not kept any more.
        JournalCorrupt: an entry is not what was committed.
    """
    gate = Gate.restore(None)
    feed = Replay(gate)
    count = 0
    try:
        for entry, part in entries_of(path):
            feed.feed(entry)
            count += 1
            if tell is not None:
                tell("deciding again", part)
        feed.finish()
    except JournalCorrupt as error:
        if error.code != "replay_differs":
            raise
        facts = error.facts
        parting = Parting(seq=int(facts["seq"] or 0), written=str(facts["written"]), decided=str(facts["decided"]))
        return Replayed(entries=count, rules=gate.rules, parting=parting)
    return Replayed(entries=count, rules=gate.rules)


def entries_of(path: Source) -> Iterator[tuple[Entry, float]]:
    """The entries of a journal, each with which part of all has been read by then."""
    if not in_database(path) and not (Path(path).is_file() and is_journal(path)):
        raise InvalidRequest(
            f"{path} is no journal: name the SQLite file of a fabric, or postgresql://… of its database",
            code="no_journal",
        )
    loop = asyncio.new_event_loop()
    journal = PostgresJournal(str(path)) if in_database(path) else SqliteJournal(Path(path))
    try:
        if isinstance(journal, PostgresJournal) and not loop.run_until_complete(journal.exists()):
            raise InvalidRequest("there is no journal of a fabric in this database", code="no_journal")
        size = loop.run_until_complete(journal.head()).size
        first = loop.run_until_complete(journal.stored_from(0))
        if first != 0:
            raise InvalidRequest(
                f"{path} has no entries before {first if first is not None else size}: only a whole journal can be decided"
                " again",
                code="journal_begins_later",
            )
        reading: AsyncIterator[Entry] = journal.read(0, size)
        while True:
            try:
                entry = loop.run_until_complete(anext(reading))
            except StopAsyncIteration:
                return
            yield entry, (entry.seq + 1) / size
    finally:
        loop.run_until_complete(journal.close())
        loop.close()


@dataclass(slots=True)
class Seen:
    """One job of a journal, while it is read."""

    task: Task
    tier: int
    computed_us: int = 0
    """What it has computed and kept."""
    lease: Lease | None = None
    started_us: int | None = None
    saved_us: int | None = None
    is_parked: bool = False


class Past:
    """What happened, in the form in which a simulated world is measured."""

    def __init__(self) -> None:
        self.name = "as it was"
        self.policy = self
        self.tasks: list[Task] = []
        self.nodes: dict[str, Nodes] = {}
        self.busy = Usage()
        self.began_us = self.now_us = self.last_arrival_us = 0
        self.busy_at_last_arrival_us = 0
        self.events = 0
        self.sums = Sums()
        self.prices: Prices | None = None
        self.left_out = 0
        """Jobs that never computed: for how long they would have, nobody knows."""

    @property
    def cluster(self) -> Cluster:
        """All nodes that ever joined, as they were last."""
        return Cluster(nodes=tuple(self.nodes.values()))

    @property
    def works(self) -> list[Work]:
        """Its jobs as a workload."""
        return [task.work for task in self.tasks]


class Reader:
    """Follows a journal and the gate that decides it again."""

    def __init__(self) -> None:
        self.gate = Gate.restore(None)
        self.past = Past()
        self._seen: dict[str, Seen] = {}
        self._lease_of: dict[str, Seen] = {}

    def take(self, entry: Entry) -> None:
        """One entry more."""
        recorded = read_entry(entry)
        self.past.sums.take(recorded.transfers, recorded.records, self.gate.state)
        if recorded.event is None:
            return
        now_us = recorded.at_us
        if not self.past.events:
            self.past.began_us = now_us
        self.past.events += 1
        self.past.now_us = now_us
        self._before(recorded.event, now_us)
        decision = self.gate.handle(recorded.event, now_us)
        self._after(recorded.event, decision, now_us)

    def _before(self, event: AnyEvent, now_us: int) -> None:
        match event:
            case LeaseStarted() if seen := self._lease_of.get(event.lease_id):
                seen.started_us = now_us
            case LeaseSaved() if seen := self._lease_of.get(event.lease_id):
                seen.saved_us = now_us
            case LeaseFinished() if seen := self._lease_of.get(event.lease_id):
                self._end(seen, now_us, kept=event.outcome not in (LeaseOutcome.LOST, LeaseOutcome.INTERRUPTED))
            case LeaseRemoved() if seen := self._lease_of.get(event.lease_id):
                self._end(seen, now_us, kept=False)
            case _:
                pass

    def _after(self, event: AnyEvent, decision: Decision, now_us: int) -> None:
        if isinstance(event, Submit) and isinstance(decision.outcome, Accepted):
            self._submitted(event, now_us)
        elif isinstance(event, NodeUp):
            pool = "reserved" if event.pool is Pool.RESERVED else "spot"
            self.past.nodes[event.node_id] = Nodes(
                count=1, devices=event.devices, accelerator=event.accelerator, pool=pool
            )
        if isinstance(event, LeaseRemoved) and (seen := self._lease_of.pop(event.lease_id, None)):
            if seen.lease is not None:
                self.past.busy.change(-seen.lease.devices, now_us)
            seen.lease, seen.task.waits_since_us = None, now_us
        self._park(now_us)
        for instruction in decision.instructions:
            if isinstance(instruction, StartLease):
                self._started(instruction.lease, now_us)
            elif isinstance(instruction, StopLease) and instruction.reason == StopReason.EVICTED:
                self._lease_of[instruction.lease_id].task.evictions += 1

    def _submitted(self, event: Submit, now_us: int) -> None:
        spec = event.spec
        rank = self._tier(event.account_id)
        work = Work(
            work_id=event.job_id,
            submit_us=now_us,
            duration_us=1,
            devices=spec.devices,
            user=event.account_id,
            tier=rank,
            service=str(spec.service),
            per_node=spec.devices_per_node,
            types=spec.accelerators,
        )
        task = Task(work=work, at=len(self._seen), left_us=1, waits_since_us=now_us)
        self._seen[event.job_id] = Seen(task=task, tier=rank)

    def _park(self, now_us: int) -> None:
        """Who is parked doesn't wait, and does from when it is to go on."""
        for job_id in self.gate.take_changed():
            seen, job = self._seen.get(job_id), self.gate.state.jobs.get(job_id)
            if seen is None or job is None or seen.is_parked is (job.state is JobState.PARKED):
                continue
            seen.is_parked = not seen.is_parked
            if seen.is_parked and seen.lease is None:
                seen.task.waited_us += now_us - seen.task.waits_since_us
            seen.task.waits_since_us = now_us

    def _tier(self, account_id: AccountId) -> int:
        state = self.gate.state
        plan = state.catalogue.plan(state.accounts[account_id].plan) if state.catalogue is not None else None
        return min(plan.tier_rank, len(TIERS) - 1) if plan is not None else len(TIERS) - 1

    def _started(self, lease: Lease, now_us: int) -> None:
        seen = self._seen.get(lease.job_id)
        if seen is None:
            return
        task = seen.task
        task.waited_us += max(now_us - task.waits_since_us, 0)
        task.waits_since_us = now_us
        if task.first_us is None:
            task.first_us = now_us
        else:
            task.restores += 1
        seen.lease, seen.started_us, seen.saved_us = lease, None, None
        self._lease_of[lease.lease_id] = seen
        self.past.busy.change(lease.devices, now_us)

    def _end(self, seen: Seen, now_us: int, *, kept: bool) -> None:
        """An attempt is over: what it had computed is kept, or what it had saved of it."""
        if seen.started_us is None or seen.lease is None:
            return
        until_us = now_us if kept else max(seen.saved_us or seen.started_us, seen.started_us)
        seen.computed_us += until_us - seen.started_us
        seen.task.lost_us += (now_us - until_us) * seen.lease.devices
        seen.started_us = None

    def finish(self) -> Past:
        """The journal has ended."""
        past, state = self.past, self.gate.state
        for seen in self._seen.values():
            self._end(seen, past.now_us, kept=True)
            task, job = seen.task, state.jobs.get(JobId(seen.task.work.work_id))
            ended_us = job.ended_at_us if job is not None else None
            if seen.computed_us <= 0:
                past.left_out += 1
                continue
            if job is not None and job.state is JobState.QUEUED:
                task.waited_us += past.now_us - task.waits_since_us
            task.work = msgspec.structs.replace(task.work, duration_us=seen.computed_us)
            task.left_us = 0
            task.ended_us = ended_us
            past.tasks.append(task)
        past.tasks.sort(key=lambda task: task.work.submit_us)
        if past.tasks:
            past.began_us, past.last_arrival_us = past.tasks[0].work.submit_us, past.now_us
        past.busy.change(0, past.now_us)
        past.busy_at_last_arrival_us = past.busy.total_us
        past.prices = Prices.of(state)
        return past


def read_journal(path: Source, *, tell: Tell | None = None) -> Past:
    """What happened.

    Raises:
        InvalidRequest: there is no journal, it isn't whole, or no job of it has computed.
    """
    reader = Reader()
    for entry, part in entries_of(path):
        reader.take(entry)
        if tell is not None:
            tell("reading the journal", part)
    past = reader.finish()
    if not past.tasks:
        raise InvalidRequest(f"no job of {path} has computed: there is nothing to simulate", code="trace_empty")
    return past
