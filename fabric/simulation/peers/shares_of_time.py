"""Gavel's max-min fairness and Themis: everybody gets its part of the time, round by round.

Both know what they need not: Gavel how fast a job is on each type, Themis how long it takes. Jobs know when a round ends and
save before.
"""

from fabric.simulation.peers.lanes import Key
from fabric.simulation.peers.rounds import Rounds
from fabric.simulation.world import Task
from fabric.units import MICROS_PER_S, PPM


class Gavel(Rounds):
    """Whoever has had the least part of the time that it is here, counted by how fast it was: the least of all grows most."""

    name = "gavel"
    round_us = 360 * MICROS_PER_S

    def score(self, task: Task) -> Key:
        here_us = self.world.now_us - task.work.submit_us + self.round_us
        done_us = task.work.duration_us - task.left_us
        run = task.run
        if run is not None:
            done_us += max(self.world.now_us - run.computes_us, 0) * run.speed_ppm // PPM
        return (-1 if task.work.is_reserved else 0, done_us * PPM // here_us)


class Themis(Rounds):
    """Whoever is furthest behind what it would have with its part of the cluster for itself (finish-time fairness)."""

    name = "themis"
    round_us = 600 * MICROS_PER_S

    def place(self) -> None:
        self.here = max(len(self.waiting) + len(self.world.running), 1)
        super().place()

    def score(self, task: Task) -> Key:
        work, run = task.work, task.run
        left_us = task.left_us
        if run is not None:
            left_us -= max(self.world.now_us - run.computes_us, 0) * run.speed_ppm // PPM
        alone_us = work.duration_us * max(work.devices * self.here, self.world.cluster.devices)
        shared_us = (self.world.now_us - work.submit_us + left_us) * self.world.cluster.devices
        return (-1 if work.is_reserved else 0, -shared_us * PPM // max(alone_us, 1))
