"""EASY backfill: the first in line gets a reservation, and whoever doesn't delay it passes. Best class first, then arrival.

Needs to know how long jobs run: exactly, or as well as people guess, which is always more than it takes.
"""

import random
from typing import Final

from fabric.simulation.floor import Group
from fabric.simulation.peers.lanes import Key, Lane, Peer
from fabric.simulation.peers.preempting import rank
from fabric.simulation.peers.room import Room
from fabric.simulation.world import Task, World

DEPTH: Final = 100
"""How many jobs of a lane are tried behind its first, as Slurm's `bf_max_job_test` bounds it."""
GUESS_MOST: Final = 5.0
"""People ask for up to so many times what their jobs need (Mu'alem and Feitelson's uniform model)."""


class Easy(Peer):
    """With exact estimates."""

    name = "easy"

    def key(self, task: Task) -> Key:
        return (rank(task), task.work.submit_us)

    def estimate_us(self, task: Task) -> int:
        """How long it is thought to run from its start."""
        return task.left_us

    def ends_us(self, task: Task) -> int:
        """When one that runs is thought to end."""
        assert task.run is not None
        return max(task.run.started_us + self.estimate_us(task), self.world.now_us + 1)

    def place(self) -> None:
        for lane, task in self.in_order():
            if not self.start_if_room(lane, task):
                self._backfill(lane, task)
                return

    def _backfill(self, blocked: Lane, first: Task) -> None:
        """Start whoever ends before the first can start, or leaves it its nodes."""
        shadow_us, group, reserved = self._reserve(blocked, first)
        for lane in sorted(self.lanes.values(), key=lambda lane: lane.heap[0][:2] if lane.heap else ((1 << 62,), 0)):
            if not any(lane.shape[0] <= each.free for each in lane.groups):
                continue
            waiting = {task.at: task for _, _, task in lane.heap[:DEPTH] if task.work.work_id in self.waiting}
            waiting.pop(first.at, None)
            for task in sorted(waiting.values(), key=lambda task: (self.key(task), task.at)):
                ends = self.world.now_us + self.estimate_us(task) <= shadow_us
                if not self._start_outside(lane, task, group, 0 if ends else reserved):
                    if ends:
                        break
                    continue

    def _start_outside(self, lane: Lane, task: Task, group: Group | None, avoid: int) -> bool:
        for each in lane.groups:
            shares = each.find(task.work.devices, task.work.per_node, avoid=avoid if each is group else 0)
            if shares is not None:
                self.take_out(task)
                self.world.start(task, shares)
                return True
        return False

    def _reserve(self, lane: Lane, first: Task) -> tuple[int, Group | None, int]:
        """When the first can start, in which group, and on which of its nodes."""
        best: tuple[int, Group | None, int] = (1 << 62, None, 0)
        ends = sorted(self.world.running.values(), key=lambda task: (self.ends_us(task), task.at))
        for group in lane.groups:
            room = Room(self.world.floor, group)
            for task in ends:
                assert task.run is not None
                room.add(task.run.shares)
                if room.fits(first):
                    if self.ends_us(task) < best[0]:
                        best = (self.ends_us(task), group, room.tightest(first))
                    break
        return best


class NoisyEasy(Easy):
    """With estimates as people make them: what it takes, times something from 1 to 5."""

    name = "easy-noisy"

    def begin(self, world: World) -> None:
        super().begin(world)
        rng = random.Random(1)
        self.guesses = [rng.uniform(1.0, GUESS_MOST) for _ in world.tasks]

    def estimate_us(self, task: Task) -> int:
        return int(task.left_us * self.guesses[task.at])
