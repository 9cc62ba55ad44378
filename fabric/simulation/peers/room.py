"""What would be free if some jobs left: for peers that evict, and for those that reserve.

A copy of one group's free devices, to which jobs' shares are added and from which they are taken again.
"""

from fabric.simulation.floor import Floor, Group, Shares
from fabric.simulation.world import Task, World


class Room:
    """Free devices of one group, in thought."""

    __slots__ = ("_counts", "_floor", "_free", "_group", "total")

    def __init__(self, floor: Floor, group: Group) -> None:
        self._group = group
        self._free: dict[str, int] = {}
        """Of the nodes whose count is not what the floor has."""
        self._counts = [bits.bit_count() for bits in group.fit]
        self.total = group.free
        self._floor = floor

    def add(self, shares: Shares) -> None:
        """Somebody leaves."""
        for node_id, devices in shares:
            self._shift(node_id, devices)

    def take(self, shares: Shares) -> None:
        """Somebody stays after all."""
        for node_id, devices in shares:
            self._shift(node_id, -devices)

    def fits(self, task: Task) -> bool:
        """Whether there would be room for the whole gang."""
        work = task.work
        if work.devices > self.total:
            return False
        nodes, each, rest = self._group.parts(work.devices, work.per_node)
        enough = sum(self._counts[each:])
        if enough < nodes:
            return False
        if not rest or enough > nodes:
            return True
        return sum(self._counts[rest:each]) > 0

    def tightest(self, task: Task) -> int:
        """The nodes on which the gang would be, as a bitset of the group: those with the tightest room that is enough."""
        nodes, each, rest = self._group.parts(task.work.devices, task.work.per_node)
        floor, bits = self._floor, self._group.bits
        up = (
            (self._free.get(node_id, floor.free_on[node_id]), node_id) for node_id in bits if node_id not in floor.down
        )
        found = 0
        for free, node_id in sorted(up):
            if nodes and free >= each:
                found, nodes = found | bits[node_id], nodes - 1
            elif rest and free >= rest:
                found, rest = found | bits[node_id], 0
        return found

    def _shift(self, node_id: str, change: int) -> None:
        if self._group.bits.get(node_id) is None or node_id in self._floor.down:
            return
        before = self._free.get(node_id)
        if before is None:
            before = self._floor.free_on[node_id]
        after = self._free[node_id] = before + change
        self._counts[before] -= 1
        self._counts[after] += 1
        self.total += change


def leaving(world: World) -> list[Task]:
    """Those that were asked to go and are there still."""
    return [task for task in world.running.values() if task.run is not None and task.run.leaves_us is not None]


def least_victims(world: World, task: Task, group: Group, candidates: list[Task]) -> list[Task] | None:
    """Who must go of these, taken in their order until there is room, less those who turn out not to be needed, the last
    taken looked at first (as Kueue does). None if all of them are not enough; [] if there is room once who leaves has left.
    """
    room = Room(world.floor, group)
    for gone in leaving(world):
        assert gone.run is not None
        room.add(gone.run.shares)
    if room.fits(task):
        return []
    victims: list[Task] = []
    for victim in candidates:
        assert victim.run is not None
        room.add(victim.run.shares)
        victims.append(victim)
        if room.fits(task):
            break
    else:
        return None
    for victim in victims[::-1]:
        assert victim.run is not None
        room.take(victim.run.shares)
        if room.fits(task):
            victims.remove(victim)
        else:
            room.add(victim.run.shares)
    return victims
