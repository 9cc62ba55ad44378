"""Merkle trees as in RFC 6962: what makes a log of entries tamper-evident.

A leaf hashes as SHA-256(0x00 ‖ data) and a node as SHA-256(0x01 ‖ left ‖ right), so neither can pass for the other.
`Tree` keeps only the right edge and is what the writer appends to; `ProofTree` keeps every level, 64 bytes a leaf, and
`TiledTree` those above tiles of 256 leaves: from these proofs are read. Verification follows RFC 9162 §2.1.3.2 and §2.1.4.2. Knows nothing of what a leaf says.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final, Self

HASH_BYTES: Final = 32
TILE: Final = 256
"""Leaves of a tile."""
TILES_HELD: Final = 1_024
"""Tiles whose leaves are held at once: 64 bytes a leaf."""
EMPTY_ROOT: Final = sha256().digest()


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


class Tree:
    """A growing tree, as its size and right edge: append in amortised two hashes, root in log₂(size)."""

    __slots__ = ("_edge", "_size")

    def __init__(self, *, size: int = 0, edge: Sequence[bytes] = ()) -> None:
        """Continue a tree from what `edge` gave.

        Raises:
            ValueError: as many hashes are needed as `size` has one-bits, of 32 bytes each.
        """
        if size < 0 or len(edge) != size.bit_count() or any(len(node) != HASH_BYTES for node in edge):
            raise ValueError(f"a tree of {size} leaves has an edge of {size.bit_count()} hashes, not {len(edge)}")
        self._size = size
        self._edge = list(edge)

    @property
    def size(self) -> int:
        return self._size

    @property
    def edge(self) -> tuple[bytes, ...]:
        """The roots of the perfect subtrees that make up the tree, largest first."""
        return tuple(self._edge)

    def append(self, leaf_hash: bytes) -> None:
        edge, rest, node = self._edge, self._size, leaf_hash
        while rest & 1:
            node = sha256(b"\x01" + edge.pop() + node).digest()
            rest >>= 1
        edge.append(node)
        self._size += 1

    def extend(self, leaf_hashes: Iterable[bytes]) -> None:
        for leaf in leaf_hashes:
            self.append(leaf)

    def root(self) -> bytes:
        if not self._edge:
            return EMPTY_ROOT
        node = self._edge[-1]
        for left in reversed(self._edge[:-1]):
            node = node_hash(left, node)
        return node

    def copy(self) -> Self:
        return type(self)(size=self._size, edge=self._edge)


class _Proofs:
    """What a tree can prove that knows the hash of any of its subtrees."""

    __slots__ = ()

    @property
    def size(self) -> int:
        raise NotImplementedError

    def _perfect(self, low: int, count: int) -> bytes:
        """The hash of `count` leaves from `low` on: a power of two, of which `low` is a multiple."""
        raise NotImplementedError

    def root(self, size: int | None = None) -> bytes:
        """The root of the first `size` leaves."""
        size = self._within(size)
        return self._subtree(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, *, size: int | None = None) -> tuple[bytes, ...]:
        """The sibling hashes that lead from leaf `index` to the root of the first `size` leaves (PATH, RFC 6962 §2.1.1)."""
        size = self._within(size)
        if not 0 <= index < size:
            raise ValueError(f"leaf {index} is not among the first {size}")
        path: list[bytes] = []
        low, high = 0, size
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                path.append(self._subtree(middle, high))
                high = middle
            else:
                path.append(self._subtree(low, middle))
                low = middle
        return tuple(reversed(path))

    def consistency(self, old_size: int, *, size: int | None = None) -> tuple[bytes, ...]:
        """What shows that the first `old_size` leaves are a prefix of the first `size` (PROOF, RFC 6962 §2.1.2)."""
        size = self._within(size)
        if not 0 <= old_size <= size:
            raise ValueError(f"a tree of {size} leaves has no earlier size {old_size}")
        if old_size in (0, size):
            return ()
        path: list[bytes] = []
        low, high, whole = 0, size, True
        while old_size != high:
            middle = low + _split(high - low)
            if old_size <= middle:
                path.append(self._subtree(middle, high))
                high = middle
            else:
                path.append(self._subtree(low, middle))
                low, whole = middle, False
        if not whole:
            path.append(self._subtree(low, high))
        return tuple(reversed(path))

    def _within(self, size: int | None) -> int:
        size = self.size if size is None else size
        if not 0 <= size <= self.size:
            raise ValueError(f"the tree has {self.size} leaves, not {size}")
        return size

    def _subtree(self, low: int, high: int) -> bytes:
        """The hash of leaves low..high, where low is a multiple of the largest power of two in the range."""
        count = high - low
        if count & (count - 1) == 0:
            return self._perfect(low, count)
        middle = low + _split(count)
        return node_hash(self._subtree(low, middle), self._subtree(middle, high))


class ProofTree(_Proofs):
    """Every node of a growing tree, level by level, so that a proof costs log₂(size) look-ups."""

    __slots__ = ("_levels",)

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self._levels: list[bytearray] = [bytearray()]
        self.extend(leaf_hashes)

    @property
    def size(self) -> int:
        return len(self._levels[0]) // HASH_BYTES

    def extend(self, leaf_hashes: Iterable[bytes]) -> None:
        """Append leaves, and complete the perfect subtrees above them."""
        self._levels[0] += b"".join(leaf_hashes)
        below, level = self._levels[0], 1
        while len(below) >= 2 * HASH_BYTES:
            if level == len(self._levels):
                self._levels.append(bytearray())
            nodes = self._levels[level]
            first, last = 2 * len(nodes), len(below) - len(below) % (2 * HASH_BYTES)
            nodes += b"".join(
                sha256(b"\x01" + below[at : at + 2 * HASH_BYTES]).digest() for at in range(first, last, 2 * HASH_BYTES)
            )
            below, level = nodes, level + 1

    def leaf(self, leaf: int) -> bytes:
        """A leaf's own hash."""
        return self._perfect(leaf, 1)

    def _perfect(self, low: int, count: int) -> bytes:
        level = count.bit_length() - 1
        at = (low >> level) * HASH_BYTES
        return bytes(self._levels[level][at : at + HASH_BYTES])


