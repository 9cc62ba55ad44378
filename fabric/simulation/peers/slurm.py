"""Slurm: multifactor priority (class, age, fair share, size) with EASY backfill on the limits that people give, no preemption."""

import math
from typing import Final

from fabric.simulation.peers.easy import NoisyEasy
from fabric.simulation.peers.lanes import Key, Lane
from fabric.simulation.workload import DAY_US
from fabric.simulation.world import Task, World

QOS: Final = 10_000
AGE: Final = 1_000
FAIRSHARE: Final = 2_000
SIZE: Final = 500
"""Weights of the factors, each of which is 0 to 1."""
AGE_US_MAX: Final = 7 * DAY_US
HALF_LIFE_US: Final = 7 * DAY_US


class Slurm(NoisyEasy):
    """See the module."""

    name = "slurm"

    def begin(self, world: World) -> None:
        super().begin(world)
        self.devices: dict[str, int] = {}
        self.used_us: dict[str, float] = {}
        self.used_at_us: dict[str, int] = {}
        self.users = max(len({task.work.user for task in world.tasks}), 1)
        self.total = world.cluster.devices

    def apart(self, task: Task) -> str:
        return task.work.user

    def key(self, task: Task) -> Key:
        return (task.work.tier, task.work.submit_us)

    def place_of(self, lane: Lane, task: Task) -> Key:
        return (-self.priority(task), task.work.submit_us)

    def priority(self, task: Task) -> int:
        """The sum of the factors by their weights, in thousandths."""
        work, now_us = task.work, self.world.now_us
        qos = 2.0 if work.is_reserved else 1 - work.tier / 2
        age = min((now_us - work.submit_us) / AGE_US_MAX, 1.0)
        fair_us = HALF_LIFE_US * self.total / self.users
        fair = math.exp2(-self._had_us(work.user) / fair_us)
        return round(1000 * (QOS * qos + AGE * age + FAIRSHARE * fair + SIZE * work.devices / self.total))

    def take_out(self, task: Task) -> None:
        super().take_out(task)
        self._change(task.work.user, task.work.devices)

    def ended(self, task: Task) -> None:
        self._change(task.work.user, -task.work.devices)
        super().ended(task)

    def node_down(self, node_id: str, tasks: tuple[Task, ...]) -> None:
        for task in tasks:
            self._change(task.work.user, -task.work.devices)
        super().node_down(node_id, tasks)

    def _change(self, user: str, by: int) -> None:
        self.used_us[user], self.used_at_us[user] = self._had_us(user), self.world.now_us
        self.devices[user] = self.devices.get(user, 0) + by

    def _had_us(self, user: str) -> float:
        past_us = self.world.now_us - self.used_at_us.get(user, self.world.now_us)
        return self.used_us.get(user, 0.0) * math.exp2(-past_us / HALF_LIFE_US) + self.devices.get(user, 0) * past_us
