"""Evicts what loses least: node by node the cheapest way to free what a gang needs there, the cheapest nodes first.

What a victim loses is what it has computed since its last save, and its next restore, on all its devices: a gang goes as a
whole, and frees all its nodes. Those who turn out not to be needed stay.
"""

from fabric.simulation.floor import Group
from fabric.simulation.peers.lanes import Lane
from fabric.simulation.peers.preempting import Preempting
from fabric.simulation.peers.room import Room, least_victims, leaving
from fabric.simulation.world import Task


class LeastLoss(Preempting):
    """See the module."""

    name = "least-loss"

    def cost(self, task: Task) -> tuple[float, ...]:
        return (self.loss_us(task),)

    def loss_us(self, task: Task) -> int:
        """Device-time that is lost if it goes now."""
        run = task.run
        assert run is not None
        lost_us = task.unsaved_us(self.world.now_us) + self.world.behaviour.restores_us(len(run.shares))
        return lost_us * task.work.devices

    def make_room(self, lane: Lane, task: Task) -> bool:
        for group in lane.groups:
            victims = self.cheapest(task, group)
            if victims is None:
                continue
            for victim in victims:
                self.evict(victim)
            return True
        return False

    def cheapest(self, task: Task, group: Group) -> list[Task] | None:
        """Who must go; None if nobody's going helps."""
        candidates = self.candidates(task, group)
        room = Room(self.world.floor, group)
        for gone in leaving(self.world):
            assert gone.run is not None
            room.add(gone.run.shares)
        if room.fits(task):
            return []
        on: dict[str, list[Task]] = {}
        for victim in candidates:
            assert victim.run is not None
            for node_id, _ in victim.run.shares:
                if node_id in group.bits:
                    on.setdefault(node_id, []).append(victim)
        needed = group.parts(task.work.devices, task.work.per_node)[1]
        costs = {victim.at: self.loss_us(victim) for victim in candidates}
        chosen: dict[int, Task] = {}
        while not room.fits(task):
            best = min(
                (found for node_id, here in on.items() if (found := self._free(node_id, here, needed, costs, chosen))),
                default=None,
                key=lambda found: found[0],
            )
            if best is None:
                return None
            for victim in best[1]:
                assert victim.run is not None
                chosen[victim.at] = victim
                room.add(victim.run.shares)
        ordered = sorted(chosen.values(), key=lambda victim: costs[victim.at])
        return least_victims(self.world, task, group, ordered)

    def _free(
        self, node_id: str, here: list[Task], needed: int, costs: dict[int, int], chosen: dict[int, Task]
    ) -> tuple[float, list[Task]] | None:
        """What it costs to have so many devices free on this node, and who goes; None if it can't be, or is so already."""
        floor = self.world.floor
        devices = floor.on[node_id]
        free = floor.free_on[node_id] + sum(devices[victim.work.work_id] for victim in here if victim.at in chosen)
        if free >= needed:
            return None
        left = [victim for victim in here if victim.at not in chosen]
        left.sort(key=lambda victim: (costs[victim.at] / devices[victim.work.work_id], victim.at))
        goes: list[Task] = []
        for victim in left:
            goes.append(victim)
            free += devices[victim.work.work_id]
            if free >= needed:
                break
        else:
            return None
        for victim in goes[-2::-1]:
            if free - devices[victim.work.work_id] >= needed:
                goes.remove(victim)
                free -= devices[victim.work.work_id]
        return sum(costs[victim.at] for victim in goes), goes
