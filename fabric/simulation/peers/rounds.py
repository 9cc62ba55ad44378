"""Schedulers that choose anew every round who runs, by a score of all that is there: they differ in the score.

Who runs and is chosen again stays where it is; who isn't leaves at the round; who is chosen and finds no room on its nodes
waits for the next round.
"""

from typing import Final

from fabric.simulation.peers.lanes import Key, Peer
from fabric.simulation.world import Task, World
from fabric.units import MICROS_PER_S

ROUND_US: Final = 60 * MICROS_PER_S


class Rounds(Peer):
    """Every round, whoever has the least score, as many as there are devices for."""

    round_us = ROUND_US

    def begin(self, world: World) -> None:
        super().begin(world)
        self.attained_us: dict[int, int] = {}
        """Device-time that each job has had, by its place in the trace, up to the last round."""
        self.last_us = world.now_us

    def score(self, task: Task) -> Key:
        """The least first."""
        raise NotImplementedError

    def due_us(self) -> int | None:
        if not self.waiting and not self.is_changed:
            return None
        return (self.world.now_us // self.round_us + 1) * self.round_us

    def decide(self) -> None:
        if self.world.now_us % self.round_us == 0:
            self.is_changed = False
            self.place()

    def had_us(self, task: Task) -> int:
        """Device-time that it has had."""
        run = task.run
        now_us = self.world.now_us - run.started_us if run is not None else 0
        return self.attained_us.get(task.at, 0) + now_us * task.work.devices

    def place(self) -> None:
        world = self.world
        if not self.waiting:
            return
        everybody = [*world.running.values(), *self.waiting.values()]
        everybody.sort(key=lambda task: (*self.score(task), task.work.submit_us, task.at))
        free = sum(group.total for group in world.floor.groups.values())
        chosen: list[Task] = []
        for task in everybody:
            if task.work.devices <= free:
                free -= task.work.devices
                chosen.append(task)
        stays = {task.at for task in chosen}
        for task in list(world.running.values()):
            if task.at not in stays:
                self._send_away(task)
        for task in chosen:
            if task.run is None and (shares := world.floor.find(task.work)) is not None:
                self.take_out(task)
                world.start(task, shares)

    def _send_away(self, task: Task) -> None:
        self.attained_us[task.at] = self.had_us(task)
        self.world.evict(task, announced=True)
        if task.run is None:
            self.submitted(task)
