"""Queues without preemption: strict order, whoever fits, and the shortest first."""

from fabric.simulation.peers.lanes import Key, Peer
from fabric.simulation.world import Task


class Fifo(Peer):
    """In the order of arrival: nobody passes the first."""

    name = "fifo"

    def place(self) -> None:
        for lane, task in self.in_order():
            if not self.start_if_room(lane, task):
                return


class BestEffort(Peer):
    """In the order of arrival, and whoever fits passes whoever doesn't. Kueue's default."""

    name = "best-effort"

    def place(self) -> None:
        for lane, task in self.in_order():
            self.start_if_room(lane, task)


class ShortestFirst(BestEffort):
    """Who has least left to compute, which no real scheduler knows: how little all can wait on average."""

    name = "sjf"

    def key(self, task: Task) -> Key:
        return (task.left_us, task.work.devices)
