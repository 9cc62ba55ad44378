"""A cluster on a virtual clock: moves time, lets jobs run, save, be restored, fail and end, and asks a policy who runs where.

One heap of what happens next. What happens at one moment happens in the order: ends and nodes, then saves, then arrivals;
then the policy decides once. Everything is an integer and every draw is from one seed, so the same input gives the same run.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from fabric.simulation.floor import Floor, Shares
from fabric.simulation.workload import Behaviour, Cluster, Work
from fabric.units import PPM

_IN_VAIN: Final = 100_000
"""How often a policy is asked, at times of its own, when nothing runs and nobody comes: it may count days before it acts."""


@dataclass(slots=True, eq=False)
class Run:
    """One attempt of a job."""

    shares: Shares
    accelerator: str
    started_us: int
    computes_us: int
    """When it has been restored and goes on."""
    speed_ppm: int
    ends_us: int
    """When it is done, if nothing happens to it."""
    checkpoint_us: int
    write_us: int
    leaves_us: int | None = None
    """When it goes, as it was asked to."""
    keeps: bool = False
    """Whether what it has done until then is saved."""

    def saved_us(self, now_us: int) -> int:
        """Up to when what it has computed is durable by now; when it began, if nothing of it is."""
        count = max(now_us - self.write_us - self.computes_us, 0) // self.checkpoint_us
        return self.computes_us + count * self.checkpoint_us


@dataclass(slots=True, eq=False)
class Task:
    """One job, and all that is reported of it."""

    work: Work
    at: int
    """Its place in the trace."""
    left_us: int
    """What is left to compute on the reference type, after what was saved."""
    waits_since_us: int
    run: Run | None = None
    waited_us: int = 0
    """In the queue, all times together."""
    first_us: int | None = None
    ended_us: int | None = None
    refused: str = ""
    evictions: int = 0
    failures: int = 0
    restores: int = 0
    restored_us: int = 0
    """Device-time in which it was restored."""
    lost_us: int = 0
    """Device-time that had computed what nobody saved."""

    def unsaved_us(self, now_us: int) -> int:
        """How long it has computed since its last save, or its start."""
        run = self.run
        if run is None:
            return 0
        return max(now_us - run.saved_us(now_us), 0)


class Policy(Protocol):
    """Who runs where. Told of what happens, asked once a moment; acts by `World.start` and `World.evict`."""

    name: str
    hears_saves: bool
    """Whether it is told of each save; else it is not, and may ask."""

    def begin(self, world: "World") -> None: ...
    def submitted(self, task: Task) -> None: ...
    def ended(self, task: Task) -> None:
        """It is done, and off its devices."""

    def left(self, task: Task) -> None:
        """It is off its devices, and not done: it waits again."""

    def saved(self, task: Task) -> None: ...
    def node_down(self, node_id: str, tasks: tuple[Task, ...]) -> None:
        """These were on it: they are off it, and wait again."""

    def node_up(self, node_id: str) -> None: ...
    def node_leaving(self, node_id: str, notice_us: int) -> None:
        """It takes nobody any more, and goes then: who is on it should."""

    def decide(self) -> None: ...
    def due_us(self) -> int | None:
        """When it wants to be asked though nothing happens."""


class Kind(IntEnum):
    """What happens, in the order in which it does at one moment."""

    NODE = 0
    END = 1
    SAVE = 2


@dataclass(slots=True)
class Usage:
    """Device-time in use, up to some moment."""

    devices: int = 0
    since_us: int = 0
    total_us: int = 0

    def change(self, by: int, now_us: int) -> None:
        self.total_us += self.devices * (now_us - self.since_us)
        self.devices += by
        self.since_us = now_us


class World:
    """The cluster and its jobs. `run` plays everything."""

    def __init__(
        self, works: list[Work], cluster: Cluster, policy: Policy, *, behaviour: Behaviour | None = None, seed: int = 1
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.cluster, self.policy = cluster, policy
        self.floor = Floor(cluster)
        self.tasks = [
            Task(work=work, at=at, left_us=max(work.duration_us, 1), waits_since_us=work.submit_us)
            for at, work in enumerate(sorted(works, key=lambda work: work.submit_us))
        ]
        self.by_id = {task.work.work_id: task for task in self.tasks}
        assert len(self.by_id) == len(self.tasks), "two jobs of the trace have one id"
        self.running: dict[str, Task] = {}
        self.now_us = self.tasks[0].work.submit_us if self.tasks else 0
        self.began_us = self.now_us
        self.last_arrival_us = self.tasks[-1].work.submit_us if self.tasks else 0
        self.busy = Usage(since_us=self.now_us)
        self.used_us: dict[str, int] = {}
        """Device-time by type, of attempts that are over."""
        self.busy_at_last_arrival_us = 0
        self.left = len(self.tasks)
        self.events = 0
        self._heap: list[tuple[int, Kind, int, Task | str, Run | None]] = []
        self._seq = self._arrived = self._asked_in_vain = 0
        self._random = random.Random(seed)
        self._leaving: set[str] = set()
        """Nodes that have said that they go, and are there still."""
        self._schedule_offers()
        policy.begin(self)
        self._schedule_failures()

    def run(self, *, until_us: int | None = None, tell: Callable[["World"], None] | None = None) -> None:
        """Play until every job has ended, nothing more can happen, or `until_us`. `tell` hears of each moment that was played."""
        while self.left:
            now_us = self._next_us()
            if now_us is None or (until_us is not None and now_us > until_us):
                break
            if self.now_us <= self.last_arrival_us < now_us:
                self._note_last_arrival()
            self.now_us = now_us
            self._play(now_us)
            if tell is not None:
                tell(self)
        if self.now_us <= self.last_arrival_us:
            self._note_last_arrival()
        self.busy.change(0, self.now_us)
        for task in self.tasks[: self._arrived]:
            if task.ended_us is None and task.run is None:
                task.waited_us += self.now_us - task.waits_since_us

    def _next_us(self) -> int | None:
        """The next moment at which something happens; None if nothing does that could end a job."""
        heap, tasks = self._heap, self.tasks
        due_us = self.policy.due_us()
        if self._arrived < len(tasks):
            arrival_us = tasks[self._arrived].work.submit_us
            next_us = min(arrival_us, heap[0][0]) if heap else arrival_us
        elif heap and (self.running or self._can_change):
            next_us = heap[0][0]
        elif due_us is not None and self._asked_in_vain < _IN_VAIN:
            self._asked_in_vain += 1
            return max(due_us, self.now_us + 1)
        else:
            return None
        self._asked_in_vain = 0
        return next_us if due_us is None else min(max(due_us, self.now_us + 1), next_us)

    def _play(self, now_us: int) -> None:
        """All that happens at one moment."""
        heap, tasks = self._heap, self.tasks
        while heap and heap[0][0] == now_us:
            _, kind, _, what, attempt = heapq.heappop(heap)
            self.events += 1
            self._happens(kind, what, attempt)
        while self._arrived < len(tasks) and tasks[self._arrived].work.submit_us == now_us:
            self.events += 1
            self._arrived += 1
            self.policy.submitted(tasks[self._arrived - 1])
        self.policy.decide()

    # -- what a policy may do ------------------------------------------------------------------------------------------

    def start(self, task: Task, shares: Shares) -> None:
        """The job runs there from now on."""
        work = task.work
        assert task.run is None, f"{work.work_id} runs already"
        assert task.ended_us is None, f"{work.work_id} has ended"
        assert sum(devices for _, devices in shares) == work.devices, (
            f"{work.work_id} is to have another number of devices"
        )
        self.floor.take(work.work_id, shares)
        kind = self.floor.group_of[shares[0][0]].accelerator
        speed_ppm = dict(work.speeds).get(kind) or self.behaviour.speed_ppm(kind)
        restore_us = self.behaviour.restores_us(len(shares)) if task.left_us < work.duration_us else 0
        computes_us = self.now_us + restore_us
        ends_us = computes_us + -(-task.left_us * PPM // speed_ppm)
        how = self.behaviour
        run = Run(shares, kind, self.now_us, computes_us, speed_ppm, ends_us, how.checkpoint_us, how.write_us)
        task.run = run
        task.waited_us += self.now_us - task.waits_since_us
        if task.first_us is None:
            task.first_us = self.now_us
        else:
            task.restores += 1
        self.running[work.work_id] = task
        self.busy.change(work.devices, self.now_us)
        self._push(ends_us, Kind.END, task, run)
        if self.policy.hears_saves:
            self._push_save(task, run)

    def evict(self, task: Task, *, grace_us: int | None = None, announced: bool = False) -> int:
        """Ask the job to leave. When it will have: at once, if it has not the time to save. (Then it has, when this returns.)

        `announced`: it knew before, as leases of a round do, and has begun to save in time.
        """
        run = task.run
        assert run is not None, f"{task.work.work_id} doesn't run"
        if run.leaves_us is not None:
            return run.leaves_us
        grace_us = self.behaviour.grace_us if grace_us is None else grace_us
        task.evictions += 1
        if announced and self.now_us - self.behaviour.write_us > run.computes_us:
            self.vacate(task, keeps=True)
            return self.now_us
        if 0 < grace_us >= self.behaviour.write_us and self.now_us > run.computes_us:
            if not self.behaviour.write_us:
                self.vacate(task, keeps=True)
                return self.now_us
            run.leaves_us, run.keeps = self.now_us + self.behaviour.write_us, True
            if run.leaves_us < run.ends_us:
                self._push(run.leaves_us, Kind.END, task, run)
            return min(run.leaves_us, run.ends_us)
        self.vacate(task)
        return self.now_us

    def vacate(self, task: Task, *, keeps: bool = False) -> None:
        """The job is off its devices now, and waits again with what it has saved."""
        run = task.run
        assert run is not None
        now_us, devices = self.now_us, task.work.devices
        asked_us = now_us if not keeps else max(now_us - self.behaviour.write_us, run.computes_us)
        durable_us = asked_us if keeps else run.saved_us(now_us)
        task.left_us -= max(durable_us - run.computes_us, 0) * run.speed_ppm // PPM
        task.lost_us += max(now_us - max(durable_us, run.computes_us), 0) * devices
        task.restored_us += (min(run.computes_us, now_us) - run.started_us) * devices
        self._off(task, run)
        task.waits_since_us = now_us

    def refuse(self, task: Task, why: str) -> None:
        """The policy never runs it."""
        task.refused, task.ended_us = why, self.now_us
        self.left -= 1

    # -- what happens --------------------------------------------------------------------------------------------------

    @property
    def _can_change(self) -> bool:
        """Whether anything but a node's failure is still to come."""
        return any(kind is not Kind.NODE for _, kind, *_ in self._heap) or bool(self.floor.down)

    def _happens(self, kind: Kind, what: Task | str, run: Run | None) -> None:
        if kind is Kind.NODE:
            assert isinstance(what, str)
            if what.startswith("="):
                self._offer(int(what[1:]))
            elif what.startswith("-"):
                self._leaving.discard(what[1:])
                self._lose(what[1:], tuple(self.floor.on[what[1:]]))
            else:
                self._turn(what)
            return
        assert isinstance(what, Task)
        task = what
        if task.run is not run or run is None:
            return
        if kind is Kind.SAVE:
            self.policy.saved(task)
            if task.run is run:
                self._push_save(task, run)
        elif self.now_us >= run.ends_us:
            task.restored_us += (run.computes_us - run.started_us) * task.work.devices
            task.left_us, task.ended_us = 0, self.now_us
            self._off(task, run)
            self.left -= 1
            self.policy.ended(task)
        else:
            self.vacate(task, keeps=run.keeps)
            self.policy.left(task)

    def _off(self, task: Task, run: Run) -> None:
        self.floor.give(task.work.work_id, run.shares)
        del self.running[task.work.work_id]
        task.run = None
        used_us = task.work.devices * (self.now_us - run.started_us)
        self.used_us[run.accelerator] = self.used_us.get(run.accelerator, 0) + used_us
        self.busy.change(-task.work.devices, self.now_us)

    def _push(self, at_us: int, kind: Kind, what: Task | str, run: Run | None) -> None:
        self._seq += 1
        heapq.heappush(self._heap, (at_us, kind, self._seq, what, run))

    def _push_save(self, task: Task, run: Run) -> None:
        """The next moment at which a save is durable, if there is one before the end."""
        write_us, every_us = self.behaviour.write_us, run.checkpoint_us
        done = max(self.now_us - write_us - run.computes_us, 0) // every_us
        at_us = run.computes_us + (done + 1) * every_us + write_us
        if at_us < run.ends_us:
            self._push(at_us, Kind.SAVE, task, run)

    def _note_last_arrival(self) -> None:
        busy = self.busy
        self.busy_at_last_arrival_us = busy.total_us + busy.devices * (self.last_arrival_us - busy.since_us)

    # -- nodes that fail -----------------------------------------------------------------------------------------------

    def _schedule_failures(self) -> None:
        if self.behaviour.node_mtbf_us is not None:
            for node_id in self.floor.devices:
                self._push(self.now_us + self._draw_us(), Kind.NODE, node_id, None)

    def _draw_us(self) -> int:
        assert self.behaviour.node_mtbf_us is not None
        return 1 + int(self._random.expovariate(1 / self.behaviour.node_mtbf_us))

    def _turn(self, node_id: str) -> None:
        """The node fails, or is repaired."""
        if node_id in self.floor.down:
            self.floor.repair(node_id)
            self._push(self.now_us + self._draw_us(), Kind.NODE, node_id, None)
            self.policy.node_up(node_id)
            return
        self._push(self.now_us + self.behaviour.repair_us, Kind.NODE, node_id, None)
        self._lose(node_id, self.floor.fail(node_id))

    def _lose(self, node_id: str, work_ids: tuple[str, ...]) -> None:
        """The node is gone, and with it what these have not saved."""
        tasks = tuple(self.by_id[work_id] for work_id in work_ids)
        for task in tasks:
            task.failures += 1
            self.vacate(task)
        self.policy.node_down(node_id, tasks)

    # -- spot nodes that come and go -----------------------------------------------------------------------------------

    def _schedule_offers(self) -> None:
        offers = self.behaviour.offers
        groups = self.floor.group_of
        self._spot = [node_id for node_id in self.floor.devices if groups[node_id].pool == "spot"] if offers else []
        for node_id in self._spot[offers[0][1] if offers else 0 :]:
            self.floor.fail(node_id)
        for at_us, nodes in offers[1:]:
            self._push(self.began_us + at_us, Kind.NODE, f"={nodes}", None)

    def _offer(self, nodes: int) -> None:
        """So many spot nodes from now on: the last ones go, the first ones come."""
        down, leaving = self.floor.down, self._leaving
        here = [node_id for node_id in self._spot if node_id not in down]
        for node_id in here[nodes:]:
            self.floor.fail(node_id)
            leaving.add(node_id)
            self._push(self.now_us + self.behaviour.notice_us, Kind.NODE, f"-{node_id}", None)
            self.policy.node_leaving(node_id, self.behaviour.notice_us)
        gone = [node_id for node_id in self._spot if node_id in down and node_id not in leaving]
        for node_id in gone[: max(nodes - len(here), 0)]:
            self.floor.repair(node_id)
            self.policy.node_up(node_id)
