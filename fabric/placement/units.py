"""Devices that can be had in parts: which nodes of a group have them, and what is free of those that are divided.

A device is divided into equal units, as many as its node says; a fraction is a whole number of them, or isn't had there. It
goes where it leaves least of a device over, and divides another one only where none that is divided has room: so whole devices
stay whole. As in `fitting`, nodes are bits. Knows nothing of who waits or why.
"""

from typing import Final

from fabric.placement.state import NodeState
from fabric.units import Fraction

_PARTS: Final = 1_000_000
"""What is left over of a device is compared in these, where devices have different units."""


def units_of(fraction: Fraction, units: int) -> int:
    """How many units the fraction is of a device that has so many; 0 if it is no whole number of them, or all."""
    needs, rest = divmod(fraction[0] * units, fraction[1])
    return 0 if rest or needs >= units else needs


class Units:
    """The devices of one group's nodes that can be divided."""

    __slots__ = ("nodes", "opened")

    def __init__(self) -> None:
        self.nodes: dict[int, int] = {}
        """By into how many units their devices can be divided, the nodes, up or not."""
        self.opened: dict[int, dict[int, int]] = {}
        """By that, and by how many units are free of one device, the nodes that are up and have such a one."""

    def add(self, units: int, bit: int) -> bool:
        """A node has a place, and devices of so many units. Whether it is the first with so many."""
        if units == 1:
            return False
        before = self.nodes.get(units, 0)
        self.nodes[units] = before | bit
        return not before

    def widen(self, at: int) -> None:
        """A node gets this place: those behind it move up."""
        below = (1 << at) - 1
        for bitsets in (self.nodes, *self.opened.values()):
            bitsets.update({count: bits & below | (bits >> at) << (at + 1) for count, bits in bitsets.items()})

    def narrow(self, at: int) -> bool:
        """The node of this place is forgotten: those behind it move down. Whether it was the last with so many units."""
        below, bit = (1 << at) - 1, 1 << at
        was_last = bit in self.nodes.values()
        self.nodes = {units: bits for units, bits in self.nodes.items() if bits != bit}
        for bitsets in (self.nodes, *self.opened.values()):
            bitsets.update({count: bits & below | (bits >> (at + 1)) << at for count, bits in bitsets.items()})
        return was_last

    def note(self, node: NodeState, bit: int) -> None:
        """What the node has free of divided devices may not be what it was."""
        if node.node.units == 1:
            return
        opened = self.opened.setdefault(node.node.units, {})
        there = node.divided.values() if node.status == "up" else ()
        now = sorted({each.free for each in there if each.free and not each.closed})
        for free in [free for free, bits in opened.items() if bits & bit and free not in now]:
            opened[free] ^= bit
            if not opened[free]:
                del opened[free]
        for free in now:
            opened[free] = opened.get(free, 0) | bit

    def takes(self, fraction: Fraction) -> bool:
        """Whether devices here, be their nodes up or not, can be had in such parts."""
        return bool(self.nodes) and self.nodes_for(fraction) != 0

    def nodes_for(self, fraction: Fraction) -> int:
        """The nodes, up or not, whose devices can be had in such parts."""
        found = 0
        for units, bits in self.nodes.items():
            if units_of(fraction, units):
                found |= bits
        return found

    def room(self, fraction: Fraction, *, avoid: int) -> int | None:
        """The node with a divided device that has room, and least left over then, outside the nodes of `avoid`; by its place."""
        best: tuple[int, int] | None = None
        for units in self.nodes:
            needs = units_of(fraction, units)
            opened = self.opened.get(units)
            for free in sorted([free for free in opened if free >= needs]) if needs and opened else ():
                if bits := opened[free] & ~avoid:  # type: ignore[index]
                    found = (free - needs) * _PARTS // units, (bits & -bits).bit_length() - 1
                    best = found if best is None else min(best, found)
                    break
        return None if best is None else best[1]

    def most(self) -> Fraction | None:
        """The most that is free of one divided device, in the units of that; None if nothing is."""
        found = [(max(opened), units) for units, opened in self.opened.items() if opened]
        return max(found, key=lambda each: each[0] * _PARTS // each[1], default=None)

    def whole(self, fraction: Fraction, fit: list[int], *, avoid: int) -> int | None:
        """The fullest node with a whole device that can be divided so; by its place."""
        can = self.nodes_for(fraction) & ~avoid
        for bits in fit[1:] if can else ():
            if found := bits & can:
                return (found & -found).bit_length() - 1
        return None
