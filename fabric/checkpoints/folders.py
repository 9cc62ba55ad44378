"""A folder as a checkpoint: for commands in any language, which save by writing files and know nothing of the fabric.

`commit_directory` takes the folder as it is at one moment, or says that it was being written to; `restore_directory`
makes it again as it was. Small files share a shard, large ones have their own. Modes and times of modification are kept,
links that stay within the folder too; what can't be kept (a socket, a link that leaves the folder) is named in the
manifest. Of a file with holes what it holds is kept, and its holes come back. Owners, hard links, extended attributes and
set-user-id bits are not kept.
"""

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from fabric.checkpoints.checkpoints import Checkpoints
from fabric.checkpoints.cut import Cut
from fabric.checkpoints.draft import Draft
from fabric.checkpoints.holes import Extent, extents_of, is_sparse
from fabric.checkpoints.listing import (
    LARGE,
    LISTING,
    LISTING_BYTES_MAX,
    PACK,
    RIGHTS,
    SPARSE,
    Entry,
    check_shards,
    entries_of,
    parts_of,
    path_of,
    read,
    target_of,
)
from fabric.checkpoints.records import Manifest
from fabric.errors import CheckpointDamaged, Conflict, FabricError, InvalidRequest, Unavailable

SMALL_BYTES: Final = 2**20
"""Files below this share shards."""
PACK_BYTES: Final = 64 * 2**20
_TRIES: Final = 3
_NAMED_MAX: Final = 20


@dataclass(slots=True)
class Watch:
    """Tells when a folder is worth a commit: it has changed, and nobody has written to it for a while."""

    folder: Path
    quiet_s: float = 2.0
    _committed: tuple[Entry, ...] = ()
    _seen: tuple[Entry, ...] = ()
    _since: float = 0.0

    def is_due(self) -> bool:
        """Look at the folder: true when it has been the same for `quiet_s`, and isn't what was committed last."""
        now, found = time.monotonic(), entries_of(self.folder)[0]
        if found != self._seen:
            self._seen, self._since = found, now
        return found not in {self._committed, ()} and now - self._since >= self.quiet_s

    def changed(self) -> bool:
        """Whether it holds something that isn't what was committed last, quiet or not."""
        return entries_of(self.folder)[0] not in {self._committed, ()}

    @property
    def is_unsaved(self) -> bool:
        """Whether the last look has shown something that isn't what was committed last."""
        return self._seen not in {self._committed, ()}

    def commit(self, checkpoints: Checkpoints, *, step: int = 0, meta: Mapping[str, Any] | None = None) -> Manifest:
        """`commit_directory`; what is written to the folder from its reading on counts as changed."""
        manifest, self._committed = _taken(checkpoints, self.folder, step=step, meta=meta)
        return manifest

    def commit_cut(self, checkpoints: Checkpoints, cut: Cut, *, step: int = 0) -> Manifest:
        """Commit what the folder held when the cut was finished: durable on return.

        Raises:
            Conflict: this attempt is fenced.
            Unavailable: the store refuses; what was committed before is untouched.
        """
        draft = checkpoints.begin(step)
        try:
            placed = _packed(draft, cut.place, cut.entries)
        except (FabricError, OSError):
            checkpoints.abandon(draft)
            raise
        manifest = _committed(checkpoints, draft, placed, cut.left_out)
        self._committed = cut.entries
        return manifest

    def restored(self) -> None:
        """The folder is what was committed last, and nobody has begun to write to it."""
        self._committed = entries_of(self.folder)[0]


def commit_directory(
    checkpoints: Checkpoints, folder: Path, *, step: int = 0, meta: Mapping[str, Any] | None = None
) -> Manifest:
    """Commit the folder as it is now: durable on return.

    Raises:
        Conflict: it was written to while it was read, several times over (`directory_busy`); or this attempt is fenced.
        Unavailable: the store refuses; what was committed before is untouched.
    """
    return _taken(checkpoints, folder, step=step, meta=meta)[0]


