"""A folder as a checkpoint: for commands in any language, which save by writing files and know nothing of the fabric.

`commit_directory` takes the folder as it is at one moment, or says that it was being written to; `restore_directory`
makes it again as it was. Small files share a shard, large ones have their own. Modes and times of modification are kept,
links that stay within the folder too; what can't be kept (a socket, a link that leaves the folder) is named in the
manifest. Owners, hard links and extended attributes are not kept.
"""

import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from fabric.checkpoints.checkpoints import Checkpoints
from fabric.checkpoints.draft import Draft
from fabric.checkpoints.records import Manifest
from fabric.errors import CheckpointDamaged, Conflict, FabricError, InvalidRequest

SMALL_BYTES: Final = 2**20
"""Files below this share shards."""
PACK_BYTES: Final = 64 * 2**20
_LISTING: Final = "listing"
_TRIES: Final = 3
_NAMED_MAX: Final = 20


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing in the folder."""

    path: str
    """Relative, percent-encoded: a file's name may be any bytes."""
    kind: str
    """folder | file | link"""
    mode: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: str = ""
    """Where a link leads, percent-encoded."""
    shard: str = ""
    offset: int = 0


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

    def commit(self, checkpoints: Checkpoints, *, step: int = 0, meta: Mapping[str, Any] | None = None) -> Manifest:
        """`commit_directory`; what is written to the folder from its reading on counts as changed."""
        manifest, self._committed = _taken(checkpoints, self.folder, step=step, meta=meta)
        return manifest

    def restored(self) -> None:
        """The folder is what was committed last, and nobody has begun to write to it."""
        self._committed = entries_of(self.folder)[0]


def entries_of(folder: Path) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """What the folder holds, in order of path, and the paths of what can't be kept. A folder that isn't there is empty."""
    found, left_out = [], []
    for path, about in _walked(folder):
        name = quote_from_bytes(os.fsencode(path.relative_to(folder)))
        mode, mtime_ns = stat.S_IMODE(about.st_mode), about.st_mtime_ns
        if stat.S_ISDIR(about.st_mode):
            found.append(Entry(path=name, kind="folder", mode=mode))
        elif stat.S_ISREG(about.st_mode):
            found.append(Entry(path=name, kind="file", mode=mode, mtime_ns=mtime_ns, size=about.st_size))
        elif stat.S_ISLNK(about.st_mode) and _stays(path, folder):
            target = quote_from_bytes(os.fsencode(path.readlink()))
            found.append(Entry(path=name, kind="link", target=target))
        else:
            left_out.append(name)
    return tuple(sorted(found, key=lambda entry: entry.path)), tuple(sorted(left_out))


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
            placed = _packed(draft, folder, entries)
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
        draft.put(_LISTING, msgspec.json.encode(placed))
        about = {"directory": {"entries": len(entries), "left_out": list(left_out[:_NAMED_MAX])}}
        return checkpoints.commit(draft, meta={**(meta or {}), **about}), entries
    raise Conflict(
        f"{folder} was written to while it was saved, {_TRIES} times: write files beside their place and rename them, and"
        " be quiet for a moment after a save",
        code="directory_busy",
    )


def is_of_folder(manifest: Manifest) -> bool:
    """Whether a checkpoint is of a folder, and not of what a job's own code saved."""
    return "directory" in manifest.meta


def _walked(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        for entry in os.scandir(folder):
            about = entry.stat(follow_symlinks=False)
            yield Path(entry.path), about
            if stat.S_ISDIR(about.st_mode):
                yield from _walked(Path(entry.path))
    except FileNotFoundError:
        return


def _stays(path: Path, folder: Path) -> bool:
    """Whether a link leads to a place within the folder, by a relative path."""
    target = path.readlink()
    reached = os.path.normpath(path.parent / target)
    return not target.is_absolute() and Path(reached).is_relative_to(os.path.normpath(folder))


def _packed(draft: Draft, folder: Path, entries: tuple[Entry, ...]) -> list[Entry]:
    """Put the contents of all files; the entries, with where their contents are."""
    placed, pack, number = [], bytearray(), 0
    for at, entry in enumerate(entries):
        path = folder / os.fsdecode(unquote_to_bytes(entry.path))
        if entry.kind != "file":
            placed.append(entry)
        elif entry.size >= SMALL_BYTES:
            shard = draft.put(f"file-{at:08d}", path)
            if shard.size != entry.size:
                raise Conflict(f"{path} changed while it was saved", code="file_changed")
            placed.append(msgspec.structs.replace(entry, shard=shard.name))
        else:
            data = path.read_bytes()
            if len(data) != entry.size:
                raise Conflict(f"{path} changed while it was saved", code="file_changed")
            if pack and len(pack) + len(data) > PACK_BYTES:
                draft.put(f"pack-{number:06d}", bytes(pack))
                pack, number = bytearray(), number + 1
            placed.append(msgspec.structs.replace(entry, shard=f"pack-{number:06d}", offset=len(pack)))
            pack += data
    draft.put(f"pack-{number:06d}", bytes(pack))
    return placed


def _unpack(checkpoints: Checkpoints, manifest: Manifest, folder: Path) -> None:
    """Make a new folder of it. Links come last, so that nothing is ever written through one."""
    if not is_of_folder(manifest):
        raise InvalidRequest(
            f"the checkpoint of step {manifest.step} is not of a directory: it was saved by the job's own code",
            code="not_a_directory_checkpoint",
        )
    try:
        entries = msgspec.json.decode(checkpoints.read(manifest, _LISTING), type=list[Entry])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointDamaged(f"the listing of step {manifest.step} says nothing: {error}") from None
    packs: dict[str, bytes] = {}
    folder.mkdir(parents=True)
    for entry in sorted(entries, key=lambda entry: (entry.kind == "link", entry.path.count("/"))):
        path = folder / _safe(entry.path)
        if entry.kind == "folder":
            path.mkdir()
        elif entry.kind == "link":
            path.symlink_to(os.fsdecode(unquote_to_bytes(entry.target)))
            if not _stays(path, folder):
                path.unlink()
        elif entry.shard.startswith("file-"):
            checkpoints.fetch(manifest, entry.shard, path)
        else:
            if entry.shard not in packs:
                packs = {entry.shard: checkpoints.read(manifest, entry.shard)}
            path.write_bytes(packs[entry.shard][entry.offset : entry.offset + entry.size])
    _touch(folder, entries)


def _touch(folder: Path, entries: list[Entry]) -> None:
    """Modes and times, those of folders after what is in them."""
    for entry in sorted(entries, key=lambda entry: entry.path.count("/"), reverse=True):
        path = folder / _safe(entry.path)
        if entry.kind != "link":
            path.chmod(entry.mode)
        if entry.kind == "file":
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))


def _safe(path: str) -> Path:
    """The path of an entry, which leads nowhere but into the folder.

    Raises:
        CheckpointDamaged: it would; the listing was not written by this module.
    """
    found = Path(os.fsdecode(unquote_to_bytes(path)))
    if found.is_absolute() or not found.parts or ".." in found.parts or "\0" in str(found):
        raise CheckpointDamaged(f"the listing names {path}, which is not in the folder")
    return found


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
