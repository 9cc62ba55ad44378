"""Sums in a fixed order: one tree over the virtual ranks, whoever computes which of them.

Adding floats is not associative, so a sum over 1, 2 or 3 workers usually has other bits each time. Here the order of
additions is a tree over the leaves 0..count-1 and nothing else: node (level, place) is node (level-1, 2·place) plus node
(level-1, 2·place + 1), or the left one alone where the right one would begin beyond the last leaf. A worker that owns the
leaves [start, stop) folds them into the few subtrees that lie wholly inside, sends those, and everybody's sum is the same
bits. It does not know what is summed, nor over which network. (Idea: EasyScale, SC'23; the tree is pairwise summation.)
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Node(NamedTuple):
    """The subtree over the leaves [place · 2^level, (place + 1) · 2^level), as far as there are leaves."""

    level: int
    place: int

    @property
    def start(self) -> int:
        """Its first leaf."""
        return self.place << self.level

    def stop(self, count: int) -> int:
        """The leaf after its last one, in a tree over `count` leaves."""
        return min((self.place + 1) << self.level, count)

    @property
    def parent(self) -> "Node":
        return Node(self.level + 1, self.place >> 1)

    @property
    def children(self) -> tuple["Node", "Node"]:
        return Node(self.level - 1, 2 * self.place), Node(self.level - 1, 2 * self.place + 1)


def root(count: int) -> Node:
    """The node that covers all of `count` ≥ 1 leaves."""
    return Node((count - 1).bit_length(), 0)


def cover(start: int, stop: int, count: int) -> tuple[Node, ...]:
    """The largest subtrees that lie wholly inside the leaves [start, stop), in order: at most 2·log2(count) of them."""
    nodes: list[Node] = []
    while start < stop:
        node = Node(0, start)
        while node != root(count) and node.parent.start == start and node.parent.stop(count) <= stop:
            node = node.parent
        nodes.append(node)
        start = node.stop(count)
    return tuple(nodes)


def complete(parts: Mapping[Node, Tensor], count: int) -> Tensor:
    """The whole sum from subtrees that together cover every leaf. Adds in place: the parts are used up."""
    return _sum(root(count), parts, count)


def _sum(node: Node, parts: Mapping[Node, Tensor], count: int) -> Tensor:
    if node in parts:
        return parts[node]
    assert node.level > 0, f"leaf {node.place} of {count} is missing"
    left, right = node.children
    total = _sum(left, parts, count)
    return total if right.start >= count else total.add_(_sum(right, parts, count))


class Folding:
    """Folds the leaves [start, stop) as they come, in order, keeping at most log2(count) + 1 unfinished sums.

    Buffers are reused: `buffer()` is where the next leaf is written, and `add` takes it over.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._free: list[Tensor] = []
        self._sums: list[tuple[Node, Tensor]] = []
        self._start = self._next = self._stop = self._count = 0

    def begin(self, *, start: int, stop: int, count: int) -> None:
        """Take these leaves, of `count`. What came of the last ones is overwritten from now on."""
        self._free.extend(total for _, total in self._sums)
        self._sums = []
        self._start, self._stop, self._count = start, stop, count
        self._next = start

    def buffer(self) -> Tensor:
        """A tensor like the one given at first, with anything in it."""
        return self._free.pop() if self._free else self._like.new_empty(self._like.shape)

    def add(self, leaf: Tensor) -> None:
        """Take the next leaf. The tensor is ours from now on."""
        assert self._next < self._stop, "more leaves than the block has"
        node, total = Node(0, self._next), leaf
        self._next += 1
        while node != root(self._count) and self._inside(node.parent):
            if node.place % 2:
                _, left = self._sums.pop()
                self._free.append(total)
                total = left.add_(total)
            elif node.stop(self._count) < self._count:  # its right neighbour is still to come
                break
            node = node.parent
        self._sums.append((node, total))

    def parts(self) -> tuple[tuple[Node, Tensor], ...]:
        """The finished subtrees, those of `cover(start, stop, count)`, once all leaves are in."""
        assert self._next == self._stop, f"{self._stop - self._next} leaves are missing"
        return tuple(self._sums)

    def _inside(self, node: Node) -> bool:
        return node.start >= self._start and node.stop(self._count) <= self._stop