class TiledTree(_Proofs):
    """The same tree from the roots of its whole tiles, with the leaves of those tiles alone in which a proof begins or ends:
    half a byte a leaf.
    """

    __slots__ = ("_held", "_last", "_roots")

    def __init__(self) -> None:
        self._roots = ProofTree()
        """Its leaves are the roots of whole tiles."""
        self._last = ProofTree()
        """What comes after the last whole tile."""
        self._held: OrderedDict[int, ProofTree] = OrderedDict()

    @property
    def size(self) -> int:
        return self.tiles * TILE + self._last.size

    @property
    def tiles(self) -> int:
        """How many are whole."""
        return self._roots.size

    def grow(self, roots: Iterable[bytes], rest: Iterable[bytes]) -> None:
        """Append whole tiles by their roots; `rest` is all that comes after them, by leaf hashes."""
        self._roots.extend(roots)
        self._last = ProofTree(rest)

    def missing(self, *leaves: int) -> list[int]:
        """The tiles that must be held before something is proved of these leaves, or of trees that end there."""
        tiles = dict.fromkeys(leaf // TILE for leaf in leaves)
        return [tile for tile in tiles if tile < self.tiles and tile not in self._held]

    def hold(self, tile: int, leaf_hashes: Iterable[bytes]) -> bool:
        """Hold the leaves of a whole tile, and forget those of others in time; False if they don't lead to its root."""
        held = ProofTree(leaf_hashes)
        if held.size != TILE or held.root() != self._roots.leaf(tile):
            return False
        self._held[tile] = held
        while len(self._held) > TILES_HELD:
            self._held.popitem(last=False)
        return True

    def _perfect(self, low: int, count: int) -> bytes:
        if count >= TILE:
            return self._roots._perfect(low // TILE, count // TILE)  # noqa: SLF001 - the same kind of tree
        tile, at = divmod(low, TILE)
        return (self._last if tile == self.tiles else self._held[tile])._perfect(at, count)  # noqa: SLF001


def _split(count: int) -> int:
    """The largest power of two smaller than `count`."""
    return 1 << (count - 1).bit_length() - 1


def verify_inclusion(leaf_hash: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` shows that the leaf is at `index` of the tree of that size and root."""
    if not 0 <= index < size:
        return False
    position, last, node = index, size - 1, leaf_hash
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            while position and not position & 1:
                position >>= 1
                last >>= 1
        else:
            node = node_hash(node, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and node == root


def verify_consistency(*, old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the tree of `size` and `root` only appended to the one of `old_size` and `old_root`."""
    if old_size == size:
        return not proof and old_root == root
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT
    if not 0 < old_size < size:
        return False
    steps = list(proof) if old_size & (old_size - 1) else [old_root, *proof]
    if not steps:
        return False
    position, last = old_size - 1, size - 1
    while position & 1:
        position >>= 1
        last >>= 1
    old_node = node = steps[0]
    for sibling in steps[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old_node, node = node_hash(sibling, old_node), node_hash(sibling, node)
            while position and not position & 1:
                position >>= 1
                last >>= 1
        else:
            node = node_hash(node, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and old_node == old_root and node == root
