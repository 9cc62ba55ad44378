"""A folder as a checkpoint: for commands in any language, which save by writing files and know nothing of the fabric.

`commit_directory` takes the folder as it is at one moment, or says that it was being written to; `restore_directory` (see
`unpacking`) makes it again as it was. Small files share a shard, large ones have their own. Modes and times of modification
are kept, links that stay within the folder too; what can't be kept (a socket, a link that leaves the folder) is named in the
manifest. Of a file with holes what it holds is kept, and its holes come back. Owners, hard links, extended attributes and
set-user-id bits are not kept.
"""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final

import msgspec

from fabric.checkpoints.checkpoints import Checkpoints
from fabric.checkpoints.draft import Draft
from fabric.checkpoints.holes import Extent, extents_of, is_sparse
from fabric.checkpoints.listing import LARGE, LISTING, LISTING_BYTES_MAX, PACK, SPARSE, Entry, entries_of, path_of
from fabric.checkpoints.records import Manifest
from fabric.errors import Conflict, FabricError, InvalidRequest

SMALL_BYTES: Final = 2**20
"""Files below this share shards."""
PACK_BYTES: Final = 64 * 2**20
_TRIES: Final = 3
_NAMED_MAX: Final = 20


def commit_directory(
    checkpoints: Checkpoints, folder: Path, *, step: int = 0, meta: Mapping[str, Any] | None = None
) -> Manifest:
    """Commit the folder as it is now: durable on return.

    Raises:
        Conflict: it was written to while it was read, several times over (`directory_busy`); or this attempt is fenced.
        Unavailable: the store refuses; what was committed before is untouched.
    """
    return taken(checkpoints, folder, step=step, meta=meta)[0]


def taken(
    checkpoints: Checkpoints,
    folder: Path,
    *,
    step: int,
    meta: Mapping[str, Any] | None = None,
    seen: tuple[Entry, ...] | None = None,
) -> tuple[Manifest, tuple[Entry, ...]]:
    """Commit the folder; also what it held in the moment of which the checkpoint is. Where somebody may be writing, only what
    was `seen` when nobody was.
    """
    for _ in range(_TRIES if seen is None else 1):
        entries, left_out = entries_of(folder)
        if seen is not None and entries != seen:
            break
        draft = checkpoints.begin(step)
        try:
            placed = packed(draft, lambda entry: folder / path_of(entry), entries)
        except (OSError, Conflict) as error:
            checkpoints.abandon(draft)
            if isinstance(error, Conflict) and error.code != "file_changed":
                raise
            continue
        except FabricError:
            checkpoints.abandon(draft)
            raise
        if entries_of(folder)[0] != entries:
            checkpoints.abandon(draft)
            continue
        return committed(checkpoints, draft, placed, left_out, meta=meta), entries
    raise Conflict(
        f"{folder} was written to while it was saved: write files beside their place and rename them, and"
        " be quiet for a moment after a save",
        code="directory_busy",
    )


def committed(
    checkpoints: Checkpoints,
    draft: Draft,
    placed: list[Entry],
    left_out: tuple[str, ...],
    *,
    meta: Mapping[str, Any] | None = None,
) -> Manifest:
    draft.put(LISTING, _listing_of(placed))
    about = {"directory": {"entries": len(placed), "left_out": list(left_out[:_NAMED_MAX])}}
    return checkpoints.commit(draft, meta={**(meta or {}), **about})


def _listing_of(placed: list[Entry]) -> bytes:
    listing = msgspec.json.encode(placed)
    if len(listing) > LISTING_BYTES_MAX:
        raise InvalidRequest(
            f"the names in the folder take {len(listing)} bytes, and may take {LISTING_BYTES_MAX}: use fewer or shorter ones",
            code="checkpoint_too_many_files",
            limit_bytes=LISTING_BYTES_MAX,
        )
    return listing


def packed(
    draft: Draft,
    place: Callable[[Entry], Path],
    entries: tuple[Entry, ...],
    *,
    sent: Mapping[str, Entry] = MappingProxyType({}),
) -> list[Entry]:
    """Put the contents of all files but those that were sent, each read from its place; the entries, with where their
    contents are.
    """
    placed, pack, number = [], bytearray(), 0
    for at, entry in enumerate(entries):
        if entry.kind != "file":
            placed.append(entry)
            continue
        if entry.path in sent:
            there = sent[entry.path]
            placed.append(msgspec.structs.replace(entry, shard=there.shard, extents=there.extents))
            continue
        path = place(entry)
        if entry.size >= SMALL_BYTES:
            placed.append(_put_large(draft, path, entry, at=at))
        else:
            with opened(path) as file:
                data = file.read(entry.size + 1)
            if len(data) != entry.size:
                raise changed(path)
            if pack and len(pack) + len(data) > PACK_BYTES:
                draft.put(f"{PACK}{number:06d}", bytes(pack))
                pack, number = bytearray(), number + 1
            placed.append(msgspec.structs.replace(entry, shard=f"{PACK}{number:06d}", offset=len(pack)))
            pack += data
    draft.put(f"{PACK}{number:06d}", bytes(pack))
    return placed


def _put_large(draft: Draft, path: Path, entry: Entry, *, at: int) -> Entry:
    """Put a file into a shard of its own; of one with holes, what it holds, into as many as it takes."""
    with opened(path) as file:
        if is_sparse(os.fstat(file.fileno())):
            extents = extents_of(file.fileno(), entry.size)
            for number, part in enumerate(parts(file, extents, path)):
                draft.put(f"{SPARSE}{at:08d}-{number:06d}", part)
            return msgspec.structs.replace(entry, shard=f"{SPARSE}{at:08d}", extents=extents)
    shard = draft.put(f"{LARGE}{at:08d}", path)
    if shard.size != entry.size:
        raise changed(path)
    return msgspec.structs.replace(entry, shard=shard.name)


def parts(file: IO[bytes], extents: tuple[Extent, ...], path: Path) -> Iterator[bytes]:
    """What lies in the extents, one after the other, in parts that fit the memory."""
    part = bytearray()
    for start, length in extents:
        file.seek(start)
        left = length
        while left:
            data = file.read(min(left, PACK_BYTES - len(part)))
            if not data:
                raise changed(path)
            part += data
            left -= len(data)
            if len(part) == PACK_BYTES:
                yield bytes(part)
                part = bytearray()
    if part:
        yield bytes(part)


def opened(path: Path) -> IO[bytes]:
    """A plain file, open: nothing else that has come into its place."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise changed(path)
    return os.fdopen(handle, "rb", buffering=0)


def changed(path: Path) -> Conflict:
    return Conflict(f"{path} changed while it was saved", code="file_changed")
