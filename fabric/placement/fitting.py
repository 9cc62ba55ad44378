"""Where a gang fits: nodes of one type and one pool, kept as bitsets by how many devices are free.

`fit[f]` is a Python integer with one bit for each node that has exactly f devices free, so best fit is the lowest set bit
of the first non-empty `fit[c] & mask`, and a change is two XORs. Nodes that are draining or down have no bit. Knows
nothing of who waits or why.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from fabric.placement.jobs import INFERENCE, RANKS, Request, Shares
from fabric.placement.state import Node, NodeState, Queued, Running
from fabric.placement.units import Units
from fabric.units import AccountId, Fraction, JobId, NodeId

Picks = list[tuple[int, int]]
"""(slot, devices) of each share; of a fraction 0 devices where it comes onto one that is divided."""


class Shape(NamedTuple):
    """`each` devices on `nodes` nodes; or `devices` packed wherever they fit, if `each` is 0."""

    devices: int
    nodes: int
    each: int

    @classmethod
    def of(cls, request: Request) -> "Shape":
        """The least that the request must have."""
        each = request.devices_per_node
        if each is None:
            return cls(request.least, 1, 0)
        return cls(request.least, request.least // each, each)


class Group:
    """The nodes of one type in one pool (of one account, if dedicated): no gang ever leaves it."""

    __slots__ = (
        "accelerator",
        "bits",
        "fit",
        "fraction",
        "free",
        "ids",
        "kept",
        "leaving",
        "leaving_devices",
        "loose",
        "loose_devices",
        "name",
        "nodes",
        "notice_us",
        "notices",
        "owner",
        "pinned",
        "pool",
        "reporters",
        "reservations",
        "sizes",
        "standing",
        "touched",
        "typed",
        "typed_devices",
        "units",
        "wanted",
    )

    def __init__(self, pool: str, accelerator: str, owner: AccountId | None, fraction: Fraction | None = None) -> None:
        self.pool = pool
        self.accelerator = accelerator
        self.owner = owner
        self.fraction = fraction
        """What is counted as a device here is such a part of one."""
        self.name = group_name(pool, accelerator, owner, fraction)
        self.nodes: list[NodeState | None] = []
        self.ids: list[NodeId] = []
        self.bits: list[int] = []
        self.fit: list[int] = [0]
        self.sizes: dict[int, int] = {}
        """How many nodes have how many devices, those that are down included: they may come back."""
        self.standing: dict[int, int] = {}
        """How many nodes that are up have how many devices."""
        self.notices: dict[int, int] = {}
        """How many nodes that aren't down give which notice; those that give enough for anybody are not counted."""
        self.notice_us: int | None = None
        """The least notice that any of them gives; None = all give enough."""
        self.free = 0
        self.pinned = [0] * RANKS
        """By class, the nodes of pins of that class or a better one, as bitsets;"""
        self.reservations = [(0, 0)] * RANKS
        """and how many pins those are, of how many devices."""
        self.loose: list[dict[JobId, Running]] = [{} for _ in range(RANKS + 1)]
        """Running jobs that may be evicted, by class, the longest there first; guests after all classes."""
        self.loose_devices = [0] * (RANKS + 1)
        self.leaving: dict[JobId, Running] = {}
        """Jobs that were asked to leave."""
        self.leaving_devices = 0
        self.reporters: dict[JobId, Running] = {}
        """Jobs that have reported a checkpoint."""
        self.kept: dict[NodeId, int] = {}
        """Nodes of which nothing is lent, and until when."""
        self.wanted = 0
        """How many lanes that are at home here wait for room: while there are any, nothing is lent."""
        self.typed = 0
        """How many lanes that name their types wait for room here: who may have any type goes elsewhere if it can."""
        self.typed_devices = 0
        """How many devices run jobs that name their types."""
        self.units = Units()
        self.touched = False
        """Whether it got room since the last plan."""

    def seat(self, node: NodeState) -> None:
        """Restoring: the node has its slot."""
        while len(self.nodes) <= node.slot:
            self._grow()
        self.nodes[node.slot] = node
        self.ids[node.slot] = node.node.node_id
        self._count(node)

    def keep(self, node: NodeState, until_us: int) -> None:
        """Lend nothing of the node until then."""
        node.kept_until_us = until_us
        self.kept[node.node.node_id] = until_us

    def kept_from(self, queued: Queued) -> int:
        """The nodes of which nothing is lent to the job, as a bitset."""
        bits = 0
        if not self.kept or self.is_home_of(queued.request.account_id, queued.rank):
            return bits
        for node_id in self.kept:
            bits |= self.bits[bisect_left(self.ids, node_id)]
        return bits

    def lend_again(self, now_us: int) -> None:
        """Nodes that were kept until now are lent like all others."""
        over = [node_id for node_id, until_us in self.kept.items() if until_us <= now_us]
        for node_id in over:
            del self.kept[node_id]
        self.touched = self.touched or bool(over)

    def insert(self, node: NodeState) -> bool:
        """Slots are in the order of the nodes' ids, whichever came first: the order of arrival decides nothing. Whether devices
        can be had in other parts now.
        """
        at = bisect_left(self.ids, node.node.node_id)
        for following in self.nodes[at:]:
            assert following is not None
            following.slot += 1
        self._grow()
        self.nodes.insert(at, node)
        self.ids.insert(at, node.node.node_id)
        del self.nodes[-1], self.ids[-1]
        below = (1 << at) - 1
        self.fit = [bits & below | (bits >> at) << (at + 1) for bits in self.fit]
        self.units.widen(at)
        node.slot = at
        return self._count(node)

    def unseat(self, node: NodeState) -> bool:
        """Forget the node, which has no bit any more. Whether devices can no longer be had in some parts."""
        at = node.slot
        del self.nodes[at], self.ids[at], self.bits[-1]
        for following in self.nodes[at:]:
            assert following is not None
            following.slot -= 1
        below = (1 << at) - 1
        self.fit = [bits & below | (bits >> (at + 1)) << at for bits in self.fit]
        self.sizes[node.node.devices] -= 1
        return self.units.narrow(at)

    def hear(self, notice_us: int | None, change: int) -> None:
        """One node more (or fewer, if negative) gives so much notice."""
        if notice_us is not None:
            self.notices[notice_us] = self.notices.get(notice_us, 0) + change
            if not self.notices[notice_us]:
                del self.notices[notice_us]
            self.notice_us = min(self.notices, default=None)

    def gives(self, notice_us: int) -> bool:
        """Whether all its nodes give so much notice."""
        return self.notice_us is None or self.notice_us >= notice_us

    def show(self, node: NodeState) -> None:
        self.fit[node.free] |= self.bits[node.slot]
        self.free += node.free
        self.standing[node.node.devices] = self.standing.get(node.node.devices, 0) + 1
        self.units.note(node, self.bits[node.slot])

    def hide(self, node: NodeState) -> None:
        self.fit[node.free] ^= self.bits[node.slot]
        self.free -= node.free
        self.standing[node.node.devices] -= 1
        self.units.note(node, self.bits[node.slot])

    def takes(self, fraction: Fraction) -> bool:
        """Whether its devices are such parts, or can be had in such."""
        return self.fraction == fraction or self.units.takes(fraction)

    def shift(self, node: NodeState, change: int) -> None:
        """So many more devices of the node are free (or fewer, if negative)."""
        free = node.free
        node.free = after = free + change
        if node.status == "up":
            bit = self.bits[node.slot]
            self.fit[free] ^= bit
            self.fit[after] ^= bit
            self.free += change

    def find(self, shape: Shape, *, avoid: int = 0, strewn: bool = True) -> Picks | None:
        """Free devices for the whole gang outside the nodes of `avoid`, or None. Not `strewn`, what fits one of the nodes waits
        for one.
        """
        devices, nodes, each = shape
        if devices > self.free:
            return None
        if nodes == 1:
            picks = self.find_one(each or devices, avoid)
            if picks is not None or each or (not strewn and self.is_for_one(devices)):
                return picks
            return self._find_packed(devices, avoid)
        return self._find_even(nodes, each, avoid)

    def is_for_one(self, devices: int) -> bool:
        """Whether a node that is up is large enough for so many."""
        return any(count and size >= devices for size, count in self.standing.items())

    def shares(self, picks: Picks) -> Shares:
        """Picks by the nodes' ids."""
        return tuple([(self.ids[slot], devices) for slot, devices in picks])

    def enter(self, job_id: JobId, running: Running, devices: int) -> None:
        """A job with so many devices here runs, or leaves: take note of what it could make room for."""
        if running.request.accelerators:
            self.typed_devices += devices
        if running.evicting:
            self.leaving[job_id] = running
            self.leaving_devices += devices
        elif running.preemptible:
            is_all_s = self.owner is None and self.pool != "reserved"
            among = running.rank if is_all_s else self._class_of(running)
            self.loose[among][job_id] = running
            self.loose_devices[among] += devices
        if running.saved_at_us is not None:
            self.reporters[job_id] = running

    def leave(self, job_id: JobId, running: Running, devices: int) -> None:
        """The job is gone from here, or not what it was."""
        if running.request.accelerators:
            self.typed_devices -= devices
        if running.evicting:
            del self.leaving[job_id]
            self.leaving_devices -= devices
        elif running.preemptible:
            is_all_s = self.owner is None and self.pool != "reserved"
            among = running.rank if is_all_s else self._class_of(running)
            del self.loose[among][job_id]
            self.loose_devices[among] -= devices
        if running.saved_at_us is not None:
            del self.reporters[job_id]

    def shrink(self, running: Running, devices: int) -> None:
        """The job has so many devices less here, and keeps its place among the others."""
        self._note(running, -devices)

    def is_home_of(self, account_id: AccountId, rank: int) -> bool:
        """Whether such a job is here by right: on its account's own nodes, inference on reserved ones, and all on spot ones."""
        if self.owner is not None:
            return self.owner == account_id
        return self.pool != "reserved" or rank == INFERENCE

    def is_guest(self, running: Running) -> bool:
        """Whether the job is on what is lent: it gives way at once to whoever is at home."""
        return not self.is_home_of(running.request.account_id, running.rank)

    def nodes_of(self, bits: int) -> Iterator[NodeState]:
        """The nodes of a bitset, lowest slot first."""
        rest = bits
        while rest:
            low = rest & -rest
            node = self.nodes[low.bit_length() - 1]
            assert node is not None
            yield node
            rest ^= low

    def least(self, shape: Shape) -> int:
        """The least devices that a node must have to be of use: a gang that could fit one node is not strewn over many."""
        if shape.each:
            return shape.each
        return shape.devices if any(count and size >= shape.devices for size, count in self.sizes.items()) else 1

    def largest(self, shape: Shape) -> int:
        """The largest gang of this shape that an empty group could take."""
        if shape.each:
            return sum(count for size, count in self.sizes.items() if size >= shape.each) * shape.each
        return sum(size * count for size, count in self.sizes.items())

    def find_one(self, devices: int, avoid: int) -> Picks | None:
        """So many free devices of one node, the tightest there is, outside those of `avoid`; or None."""
        fit = self.fit
        for free in range(devices, len(fit)):
            bits = fit[free]
            if avoid:
                bits &= ~avoid
            if bits:
                return [((bits & -bits).bit_length() - 1, devices)]
        return None

    def _find_even(self, nodes: int, each: int, avoid: int) -> Picks | None:
        fit = [bits & ~avoid for bits in self.fit[each:]] if avoid else self.fit[each:]
        if sum(bits.bit_count() for bits in fit) < nodes:
            return None
        picks: Picks = []
        for bits in fit:
            rest = bits
            while rest:
                low = rest & -rest
                picks.append((low.bit_length() - 1, each))
                if len(picks) == nodes:
                    return picks
                rest ^= low
        raise AssertionError

    def _find_packed(self, devices: int, avoid: int) -> Picks | None:
        """The fullest-free nodes first, then the tightest node for the rest: the fewest nodes there can be."""
        fit = [bits & ~avoid for bits in self.fit] if avoid else self.fit[:]
        if sum(free * bits.bit_count() for free, bits in enumerate(fit)) < devices:
            return None
        picks: Picks = []
        left = devices
        for free in range(len(fit) - 1, 0, -1):
            while left >= free and fit[free]:
                low = fit[free] & -fit[free]
                picks.append((low.bit_length() - 1, free))
                fit[free] ^= low
                left -= free
            if left < free and fit[free]:
                break
        for free in range(left, len(fit) if left else 0):
            if fit[free]:
                picks.append(((fit[free] & -fit[free]).bit_length() - 1, left))
                break
        return picks

    def _class_of(self, running: Running) -> int:
        return RANKS if self.is_guest(running) else running.rank

    def _note(self, running: Running, devices: int) -> None:
        if running.request.accelerators:
            self.typed_devices += devices
        if running.evicting:
            self.leaving_devices += devices
        elif running.preemptible:
            self.loose_devices[self._class_of(running)] += devices

    def _count(self, node: NodeState) -> bool:
        size = node.node.devices
        self.sizes[size] = self.sizes.get(size, 0) + 1
        is_first = self.units.add(node.node.units, self.bits[node.slot])
        while len(self.fit) <= size:
            self.fit.append(0)
        if node.status != "down":
            self.hear(node.node.notice_us, 1)
        if node.status == "up":
            self.show(node)
        return is_first

    def _grow(self) -> None:
        self.bits.append(1 << len(self.nodes))
        self.nodes.append(None)
        self.ids.append(NodeId(""))


def group_name(pool: str, accelerator: str, owner: AccountId | None, fraction: Fraction | None = None) -> str:
    kind = accelerator if fraction is None else f"{accelerator}:{fraction[0]}-{fraction[1]}"
    return f"{pool}/{kind}/{owner}" if owner else f"{pool}/{kind}"


def name_of(node: Node) -> str:
    """Of the node's group."""
    return group_name(node.pool, node.accelerator, node.dedicated_to, node.fraction)