def restore_directory(checkpoints: Checkpoints, folder: Path) -> Manifest | None:
    """Make the folder what was committed last, replacing what is there; None (and nothing done) if nothing was.

    Raises:
        CheckpointDamaged: no checkpoint is whole.
        InvalidRequest: the newest checkpoint is not of a folder.
    """
    beside = folder.absolute().with_name(f".{folder.name}.{secrets.token_hex(6)}")

    def unpack(manifest: Manifest) -> None:
        shutil.rmtree(beside, ignore_errors=True)
        _unpack(checkpoints, manifest, beside)

    try:
        manifest = checkpoints.newest_passing(unpack)
        if manifest is not None:
            _swap(beside, folder.absolute())
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return manifest


def _taken(
    checkpoints: Checkpoints, folder: Path, *, step: int, meta: Mapping[str, Any] | None
) -> tuple[Manifest, tuple[Entry, ...]]:
    """Commit the folder; also what it held in the moment of which the checkpoint is."""
    for _ in range(_TRIES):
        entries, left_out = entries_of(folder)
        draft = checkpoints.begin(step)
        try:
            placed = _packed(draft, lambda entry: folder / path_of(entry), entries)
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
        return _committed(checkpoints, draft, placed, left_out, meta=meta), entries
    raise Conflict(
        f"{folder} was written to while it was saved, {_TRIES} times: write files beside their place and rename them, and"
        " be quiet for a moment after a save",
        code="directory_busy",
    )


