"""Queues by class that evict for whoever is of a better one: they differ in whom.

A class is inference on reserved nodes, then the tier. In a class it goes by arrival, and whoever fits passes whoever doesn't.
"""

from fabric.simulation.floor import Group
from fabric.simulation.peers.lanes import Key, Lane, Peer
from fabric.simulation.peers.room import least_victims
from fabric.simulation.world import Task


def rank(task: Task) -> int:
    """The class of a job, the best the least."""
    return -1 if task.work.is_reserved else task.work.tier


class Preempting(Peer):
    """Evicts candidates in the order of `cost`, the least first, until there is room."""

    def key(self, task: Task) -> Key:
        return (rank(task), task.work.submit_us)

    def cost(self, task: Task) -> tuple[float, ...]:
        """By what candidates are ordered, the first to go the least."""
        raise NotImplementedError

    def may_evict(self, task: Task, victim: Task) -> bool:
        """Whether this one may go for that."""
        return rank(victim) > rank(task)

    def place(self) -> None:
        for lane, task in self.in_order():
            if not self.start_if_room(lane, task) and self.make_room(lane, task):
                self.start_if_room(lane, task)

    def make_room(self, lane: Lane, task: Task) -> bool:
        """Evict for this one, if that helps. Whether there is room now; where victims save first, there is later."""
        for group in lane.groups:
            victims = least_victims(self.world, task, group, self.candidates(task, group))
            if victims is None:
                continue
            for victim in victims:
                self.evict(victim)
            return True
        return False

    def candidates(self, task: Task, group: Group) -> list[Task]:
        """Who may go for this one, the first to go first."""
        bits = group.bits
        found = [
            victim
            for victim in self.world.running.values()
            if victim.run is not None
            and victim.run.leaves_us is None
            and self.may_evict(task, victim)
            and any(node_id in bits for node_id, _ in victim.run.shares)
        ]
        found.sort(key=lambda victim: (*self.cost(victim), victim.at))
        return found

    def evict(self, victim: Task) -> None:
        self.world.evict(victim)
        if victim.run is None:
            self.submitted(victim)

    def is_borrower(self, task: Task) -> bool:
        """Whether it is on reserved nodes, which it must give back."""
        run = task.run
        if run is None or task.work.is_reserved:
            return False
        return self.world.floor.group_of[run.shares[0][0]].pool == "reserved"


class KueueClassic(Preempting):
    """Borrowers, then the lowest class, then whoever was admitted last; those who turn out not to be needed stay."""

    name = "kueue"

    def cost(self, task: Task) -> tuple[float, ...]:
        run = task.run
        assert run is not None
        return (not self.is_borrower(task), -rank(task), -run.started_us)


class YoungestFirst(Preempting):
    """Whoever started last of all lower classes. As Slurm's `preempt_youngest_first`."""

    name = "youngest-first"

    def cost(self, task: Task) -> tuple[float, ...]:
        assert task.run is not None
        return (-task.run.started_us,)
