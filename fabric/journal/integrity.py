"""What every journal checks, whatever it is stored in: rows against their hashes, hashes against the sealed root.

A journal that doesn't hash to what was committed is never repaired by guessing: the error names the first bad entry and
what to do.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final

import msgspec

from fabric.audit.merkle import HASH_BYTES, Tree, leaf_hash
from fabric.errors import Conflict, JournalCorrupt, Unavailable
from fabric.journal.store import Entry, Snapshot, TreeHead

SNAPSHOTS_KEPT: Final = 3
ROWS_PER_READ: Final = 1_000

_REMEDY: Final = (
    "stop the gate, keep a copy of the store as it is, and restore the journal from a backup or replica that"
    " `fabric audit verify` passes; nothing was guessed or repaired"
)


def corrupt(what: str, *, seq: int | None) -> JournalCorrupt:
    """The error for a store that doesn't hold what was committed."""
    return JournalCorrupt(f"the journal is damaged: {what}. Remedy: {_REMEDY}", seq=seq)


def full(reason: str) -> Unavailable:
    """The error for a store that can't be written or reached now. Nothing was acknowledged; asking again is safe."""
    return Unavailable(
        f"the journal can't be written or read: {reason}. Nothing was acknowledged: free space or mend the store, and retry",
        code="journal_unavailable",
        reason=reason,
    )


def fenced(*, epoch: int, found: int | None) -> Conflict:
    """The error for a writer that another one has replaced."""
    return Conflict(
        f"another writer has taken the journal over (epoch {found}, ours was {epoch}): this one must stop",
        code="writer_fenced",
        epoch=epoch,
        found=found,
    )


def checked(entry: Entry, *, stored_hash: bytes, expected_seq: int | None) -> Entry:
    """The entry, if it is the one that was committed.

    Raises:
        JournalCorrupt: its bytes don't hash to the stored leaf hash, or one is missing before it.
    """
    if expected_seq is not None and entry.seq != expected_seq:
        raise corrupt(f"entry {expected_seq} is missing", seq=expected_seq)
    if not isinstance(entry.leaf, bytes) or leaf_hash(entry.leaf) != stored_hash:
        raise corrupt(f"entry {entry.seq} does not hash to its leaf hash", seq=entry.seq)
    return entry


def check_root(hashes: Sequence[bytes], head: TreeHead) -> Tree:
    """The tree of these leaf hashes, if it is the one that was sealed.

    Raises:
        JournalCorrupt: too few, or another root; `facts["seq"]` is None where hashes alone can't tell which.
    """
    if len(hashes) != head.size:
        missing = min(len(hashes), head.size)
        raise corrupt(f"{head.size} entries were sealed, {len(hashes)} are stored", seq=missing)
    tree = Tree()
    for seq, digest in enumerate(hashes):
        if len(digest) != HASH_BYTES:
            raise corrupt(f"the leaf hash of entry {seq} has {len(digest)} bytes", seq=seq)
        tree.append(digest)
    if tree.root() != head.root:
        raise corrupt(f"the {head.size} leaf hashes do not lead to the sealed root {head.root.hex()}", seq=None)
    return tree


def snapshot_digest(snapshot: Snapshot) -> bytes:
    """What is stored beside a snapshot, to know later whether it is whole."""
    digest = sha256(f"{snapshot.size}\n{len(snapshot.edge)}\n".encode())
    for part in (snapshot.root, *snapshot.edge, snapshot.state):
        digest.update(part)
    return digest.digest()


def agrees(snapshot: Snapshot, *, digest: bytes, hashes: Sequence[bytes]) -> bool:
    """Whether the snapshot is whole and says the same as the first `size` leaf hashes of the journal."""
    if snapshot.size > len(hashes) or snapshot_digest(snapshot) != digest:
        return False
    tree = Tree()
    tree.extend(hashes[: snapshot.size])
    return tree.root() == snapshot.root and tree.edge == snapshot.edge


def split_edge(joined: bytes) -> tuple[bytes, ...]:
    return tuple(joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES))


def check_order(entries: Iterable[Entry], *, start: int, head: TreeHead) -> None:
    """Assert that a batch continues the journal: our own mistake if not."""
    expected = start
    for entry in entries:
        assert entry.seq == expected, f"entry {entry.seq} where {expected} comes next"
        expected += 1
    assert head.size == expected, f"a head of {head.size} over {expected} entries"


def in_order(rows: Iterable[tuple[int, bytes]], *, start: int) -> list[bytes]:
    """The hashes of consecutive entries.

    Raises:
        JournalCorrupt: one is missing.
    """
    hashes: list[bytes] = []
    for seq, digest in rows:
        if seq != start + len(hashes):
            raise corrupt(f"entry {start + len(hashes)} is missing", seq=start + len(hashes))
        if not isinstance(digest, bytes):
            raise corrupt(f"the leaf hash of entry {seq} can't be read", seq=seq)
        hashes.append(digest)
    return hashes


def join_accounts(accounts: tuple[str, ...]) -> str:
    return msgspec.json.encode(accounts).decode()


def split_accounts(stored: str, *, seq: int) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(stored, type=tuple[str, ...])
    except (msgspec.DecodeError, TypeError, UnicodeError) as error:
        raise corrupt(f"the accounts of entry {seq} can't be read", seq=seq) from error
