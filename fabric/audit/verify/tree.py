"""The RFC 6962 tree over the entries: its root, and proofs that lead to it."""

import hashlib
from collections.abc import Sequence

from .report import require

EMPTY = hashlib.sha256().digest()


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """A tree that grows by one leaf at a time; it keeps one hash for each whole subtree on its edge."""

    def __init__(self) -> None:
        self.edge: list[tuple[int, bytes]] = []

    def append(self, node: bytes) -> None:
        height = 0
        while self.edge and self.edge[-1][0] == height:
            node, height = node_hash(self.edge.pop()[1], node), height + 1
        self.edge.append((height, node))

    def root(self) -> bytes:
        nodes = [node for _, node in self.edge]
        while len(nodes) > 1:
            nodes[-2:] = [node_hash(*nodes[-2:])]
        return nodes[0] if nodes else EMPTY


def included(digest: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root that a leaf's proof leads to: from the top, a tree of n leaves splits at the largest power of two < n."""
    if size == 1:
        require(not proof, "the proof is too long")
        return digest
    require(proof, "the proof is too short")
    split = 1 << (size - 1).bit_length() - 1
    if index < split:
        return node_hash(included(digest, index, split, proof[:-1]), proof[-1])
    return node_hash(proof[-1], included(digest, index - split, size - split, proof[:-1]))


def consistent(old: int, size: int, proof: Sequence[bytes], known: bytes | None) -> tuple[bytes, bytes]:
    """The old and the new root that a consistency proof leads to; `known` is the old root while it is a subtree's."""
    if old == size:
        require(len(proof) == (known is None), "the consistency proof has the wrong length")
        return (known, known) if known is not None else (proof[0], proof[0])
    require(proof, "the consistency proof is too short")
    split = 1 << (size - 1).bit_length() - 1
    if old <= split:
        before, now = consistent(old, split, proof[:-1], known)
        return before, node_hash(now, proof[-1])
    before, now = consistent(old - split, size - split, proof[:-1], None)
    return node_hash(proof[-1], before), node_hash(proof[-1], now)
