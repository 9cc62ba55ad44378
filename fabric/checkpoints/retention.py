"""Which checkpoints stay, and in what order the others go: first a record says so, then manifests go, then their shards.

So a reader never finds a checkpoint that is half deleted: what a record retired isn't looked at any more, and what a
manifest names is there as long as the manifest is. A writer that was fenced can't append the record, so it deletes
nothing that its successor may need. Whatever a crash leaves undone, the next commit or sweep does.
"""

from typing import Final

import msgspec

from fabric.checkpoints.log import Log, View
from fabric.checkpoints.records import Claim, Manifest, Retirement
from fabric.checkpoints.shelf import Shelf

_EPOCH_DIGITS: Final = 8


def surplus(standing: tuple[Manifest, ...], *, keep: int, every: int) -> tuple[int, ...]:
    """The slots of those that don't stay, of checkpoints that stand, newest first."""
    return tuple(found.slot for found in standing[keep:] if not (every and found.step % every == 0))


def void(view: View, *, claim_slot: int) -> set[int]:
    """Slots that mean nothing any more: retired and not yet deleted, claims before this one, what retired others."""
    old = {slot for slot, found in view.records.items() if slot < claim_slot and isinstance(found, Claim)}
    done = {slot for slot, found in view.records.items() if isinstance(found, Retirement)}
    return old | done | (view.retired & set(view.records))


def after(view: View, manifest: Manifest, *, claim_slot: int, keep: int, every: int) -> Manifest:
    """The manifest as it is appended: at the next slot, and retiring what needn't stay beside it."""
    retires = {*surplus(view.manifests, keep=keep - 1, every=every), *void(view, claim_slot=claim_slot)}
    return msgspec.structs.replace(manifest, slot=view.head + 1, retires=tuple(sorted(retires)))


def clear(log: Log, shelf: Shelf, view: View) -> tuple[str, ...]:
    """Delete what the log says is void; the drafts that went with it."""
    retired = view.retired & set(view.records)
    gone = {found.draft for slot in retired if isinstance(found := view.records[slot], Manifest)}
    log.delete(frozenset(retired))
    gone -= {found.draft for found in view.manifests}
    for draft in gone:
        shelf.delete(draft)
    return tuple(sorted(gone))


def orphans(drafts: set[str], view: View) -> tuple[str, ...]:
    """Drafts that nobody can commit any more: of an epoch before the newest claim's, and named by no manifest.

    `drafts` must have been listed before the log was read.
    """
    claim = view.claim
    if claim is None:
        return ()
    named = {found.draft for found in view.records.values() if isinstance(found, Manifest)}
    return tuple(sorted(draft for draft in drafts - named if 0 <= epoch_of(draft) < claim.epoch))


def epoch_of(draft: str) -> int:
    """The epoch that a draft's id begins with; -1 if it isn't the id of one."""
    digits, dash, _ = draft.partition("-")
    return int(digits) if dash and digits.isdecimal() and len(digits) == _EPOCH_DIGITS else -1
