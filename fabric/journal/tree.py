"""The log's tree, for proofs: from the roots of whole tiles that the follower keeps, and leaf hashes of the journal.

However long the journal is, a proof reads the leaf hashes of the tiles in which it begins and ends, and no others. That the
whole leads to the sealed root is checked each time that it grows; tiles that don't are read again from the journal.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from fabric.audit.merkle import TILE, TiledTree, Tree
from fabric.journal import integrity
from fabric.journal.store import TreeHead
from fabric.journal.tables import TILES, DamagedTables, NoTables, Tables, select
from fabric.system.client_threads import aside

TILES_READ: Final = 64
"""Tiles whose hashes are read at once where nobody has kept their roots."""


class Source(Protocol):
    """The journal, as far as it is read here."""

    async def head(self) -> TreeHead:
        """The last committed tree head."""

    async def leaf_hashes(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        """The leaf hashes of a range."""


class JournalTree:
    """A journal's tree, as large as the journal was when it was last looked at."""

    def __init__(self, journal: Source, tables: Tables | None = None) -> None:
        """Nothing is read yet.

        Args:
            journal: read only.
            tables: where the follower keeps tiles; None = nowhere.
        """
        self._journal = journal
        self._tables = tables
        self._tree = TiledTree()
        self._turn = asyncio.Lock()

    async def grow(self) -> TreeHead:
        """The newest head, with the tree grown to it.

        Raises:
            JournalCorrupt: the stored leaf hashes don't lead to the sealed root.
        """
        async with self._turn:
            head = await self._journal.head()
            if await self._grown(head, self._tables) or (self._tables is not None and await self._grown(head, None)):
                return head
            raise integrity.corrupt(f"{head.size} leaf hashes do not lead to the sealed root", seq=None)

    async def root(self, size: int) -> bytes:
        """The root of the first `size` entries."""
        async with self._turn:
            await self._hold(size)
            return self._tree.root(size)

    async def inclusion(self, seqs: Sequence[int], *, size: int) -> list[tuple[bytes, ...]]:
        """What shows that these entries, a page of them at most, are among the first `size`."""
        async with self._turn:
            await self._hold(*seqs, size)
            return await aside(_inclusion, self._tree, seqs, size)

    async def consistency(self, old_size: int, *, size: int) -> tuple[bytes, ...]:
        """What shows that the first `old_size` entries are a prefix of the first `size`."""
        async with self._turn:
            await self._hold(old_size, size)
            return self._tree.consistency(old_size, size=size)

    async def _grown(self, head: TreeHead, tables: Tables | None) -> bool:
        whole = head.size // TILE
        roots = await self._roots(self._tree.tiles, whole, tables)
        rest = await self._journal.leaf_hashes(whole * TILE, head.size)
        await aside(self._tree.grow, roots, rest)
        if self._tree.size == head.size and self._tree.root() == head.root:
            return True
        self._tree = TiledTree()
        return False

    async def _roots(self, start: int, stop: int, tables: Tables | None) -> list[bytes]:
        kept = await self._kept(start, stop, tables) if start < stop else {}
        roots: list[bytes] = []
        while (tile := start + len(roots)) < stop:
            if tile in kept:
                roots.append(kept[tile])
                continue
            end = min(tile + TILES_READ, stop, min((each for each in kept if each > tile), default=stop))
            hashes = await self._journal.leaf_hashes(tile * TILE, end * TILE)
            roots += await aside(_tile_roots, hashes)
            if len(roots) < end - start:
                raise integrity.corrupt(f"entry {tile * TILE + len(hashes)} is missing", seq=tile * TILE + len(hashes))
        return roots

    async def _kept(self, start: int, stop: int, tables: Tables | None) -> dict[int, bytes]:
        if tables is None:
            return {}
        try:
            where = {"tile >= ?": (start,), "tile < ?": (stop,)}
            (found,) = await tables.read(select("tile, root", TILES, where, order="tile", limit=stop - start))
        except (NoTables, DamagedTables):
            return {}
        return {tile: bytes(root) for tile, root in found}

    async def _hold(self, *leaves: int) -> None:
        for tile in self._tree.missing(*leaves):
            hashes = await self._journal.leaf_hashes(tile * TILE, (tile + 1) * TILE)
            if not await aside(self._tree.hold, tile, hashes):
                raise integrity.corrupt(
                    f"the leaf hashes from entry {tile * TILE} on don't lead to the sealed root", seq=None
                )


def _inclusion(tree: TiledTree, seqs: Sequence[int], size: int) -> list[tuple[bytes, ...]]:
    return [tree.inclusion(seq, size=size) for seq in seqs]


def _tile_roots(hashes: list[bytes]) -> list[bytes]:
    """The roots of the whole tiles that they make."""
    roots: list[bytes] = []
    for start in range(0, len(hashes) - TILE + 1, TILE):
        tree = Tree()
        tree.extend(hashes[start : start + TILE])
        roots.append(tree.root())
    return roots
