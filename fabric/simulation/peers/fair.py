"""Fair sharing among users, as Kueue does it with a queue for each in one cohort, and as KAI does it.

Everybody's nominal share of the devices is the same; what is idle is lent. Who has least of what isn't its own goes first,
and may evict whoever has more than it would have then. Inference on reserved nodes goes before everything.
"""

from typing import Final

from fabric.simulation.floor import Group
from fabric.simulation.peers.lanes import Key, Lane
from fabric.simulation.peers.preempting import Preempting
from fabric.simulation.workload import HOUR_US
from fabric.simulation.world import Task, World
from fabric.units import PPM

TRIES: Final = 16
"""How many blocked jobs look for somebody to evict in one pass."""


class KueueFair(Preempting):
    """Kueue's fair sharing with the rule `LessThanInitialShare`, which can't go round in circles."""

    name = "kueue-fair"

    def begin(self, world: World) -> None:
        super().begin(world)
        self.devices: dict[str, int] = {}
        """In use, by user."""
        self.total = world.cluster.devices
        self.users = max(len({task.work.user for task in world.tasks if not task.work.is_reserved}), 1)

    def apart(self, task: Task) -> str:
        return task.work.user

    def key(self, task: Task) -> Key:
        return (task.work.tier, task.work.submit_us)

    def share_ppm(self, user: str, more: int = 0) -> int:
        """What the user has beyond its own, as a part of all devices."""
        own = self.total // self.users
        return max(self.devices.get(user, 0) + more - own, 0) * PPM // self.total

    def place_of(self, lane: Lane, task: Task) -> Key:
        work = task.work
        share = -1 if work.is_reserved else self.share_ppm(work.user, work.devices)
        return (share, *lane.heap[0][0])

    def may_evict(self, task: Task, victim: Task) -> bool:
        if victim.work.is_reserved:
            return False
        if task.work.is_reserved:
            return True
        if victim.work.user == task.work.user:
            return victim.work.tier > task.work.tier
        return self.share_ppm(task.work.user, task.work.devices) < self.share_ppm(victim.work.user)

    def cost(self, task: Task) -> tuple[float, ...]:
        assert task.run is not None
        return (-self.share_ppm(task.work.user), -task.work.tier, -task.run.started_us)

    def place(self) -> None:
        tries = TRIES
        blocked: set[tuple[object, ...]] = set()
        for lane, task in self.in_order():
            shape = lane.shape[:4]
            if shape not in blocked and self.start_if_room(lane, task):
                continue
            blocked.add(shape)
            if tries and self.could_evict(task):
                tries -= 1
                if self.make_room(lane, task) and self.start_if_room(lane, task):
                    blocked.clear()

    def could_evict(self, task: Task) -> bool:
        """Whether there is anybody at all that might go for it: looked at before looking for whom."""
        if task.work.is_reserved:
            return True
        most = max((self.share_ppm(user) for user in self.devices), default=0)
        return self.share_ppm(task.work.user, task.work.devices) < most

    def start_if_room(self, lane: Lane, task: Task) -> bool:
        started = super().start_if_room(lane, task)
        if started:
            self._count(task, task.work.devices)
        return started

    def ended(self, task: Task) -> None:
        self._count(task, -task.work.devices)
        super().ended(task)

    def left(self, task: Task) -> None:
        self._count(task, -task.work.devices)
        super().left(task)

    def node_down(self, node_id: str, tasks: tuple[Task, ...]) -> None:
        for task in tasks:
            self._count(task, -task.work.devices)
        super().node_down(node_id, tasks)

    def evict(self, victim: Task) -> None:
        self.world.evict(victim)
        if victim.run is None:
            self._count(victim, -victim.work.devices)
            self.submitted(victim)

    def _count(self, task: Task, change: int) -> None:
        if not task.work.is_reserved:
            self.devices[task.work.user] = self.devices.get(task.work.user, 0) + change


class KaiLike(KueueFair):
    """KAI: only who has less than its share may reclaim, only from who has more, and only what ran for a while."""

    name = "kai"
    run_us_min = HOUR_US // 6

    def may_evict(self, task: Task, victim: Task) -> bool:
        if not super().may_evict(task, victim):
            return False
        if task.work.is_reserved or victim.work.user == task.work.user:
            return True
        assert victim.run is not None
        rested = self.world.now_us - victim.run.started_us >= self.run_us_min
        return rested and self.share_ppm(task.work.user, task.work.devices) == 0

    def candidates(self, task: Task, group: Group) -> list[Task]:
        """Of each user only as much as it has beyond its share."""
        over = {user: devices - self.total // self.users for user, devices in self.devices.items()}
        found = []
        for victim in super().candidates(task, group):
            user = victim.work.user
            if task.work.is_reserved or user == task.work.user or over.get(user, 0) > 0:
                found.append(victim)
                over[user] = over.get(user, 0) - victim.work.devices
        return found
