"""What peers have in common: jobs that wait, in lanes of those that need the same, and who of them is next.

Where one job of a lane has no room none of it has, so a queue of thousands costs as much as it has shapes.
"""

import heapq
from collections.abc import Iterator

from fabric.simulation.floor import Group
from fabric.simulation.world import Task, World

Key = tuple[int, ...]
"""By what jobs are ordered: the least first."""
Shape = tuple[int, int | None, tuple[str, ...], bool, str]
"""Devices, devices a node, types, whether it is inference, and whatever else a peer keeps apart."""


class Lane:
    """Jobs that need the same, by key. Taken out lazily."""

    __slots__ = ("groups", "heap", "shape")

    def __init__(self, shape: Shape, groups: list[Group]) -> None:
        self.shape, self.groups = shape, groups
        self.heap: list[tuple[Key, int, Task]] = []


class Peer:
    """A policy that keeps who waits; a scheduler overrides what it does otherwise."""

    name = ""
    hears_saves = False

    def begin(self, world: World) -> None:
        self.world = world
        self.lanes: dict[Shape, Lane] = {}
        self.waiting: dict[str, Task] = {}
        self.is_changed = False
        """Whether anything has happened since it decided last."""

    def key(self, task: Task) -> Key:
        """Its place in line; the order of arrival settles equals."""
        return (task.work.submit_us,)

    def apart(self, task: Task) -> str:
        """What besides its shape keeps it in another lane, because lanes' places in line change."""
        return ""

    def place_of(self, lane: Lane, task: Task) -> Key:
        """The place in line of a lane's first at this moment."""
        return lane.heap[0][0]

    def submitted(self, task: Task) -> None:
        work = task.work
        if not any(work.devices <= group.total for group in self.world.floor.open_to(work)):
            self.world.refuse(task, "it is larger than any pool that it may be in")
            return
        shape = (work.devices, work.per_node, work.types, work.is_reserved, self.apart(task))
        lane = self.lanes.get(shape)
        if lane is None:
            lane = self.lanes[shape] = Lane(shape, self.world.floor.open_to(work))
        heapq.heappush(lane.heap, (self.key(task), task.at, task))
        self.waiting[work.work_id] = task
        self.is_changed = True

    def ended(self, task: Task) -> None:
        self.is_changed = True

    def left(self, task: Task) -> None:
        self.submitted(task)

    def saved(self, task: Task) -> None:
        """Nothing of it: a peer asks."""

    def node_down(self, node_id: str, tasks: tuple[Task, ...]) -> None:
        for task in tasks:
            self.submitted(task)

    def node_up(self, node_id: str) -> None:
        self.is_changed = True

    def node_leaving(self, node_id: str, notice_us: int) -> None:
        for work_id in tuple(self.world.floor.on[node_id]):
            task = self.world.by_id[work_id]
            if task.run is not None and task.run.leaves_us is None:
                self.world.evict(task, grace_us=notice_us)
                if task.run is None:
                    self.left(task)

    def due_us(self) -> int | None:
        return None

    def decide(self) -> None:
        if self.is_changed:
            self.is_changed = False
            self.place()

    def place(self) -> None:
        raise NotImplementedError

    # -- what they are made of -----------------------------------------------------------------------------------------

    def start_if_room(self, lane: Lane, task: Task) -> bool:
        """Start the first of the lane, if there is room."""
        shares = self.world.floor.find(task.work, lane.groups)
        if shares is None:
            return False
        self.take_out(task)
        self.world.start(task, shares)
        return True

    def take_out(self, task: Task) -> None:
        """It waits no longer."""
        del self.waiting[task.work.work_id]

    def head(self, lane: Lane) -> Task | None:
        """Who is first in the lane."""
        heap = lane.heap
        while heap and heap[0][2].work.work_id not in self.waiting:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def in_order(self) -> Iterator[tuple[Lane, Task]]:
        """The first of each lane, by key, again and again: a lane whose first is still there when it was handed out is done."""
        firsts = ((lane, self.head(lane)) for lane in self.lanes.values())
        heads = [(self.place_of(lane, task), task.at, lane, task) for lane, task in firsts if task is not None]
        heapq.heapify(heads)
        while heads:
            _, _, lane, task = heapq.heappop(heads)
            yield lane, task
            if task.work.work_id not in self.waiting and (after := self.head(lane)) is not None:
                heapq.heappush(heads, (self.place_of(lane, after), after.at, lane, after))
