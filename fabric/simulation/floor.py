"""Devices of nodes, and who is on them: what all schedulers of a simulation place jobs on.

Whatever a policy believes, nobody gets a device twice: `take` refuses. A gang that one node is large enough for goes on one
node; a larger one takes whole nodes and puts the rest where it fits most tightly, or `per_node` on each.
"""

from collections.abc import Sequence

from fabric.simulation.workload import Cluster, Work

Shares = tuple[tuple[str, int], ...]
"""(node, devices on it), each node once."""


class Group:
    """Nodes of one pool and type. Of each count of free devices a bitset of the nodes that have so many."""

    __slots__ = ("accelerator", "bits", "fit", "free", "ids", "largest", "pool", "total")

    def __init__(self, pool: str, accelerator: str) -> None:
        self.pool, self.accelerator = pool, accelerator
        self.ids: list[str] = []
        self.bits: dict[str, int] = {}
        self.fit: list[int] = [0]
        self.free = self.total = self.largest = 0

    def add(self, node_id: str, devices: int) -> None:
        while len(self.fit) <= devices:
            self.fit.append(0)
        bit = self.bits.get(node_id)
        if bit is None:
            bit = self.bits[node_id] = 1 << len(self.ids)
            self.ids.append(node_id)
        self.fit[devices] |= bit
        self.free += devices
        self.total += devices
        self.largest = max(self.largest, devices)

    def find(self, devices: int, per_node: int | None = None, *, avoid: int = 0) -> Shares | None:
        """Room for a gang outside the nodes of a bitset, or None."""
        if devices > self.free:
            return None
        nodes, each, rest = self.parts(devices, per_node)
        picks: list[tuple[str, int]] = []
        for free in range(each, len(self.fit)):
            bits = self.fit[free] & ~avoid
            while bits and len(picks) < nodes:
                low = bits & -bits
                picks.append((self.ids[low.bit_length() - 1], each))
                bits ^= low
                avoid |= low
            if len(picks) == nodes:
                break
        if len(picks) < nodes:
            return None
        if rest:
            last = self.find(rest, avoid=avoid)
            if last is None:
                return None
            picks += last
        return tuple(picks)

    def parts(self, devices: int, per_node: int | None) -> tuple[int, int, int]:
        """How a gang is split: so many nodes with so many devices each, and the rest on one more."""
        if per_node is None and devices > self.largest:
            whole, rest = divmod(devices, self.largest)
            return whole, self.largest, rest
        each = per_node or devices
        return devices // each, each, 0


class Floor:
    """All nodes."""

    def __init__(self, cluster: Cluster) -> None:
        self.groups: dict[str, Group] = {}
        self.devices: dict[str, int] = {}
        self.free_on: dict[str, int] = {}
        self.group_of: dict[str, Group] = {}
        self.down: set[str] = set()
        self.on: dict[str, dict[str, int]] = {}
        """By node, the jobs on it and how many devices each has."""
        for at, nodes in enumerate(cluster.nodes):
            group = self.groups.setdefault(f"{nodes.pool}/{nodes.accelerator}", Group(nodes.pool, nodes.accelerator))
            for count in range(nodes.count):
                node_id = f"{nodes.pool}-{at}-{count}"
                self.devices[node_id] = self.free_on[node_id] = nodes.devices
                self.group_of[node_id], self.on[node_id] = group, {}
                group.add(node_id, nodes.devices)

    @property
    def free(self) -> int:
        """Free devices of all nodes."""
        return sum(group.free for group in self.groups.values())

    def open_to(self, work: Work) -> list[Group]:
        """Where a job may go, best first: reserved nodes are of inference, and lent to the rest after all others."""
        kinds = work.types
        found = [group for group in self.groups.values() if not kinds or group.accelerator in kinds]
        if work.is_reserved:
            own = [group for group in found if group.pool == "reserved"]
            return own or found
        return sorted(found, key=lambda group: group.pool == "reserved")

    def find(self, work: Work, groups: Sequence[Group] | None = None) -> Shares | None:
        """Room for a job in one of these groups, best first."""
        for group in self.open_to(work) if groups is None else groups:
            if (shares := group.find(work.devices, work.per_node)) is not None:
                return shares
        return None

    def take(self, work_id: str, shares: Shares) -> None:
        """The job is there.

        Raises:
            AssertionError: somebody else is.
        """
        for node_id, devices in shares:
            assert node_id not in self.down, f"{work_id} is to run on {node_id}, which is down"
            assert self.free_on[node_id] >= devices > 0, f"{work_id} is to have {devices} of {node_id} that it has not"
            self._shift(node_id, -devices)
            self.on[node_id][work_id] = devices

    def give(self, work_id: str, shares: Shares) -> None:
        """The job is there no longer."""
        for node_id, devices in shares:
            assert self.on[node_id].pop(work_id) == devices
            if node_id not in self.down:
                self._shift(node_id, devices)
            else:
                self.free_on[node_id] += devices

    def fail(self, node_id: str) -> tuple[str, ...]:
        """The node is down. Who is on it."""
        self.down.add(node_id)
        group, free = self.group_of[node_id], self.free_on[node_id]
        group.fit[free] ^= group.bits[node_id]
        group.free -= free
        return tuple(self.on[node_id])

    def repair(self, node_id: str) -> None:
        """It is up again, with nobody on it."""
        self.down.discard(node_id)
        group, free = self.group_of[node_id], self.free_on[node_id]
        group.fit[free] |= group.bits[node_id]
        group.free += free

    def _shift(self, node_id: str, change: int) -> None:
        group, free = self.group_of[node_id], self.free_on[node_id]
        after = self.free_on[node_id] = free + change
        bit = group.bits[node_id]
        group.fit[free] ^= bit
        group.fit[after] ^= bit
        group.free += change
