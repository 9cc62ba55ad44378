"""Restoring: a core brought to where its journal ends, from the newest snapshot that leads there.

Newest whole snapshot first, then every entry after it is decided again, and has to come out as it is written. Snapshots are
a cache: one that this version can't read, or that doesn't lead to the journal's end, is passed over for an older one, and
stays where it is. Where none does, the refusal says from where else a start can be tried.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog

from fabric import versions
from fabric.audit.merkle import Tree, leaf_hash
from fabric.errors import JournalCorrupt
from fabric.journal.replay import REPLAY_DIFFERS, Core, Replay, read_entry
from fabric.journal.store import Journal, Snapshot, TreeHead
from fabric.journal.versions import Unreadable, check_rules, unlabelled

C = TypeVar("C", bound=Core)

log = structlog.get_logger()


TASTE: Final = 1_000
"""After so many entries it is told how long the rest takes."""


@dataclass(slots=True)
class Progress:
    """How far a replay has come: what whoever waits for it goes by."""

    decided: int = 0
    entries: int = 0


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


async def restored(
    journal: Journal, restore: Callable[[bytes | None], C], *, replay_from: int | None, progress: Progress
) -> Restored[C]:
    """Take the journal over, fencing out any former writer, and decide again what its snapshots don't have.

    Args:
        journal: opened here.
        restore: the core from a snapshot's bytes, or a new one from None.
        replay_from: from the newest snapshot after at most so many entries; 0 = from the very beginning. None = from the
            newest, or an older one where what follows it comes out differently.
        progress: kept up to date.

    Raises:
        Conflict: newer rules have taken the journal over: code `journal_newer`.
        JournalCorrupt: what is stored is not what was committed, or deciding an entry again gives something else; then the
            message says how to start from elsewhere.
        Unavailable: the store can't be reached.
    """
    await check_rules(journal)
    await journal.open()
    head = await journal.head()
    tried: list[int] = []
    passed_over: list[str] = []
    at_most = replay_from
    while True:
        snapshot = await journal.load_snapshot(at_most=at_most)
        start = snapshot.size if snapshot else 0
        try:
            core = _from_snapshot(snapshot, restore)
        except Unreadable as error:
            passed_over.append(f"the snapshot at entry {start} {error}")
            at_most = start - 1
            continue
        progress.decided, progress.entries = 0, head.size - start
        try:
            found = await _replayed(journal, core, head, snapshot, passed_over=passed_over, progress=progress)
        except JournalCorrupt as error:
            if error.code != REPLAY_DIFFERS:
                raise
            tried.append(start)
            log.error("replay_failed", snapshot=start, why=str(error))  # noqa: TRY400 - expected: no traceback
            at_most = start - 1
            if replay_from is not None or await journal.load_snapshot(at_most=at_most) is None:
                raise await _stuck(journal, error, head, tried, version=core.rules) from error
        else:
            break
    if tried or replay_from is not None:
        log.warning("replayed", snapshot=found.snapshot_size, entries=head.size, passed_over=tried)
    return found


def _from_snapshot(snapshot: Snapshot | None, restore: Callable[[bytes | None], C]) -> C:
    """The core that a snapshot holds; None = one at the journal's beginning.

    Raises:
        Unreadable: this version can't read it.
    """
    if snapshot is None:
        return restore(None)
    state = unlabelled(snapshot.state)
    try:
        return restore(state)
    except Exception as error:
        raise Unreadable(f"can't be read by this version: {error}") from error


async def _replayed(
    journal: Journal, core: C, head: TreeHead, snapshot: Snapshot | None, *, passed_over: list[str], progress: Progress
) -> Restored[C]:
    """Decide again what follows a snapshot; where others were passed over, say once what that costs.

    Raises:
        JournalCorrupt: it comes out otherwise than it is written.
    """
    tree = Tree(size=snapshot.size, edge=snapshot.edge) if snapshot else Tree()
    start, replay, last = tree.size, Replay(core), None
    began, taste = time.monotonic(), min(TASTE, head.size - start)
    async for entry in journal.read(max(0, start - 1), head.size):
        last = entry
        if entry.seq >= start:
            replay.feed(entry)
            tree.append(leaf_hash(entry.leaf))
        progress.decided = tree.size - start
        if passed_over and progress.decided == taste:
            _tell_cost(passed_over, entries=head.size - start, each_s=(time.monotonic() - began) / max(taste, 1))
            passed_over.clear()
    replay.finish()
    at_us = read_entry(last).at_us if last else 0
    if TreeHead(size=tree.size, root=tree.root()) != head:
        raise JournalCorrupt(f"the journal's entries do not lead to its sealed root at size {head.size}", seq=None)
    return Restored(core, tree, head, at_us, start)


def _tell_cost(passed_over: list[str], *, entries: int, each_s: float) -> None:
    about_s = round(entries * each_s) or 1
    log.warning(
        "snapshots_passed_over",
        why=f"{'; '.join(passed_over)}: {entries:,} entries are decided again, which takes about {about_s} s. Nothing is lost",
        entries=entries,
        about_s=about_s,
    )


async def _stuck(
    journal: Journal, error: JournalCorrupt, head: TreeHead, tried: list[int], *, version: int
) -> JournalCorrupt:
    """No start from there: say from where else one can be tried."""
    if version == versions.BEFORE:
        return JournalCorrupt(
            f"{error}: the journal was begun before {versions.SINCE[1]}, the first release whose journals later ones go on with."
            " Go on with the version that wrote it, or name a new journal in the cluster file; nothing was changed or deleted",
            code=REPLAY_DIFFERS,
            **error.facts,
        )
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
    return JournalCorrupt(
        f"{error}. Replayed from {where}; {head.size} entries are there, and nothing was changed or deleted: {remedy}",
        code=REPLAY_DIFFERS,
        **error.facts,
    )
