"""Tiresias: two queues by the device-time that a job has had (2D-LAS), first come first served in each.

How long jobs run need not be known: most are short, and whoever turns out not to be goes behind those who may be.
"""

from typing import Final

from fabric.simulation.peers.lanes import Key
from fabric.simulation.peers.rounds import Rounds
from fabric.simulation.world import Task
from fabric.units import MICROS_PER_S

THRESHOLD_US: Final = 48_600 * MICROS_PER_S
"""Device-time after which a job is in the second queue: 13.5 h. Fitted to what is published of the Pollux workloads."""


class Tiresias(Rounds):
    """See the module."""

    name = "tiresias"

    def score(self, task: Task) -> Key:
        return (self.had_us(task) >= THRESHOLD_US,)
