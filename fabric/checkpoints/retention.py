"""Which checkpoints stay, and in what order the others go: first a record says so, then manifests go, then their shards.

So a reader never finds a checkpoint that is half deleted: what a record retired isn't looked at any more, and what a
manifest names is there as long as the manifest is. A writer that was fenced can't append the record, so it deletes
nothing that its successor may need. Whatever a crash leaves undone, the next commit or sweep does.
"""

from typing import Final

import msgspec

from fabric.checkpoints.claiming import Writer, admitted
from fabric.checkpoints.log import Log, View
from fabric.checkpoints.records import Claim, Manifest, Retirement
from fabric.checkpoints.shelf import Shelf
from fabric.errors import InvalidRequest

_EPOCH_DIGITS: Final = 8


def check_policy(*, keep: int, every: int) -> None:
    """Refuse to keep nothing.

    Raises:
        InvalidRequest: keep is less than 1, or every less than 0.
    """
    if keep < 1 or every < 0:
        raise InvalidRequest(f"keep={keep}, every={every}: keep at least 1, every at least 0", code="keep_invalid")


def staying(standing: tuple[Manifest, ...], *, keep: int, every: int) -> tuple[Manifest, ...]:
    """Those that stay, of checkpoints that stand, newest first."""
    return tuple(found for at, found in enumerate(standing) if at < keep or (every and found.step % every == 0))


def after(view: View, manifest: Manifest, *, claim: Claim, keep: int, every: int) -> Manifest:
    """The manifest as it is appended: at the next slot, with what stays beside it."""
    stay = staying(view.manifests, keep=keep - 1, every=every)
    return msgspec.structs.replace(manifest, slot=view.head + 1, stands=stands(claim, stay))


def stands(claim: Claim, stay: tuple[Manifest, ...]) -> tuple[int, ...]:
    """The slots of the claim that counts and of the checkpoints that stay."""
    return tuple(sorted((claim.slot, *(found.slot for found in stay))))


def retirement(view: View, writer: Writer, *, prefix: str, keep: int, every: int) -> Retirement:
    """The record of an attempt by which all others go; raises like `admitted`."""
    claim = admitted(view, writer)
    return Retirement(
        prefix=prefix,
        slot=view.head + 1,
        epoch=writer.epoch,
        attempt=writer.attempt,
        writer=writer.id,
        stands=stands(claim, staying(view.manifests, keep=keep, every=every)),
    )


def clear(log: Log, shelf: Shelf, view: View) -> None:
    """Delete what the log says is void: records first, then the shards that no other record names."""
    void = view.void
    gone = {found.draft for slot in void if isinstance(found := view.records[slot], Manifest)}
    log.delete(void)
    for draft in gone - {found.draft for found in view.manifests}:
        shelf.delete(draft)


def orphans(drafts: set[str], view: View) -> tuple[str, ...]:
    """Drafts that nobody can commit any more: of an epoch before the newest claim's, and named by no manifest.

    `drafts` must have been listed before the log was read. While a record is damaged nothing is an orphan.
    """
    claim = view.claim
    if claim is None or view.damaged:
        return ()
    named = {found.draft for found in view.records.values() if isinstance(found, Manifest)}
    return tuple(sorted(draft for draft in drafts - named if 0 <= epoch_of(draft) < claim.epoch))


def epoch_of(draft: str) -> int:
    """The epoch that a draft's id begins with; -1 if it isn't the id of one."""
    return age_of(draft)[0]


def age_of(draft: str) -> tuple[int, int]:
    """The epoch and step that a draft's id begins with; (-1, -1) if it isn't the id of one."""
    epoch, step, rest = (*draft.split("-", 2), "", "")[:3]
    if len(epoch) == _EPOCH_DIGITS and epoch.isdecimal() and step.isdecimal() and rest:
        return int(epoch), int(step)
    return -1, -1
