"""A folder made again from a checkpoint of it: whole, or not at all.

Nothing is written through a link, and nothing outside of the folder: what a listing says was checked before (see `listing`).
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from fabric.checkpoints.checkpoints import Checkpoints
from fabric.checkpoints.listing import (
    LARGE,
    LISTING,
    RIGHTS,
    SPARSE,
    Entry,
    check_shards,
    parts_of,
    path_of,
    read,
    target_of,
)
from fabric.checkpoints.records import Manifest
from fabric.errors import CheckpointDamaged, InvalidRequest, Unavailable


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


def is_of_folder(manifest: Manifest) -> bool:
    """Whether a checkpoint is of a folder, and not of what a job's own code saved."""
    return "directory" in manifest.meta


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
