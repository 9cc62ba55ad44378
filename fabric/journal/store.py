"""The journal's port: an append-only, hash-committed, fenced log of entries, and snapshots of the state they lead to.

An entry is the canonical JSON of one decision: the event, when, the answer, the transfers and the charging records. Each
entry is a leaf of an RFC 6962 tree; every commit stores the new tree size and root with the entries, in one
transaction. One writer holds the journal: opening it takes a new epoch, and a commit with an older one is refused.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One leaf of the journal."""

    seq: int
    """Counts from 0 without a gap: the leaf's index."""
    leaf: bytes
    """The canonical bytes that are hashed: JSON of seq, at_us, event, outcome, transfers, records."""
    accounts: tuple[str, ...] = ()
    """Whose statement it belongs to: an index for reading, not part of the leaf."""


class TreeHead(msgspec.Struct, frozen=True, kw_only=True):
    """What a commit seals."""

    size: int
    root: bytes


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The encoded state after the first `size` entries, with the tree's right edge, so that replay can start there."""

    size: int
    root: bytes
    edge: tuple[bytes, ...]
    """The roots of the perfect subtrees that make up the tree, largest first."""
    state: bytes


class Journal(Protocol):
    """Where decisions become durable. All methods raise `Unavailable` when the store can't be reached or is full, and
    `JournalCorrupt` when what is stored doesn't hash to what was committed.
    """

    async def exists(self) -> bool:
        """Whether there is something to be read, so that it can be looked at without taking it over."""

    async def open(self) -> int:
        """Take the journal over: the new epoch, greater than any before. The former writer is fenced out from now on."""

    async def head(self) -> TreeHead:
        """The last committed tree head; size 0 for a new journal."""

    async def append(self, entries: Sequence[Entry], head: TreeHead) -> None:
        """Commit the entries and the head they lead to, all or nothing, durably. `Conflict` if fenced out."""

    def read(self, start: int = 0, stop: int | None = None, *, account: str | None = None) -> AsyncIterator[Entry]:
        """Entries with start <= seq < stop in order, of one account if asked."""

    async def leaf_hashes(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        """The 32-byte leaf hashes of a range: what proofs are made from."""

    async def stored_from(self, seq: int) -> int | None:
        """The first entry at or after `seq` that is stored, whether it can be read or not; None = there is none."""

    async def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot; the newest few are kept, older ones dropped."""

    async def load_snapshot(self, *, at_most: int | None = None) -> Snapshot | None:
        """The newest snapshot (after at most so many entries) that is whole and agrees with the journal's own hashes, or None."""

    async def close(self) -> None:
        """Let go."""
