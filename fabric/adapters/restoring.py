"""Restoring: a core brought to where its journal ends, from the newest snapshot that leads there.

Newest whole snapshot first, then every entry after it is decided again, and has to come out as it is written. Snapshots are
a cache: one that doesn't lead to the journal's end is passed over for an older one, and stays where it is. Where none does,
the refusal says from where else a start can be tried.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from fabric.adapters.journal import Journal, Snapshot, TreeHead
from fabric.adapters.replay import REPLAY_DIFFERS, Core, Replay, read_entry
from fabric.audit.merkle import Tree, leaf_hash
from fabric.errors import JournalCorrupt

C = TypeVar("C", bound=Core)

log = structlog.get_logger()


class _Unreadable(Exception):
    """A snapshot of another version."""


@dataclass(frozen=True, slots=True)
class Restored(Generic[C]):
    """What a journal comes to."""

    core: C
    tree: Tree
    head: TreeHead
    at_us: int
    """The time of its last entry; 0 = it has none."""
    snapshot_size: int
    """How many entries came from a snapshot."""


async def restored(journal: Journal, restore: Callable[[bytes | None], C], *, replay_from: int | None) -> Restored[C]:
    """Take the journal over, fencing out any former writer, and decide again what its snapshots don't have.

    Args:
        journal: opened here.
        restore: the core from a snapshot's bytes, or a new one from None.
        replay_from: from the newest snapshot after at most so many entries; 0 = from the very beginning. None = from the
            newest, or an older one where what follows it comes out differently.

    Raises:
        JournalCorrupt: what is stored is not what was committed, or deciding an entry again gives something else; then the
            message says how to start from elsewhere.
        Unavailable: the store can't be reached.
    """
    await journal.open()
    head = await journal.head()
    snapshot = await journal.load_snapshot(at_most=replay_from)
    tried: list[int] = []
    while True:
        try:
            found = await _replayed(journal, restore, head, snapshot)
        except (JournalCorrupt, _Unreadable) as error:
            if isinstance(error, JournalCorrupt) and error.code != REPLAY_DIFFERS:
                raise
            tried.append(snapshot.size if snapshot else 0)
            log.error("replay_failed", snapshot=tried[-1], why=str(error))  # noqa: TRY400 - expected: no traceback
            older = await journal.load_snapshot(at_most=tried[-1] - 1) if tried[-1] else None
            unreadable = isinstance(error, _Unreadable) and snapshot is not None
            if replay_from is not None or (older is None and not unreadable):
                raise await _stuck(journal, error, head, tried) from error
            snapshot = older
        else:
            break
    if tried or replay_from is not None:
        log.warning("replayed", snapshot=found.snapshot_size, entries=head.size, passed_over=tried)
    return found


async def _replayed(
    journal: Journal, restore: Callable[[bytes | None], C], head: TreeHead, snapshot: Snapshot | None
) -> Restored[C]:
    """Decide again what follows a snapshot.

    Raises:
        JournalCorrupt: it comes out otherwise than it is written.
    """
    try:
        core = restore(snapshot.state if snapshot else None)
    except Exception as error:
        raise _Unreadable(f"the snapshot can't be read by this version: {error}") from error
    tree = Tree(size=snapshot.size, edge=snapshot.edge) if snapshot else Tree()
    start, replay, last = tree.size, Replay(core), None
    async for entry in journal.read(max(0, start - 1), head.size):
        last = entry
        if entry.seq >= start:
            replay.feed(entry)
            tree.append(leaf_hash(entry.leaf))
    replay.finish()
    at_us = read_entry(last).at_us if last else 0
    if TreeHead(size=tree.size, root=tree.root()) != head:
        raise JournalCorrupt(f"the journal's entries do not lead to its sealed root at size {head.size}", seq=None)
    return Restored(core, tree, head, at_us, start)


async def _stuck(
    journal: Journal, error: JournalCorrupt | _Unreadable, head: TreeHead, tried: list[int]
) -> JournalCorrupt:
    """No start from there: say from where else one can be tried."""
    kept: list[int] = []
    while (found := await journal.load_snapshot(at_most=kept[-1] - 1 if kept else None)) is not None:
        kept.append(found.size)
    left = [size for size in (*kept, 0) if size not in tried]
    where = ", ".join(f"entry {size}" if size else "its very beginning" for size in tried)
    ways = " or ".join(
        f"`fabric up --replay-from {size}` ({f'from the snapshot at entry {size}' if size else 'the whole journal'})"
        for size in left
    )
    first = f"start with {ways}. Where another version wrote it" if left else "if another version wrote it"
    remedy = (
        f"{first}, start that one, end it with `fabric down`, and start this one then; or report this with the journal"
    )
    facts = error.facts if isinstance(error, JournalCorrupt) else {}
    return JournalCorrupt(
        f"{error}. Replayed from {where}; {head.size} entries are there, and nothing was changed or deleted: {remedy}",
        code=REPLAY_DIFFERS,
        **facts,
    )
