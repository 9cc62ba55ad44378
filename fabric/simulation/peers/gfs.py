"""GFS: lends what reserved work is forecast not to need, and takes back where least device-time has been spent.

The forecast is the most that was needed at this hour of the days before, by a quantile; a factor makes the quota smaller where
more is evicted than promised, and larger where less is (Alibaba, ASPLOS'26). What a victim would lose is taken to be its
age: checkpoints are not looked at.
"""

from typing import Final

from fabric.simulation.peers.lanes import Lane
from fabric.simulation.peers.preempting import Preempting
from fabric.simulation.workload import HOUR_US
from fabric.simulation.world import Task, World

PROMISED: Final = 0.1
"""The part of lent jobs that may be evicted."""
STEP: Final = 0.05
FACTOR_MIN, FACTOR_MAX = 0.3, 1.2
HOURS: Final = 24
QUANTILE: Final = 0.9


class Gfs(Preempting):
    """See the module."""

    name = "gfs"

    def begin(self, world: World) -> None:
        super().begin(world)
        groups = world.floor.groups.values()
        self.reserved = sum(group.total for group in groups if group.pool == "reserved")
        self.needed = self.lent = 0
        self.on_loan: set[int] = set()
        """Jobs on reserved nodes that are none of inference, by their places in the trace."""
        self.most: list[list[int]] = [[] for _ in range(HOURS)]
        """By hour of the day, the most that reserved work needed, day by day."""
        self.hour = self.peak = 0
        self.factor = 1.0
        self.started = self.sent_away = 0

    def cost(self, task: Task) -> tuple[float, ...]:
        assert task.run is not None
        return (not self.is_borrower(task), (self.world.now_us - task.run.started_us) * task.work.devices)

    def decide(self) -> None:
        hour = self.world.now_us // HOUR_US
        if hour != self.hour:
            self._next_hour(hour)
        self.peak = max(self.peak, self.needed)
        super().decide()

    def quota(self) -> int:
        """How many reserved devices may be lent now."""
        ahead = [most for at in (self.hour, self.hour + 1) for most in self.most[at % HOURS]]
        forecast = sorted(ahead)[int(QUANTILE * (len(ahead) - 1))] if ahead else self.needed
        return int(self.factor * (self.reserved - max(forecast, self.needed)))

    def start_if_room(self, lane: Lane, task: Task) -> bool:
        work = task.work
        groups = lane.groups
        if not work.is_reserved and self.lent + work.devices > self.quota():
            groups = [group for group in groups if group.pool != "reserved"]
        shares = self.world.floor.find(work, groups)
        if shares is None:
            return False
        self.take_out(task)
        self.world.start(task, shares)
        self._count(task, work.devices)
        return True

    def ended(self, task: Task) -> None:
        if task.work.is_reserved:
            self.needed -= task.work.devices
        self._back(task)
        super().ended(task)

    def left(self, task: Task) -> None:
        self._back(task)
        super().left(task)

    def node_down(self, node_id: str, tasks: tuple[Task, ...]) -> None:
        for task in tasks:
            if task.work.is_reserved:
                self.needed -= task.work.devices
            self._back(task)
        super().node_down(node_id, tasks)

    def evict(self, victim: Task) -> None:
        self.sent_away += victim.at in self.on_loan
        self.world.evict(victim)
        if victim.run is None:
            self._back(victim)
            self.submitted(victim)

    def _back(self, task: Task) -> None:
        if task.at in self.on_loan:
            self.on_loan.discard(task.at)
            self.lent -= task.work.devices

    def _count(self, task: Task, devices: int) -> None:
        if task.work.is_reserved:
            self.needed += devices
        elif self.is_borrower(task):
            self.on_loan.add(task.at)
            self.lent += devices
            self.started += 1

    def _next_hour(self, hour: int) -> None:
        self.most[self.hour % HOURS].append(self.peak)
        self.hour, self.peak, self.is_changed = hour, self.needed, True
        rate = self.sent_away / max(self.started, 1)
        self.factor += STEP if rate <= PROMISED else -STEP
        self.factor = min(max(self.factor, FACTOR_MIN), FACTOR_MAX)
        self.started, self.sent_away = self.started // 2, self.sent_away // 2