def _committed(
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


def is_of_folder(manifest: Manifest) -> bool:
    """Whether a checkpoint is of a folder, and not of what a job's own code saved."""
    return "directory" in manifest.meta


def _packed(draft: Draft, place: Callable[[Entry], Path], entries: tuple[Entry, ...]) -> list[Entry]:
    """Put the contents of all files, each read from its place; the entries, with where their contents are."""
    placed, pack, number = [], bytearray(), 0
    for at, entry in enumerate(entries):
        if entry.kind != "file":
            placed.append(entry)
            continue
        path = place(entry)
        if entry.size >= SMALL_BYTES:
            placed.append(_put_large(draft, path, entry, at=at))
        else:
            with _opened(path) as file:
                data = file.read(entry.size + 1)
            if len(data) != entry.size:
                raise _changed(path)
            if pack and len(pack) + len(data) > PACK_BYTES:
                draft.put(f"{PACK}{number:06d}", bytes(pack))
                pack, number = bytearray(), number + 1
            placed.append(msgspec.structs.replace(entry, shard=f"{PACK}{number:06d}", offset=len(pack)))
            pack += data
    draft.put(f"{PACK}{number:06d}", bytes(pack))
    return placed


def _put_large(draft: Draft, path: Path, entry: Entry, *, at: int) -> Entry:
    """Put a file into a shard of its own; of one with holes, what it holds, into as many as it takes."""
    with _opened(path) as file:
        if is_sparse(os.fstat(file.fileno())):
            extents = extents_of(file.fileno(), entry.size)
            for number, part in enumerate(_parts(file, extents, path)):
                draft.put(f"{SPARSE}{at:08d}-{number:06d}", part)
            return msgspec.structs.replace(entry, shard=f"{SPARSE}{at:08d}", extents=extents)
    shard = draft.put(f"{LARGE}{at:08d}", path)
    if shard.size != entry.size:
        raise _changed(path)
    return msgspec.structs.replace(entry, shard=shard.name)


def _parts(file: IO[bytes], extents: tuple[Extent, ...], path: Path) -> Iterator[bytes]:
    """What lies in the extents, one after the other, in parts that fit the memory."""
    part = bytearray()
    for start, length in extents:
        file.seek(start)
        left = length
        while left:
            data = file.read(min(left, PACK_BYTES - len(part)))
            if not data:
                raise _changed(path)
            part += data
            left -= len(data)
            if len(part) == PACK_BYTES:
                yield bytes(part)
                part = bytearray()
    if part:
        yield bytes(part)


def _opened(path: Path) -> IO[bytes]:
    """A plain file, open: nothing else that has come into its place."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _changed(path)
    return os.fdopen(handle, "rb", buffering=0)


def _changed(path: Path) -> Conflict:
    return Conflict(f"{path} changed while it was saved", code="file_changed")


def _unpack(checkpoints: Checkpoints, manifest: Manifest, folder: Path) -> None:
    """Make a new folder of it. Links come last, so that nothing is ever written through one."""
    if not is_of_folder(manifest):
        raise InvalidRequest(
            f"the checkpoint of step {manifest.step} is not of a directory: it was saved by the job's own code",
            code="not_a_directory_checkpoint",
        )
    check_shards(manifest)
    entries = read(checkpoints.read(manifest, LISTING), manifest)
    _check_room(manifest, folder)
    try:
        folder.mkdir(parents=True)
        _make(checkpoints, manifest, folder, entries)
        _touch(folder, entries)
        _cut_loose(folder, entries)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _no_room(manifest, folder) from error
        raise CheckpointDamaged(f"the checkpoint of step {manifest.step} can't be made here: {error}") from error


def _make(checkpoints: Checkpoints, manifest: Manifest, folder: Path, entries: list[Entry]) -> None:
    packs: dict[str, bytes] = {}
    parts = parts_of(manifest)
    for entry in entries:
        path = folder / path_of(entry)
        if entry.kind == "folder":
            path.mkdir()
        elif entry.kind == "link":
            path.symlink_to(target_of(entry))
        elif entry.shard.startswith(LARGE):
            checkpoints.fetch(manifest, entry.shard, path)
        elif entry.shard.startswith(SPARSE):
            held = (checkpoints.read(manifest, name) for name in parts.get(entry.shard, ()))
            _make_sparse(path, entry, held)
        elif not entry.shard:
            path.touch()
        else:
            if entry.shard not in packs:
                packs = {entry.shard: checkpoints.read(manifest, entry.shard)}
            data = packs[entry.shard][entry.offset : entry.offset + entry.size]
            if len(data) != entry.size:
                raise CheckpointDamaged(f"{entry.shard} of step {manifest.step} ends before {entry.path[:200]!r} does")
            path.write_bytes(data)


def _make_sparse(path: Path, entry: Entry, held: Iterator[bytes]) -> None:
    """Write what the file holds to where it was, and leave its holes."""
    data = memoryview(b"")
    with path.open("xb", buffering=0) as file:
        for start, length in entry.extents:
            file.seek(start)
            left = length
            while left:
                data = data or memoryview(next(held))
                written = file.write(data[:left])
                data, left = data[written:], left - written
        file.truncate(entry.size)


def _touch(folder: Path, entries: list[Entry]) -> None:
    """Modes and times, those of folders after what is in them."""
    for entry in sorted(entries, key=lambda entry: entry.path.count("/"), reverse=True):
        path = folder / path_of(entry)
        if entry.kind != "link":
            path.chmod(entry.mode & RIGHTS)
        if entry.kind == "file":
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))


def _cut_loose(folder: Path, entries: list[Entry]) -> None:
    """Remove links that lead out of the folder, be it over others."""
    inside = folder.resolve()
    for entry in entries:
        path = folder / path_of(entry)
        if entry.kind == "link":
            try:
                stays = not target_of(entry).is_absolute() and path.resolve().is_relative_to(inside)
            except RuntimeError:  # it leads to itself
                stays = True
            if not stays:
                path.unlink()


def _check_room(manifest: Manifest, folder: Path) -> None:
    """Begin nothing that the disk can't hold.

    Raises:
        Unavailable: `node_full`.
    """
    if manifest.bytes > _free_bytes(folder):
        raise _no_room(manifest, folder)


def _no_room(manifest: Manifest, folder: Path) -> Unavailable:
    free = _free_bytes(folder)
    return Unavailable(
        f"the checkpoint of step {manifest.step} has {manifest.bytes} bytes, and {free} are free at {folder}: free some"
        " space there, or let the job go to another node",
        code="node_full",
        size_bytes=manifest.bytes,
        free_bytes=free,
    )


def _free_bytes(folder: Path) -> int:
    """Where the folder is, or will be."""
    there = next(above for above in (folder, *folder.parents) if above.exists())
    return shutil.disk_usage(there).free


def _swap(new: Path, folder: Path) -> None:
    """Put the new folder in the place of the old one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}")
        folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        new.rename(folder)
