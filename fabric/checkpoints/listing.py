"""What a folder holds, as a checkpoint of it tells: read from a disk, and checked before anything is made of it again.

A listing lies where a job's own code can write. So nothing of it is believed that no folder could have: each name is one of
its own, in a folder of the listing, and each byte of a shard belongs to one file.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from fabric.checkpoints.holes import EXTENTS_MAX, Extent
from fabric.checkpoints.records import Manifest
from fabric.errors import CheckpointDamaged, InvalidRequest

LISTING: Final = "listing"
ENTRIES_MAX: Final = 200_000
"""Files, folders and links in one folder: each is looked at several times a second."""
DEPTH_MAX: Final = 200
LISTING_BYTES_MAX: Final = 256 * 2**20
PACK_BYTES_MAX: Final = 80 * 2**20
"""Of a shard that is read into memory: small files, or a part of a sparse one."""
LARGE: Final = "file-"
SPARSE: Final = "sparse-"
PACK: Final = "pack-"
MODES_MAX: Final = 0o7777
RIGHTS: Final = 0o1777
"""What is given back of a mode: nobody gets another's rights by a file that was restored."""
_NAME_BYTES_MAX: Final = 255
_SIZE_MAX: Final = 2**63 - 1
_MTIME_NS_MAX: Final = 2**62


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
    extents: tuple[Extent, ...] = ()
    """Of a sparse file: where what the shards hold lies in it. Their names begin with `shard`."""


def entries_of(folder: Path) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """What the folder holds, in order of path, and the paths of what can't be kept. A folder that isn't there is empty.

    Raises:
        InvalidRequest: there is too much in it.
    """
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


def _walked(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All that is below the folder; what comes or goes meanwhile, or not."""
    waiting, count = [(folder, 0)], 0
    while waiting:
        where, depth = waiting.pop()
        if depth > DEPTH_MAX:
            raise InvalidRequest(
                f"{folder} has folders in folders more than {DEPTH_MAX} deep: lay them out flatter",
                code="checkpoint_too_deep",
                limit=DEPTH_MAX,
            )
        try:
            for entry in list(os.scandir(where)):
                about = entry.stat(follow_symlinks=False)
                count += 1
                if count > ENTRIES_MAX:
                    raise InvalidRequest(
                        f"{folder} holds more than {ENTRIES_MAX} files, and a checkpoint at most {ENTRIES_MAX}: pack small"
                        " files together, and remove what isn't needed to resume",
                        code="checkpoint_too_many_files",
                        limit=ENTRIES_MAX,
                    )
                yield Path(entry.path), about
                if stat.S_ISDIR(about.st_mode):
                    waiting.append((Path(entry.path), depth + 1))
        except FileNotFoundError:
            continue


def _stays(path: Path, folder: Path) -> bool:
    """Whether a link leads to a place within the folder, by a relative path."""
    target = path.readlink()
    reached = os.path.normpath(path.parent / target)
    return not target.is_absolute() and Path(reached).is_relative_to(os.path.normpath(folder))


def path_of(entry: Entry) -> Path:
    """Where it is in the folder.

    Raises:
        CheckpointDamaged: nowhere in it; the listing was not written by this module.
    """
    found = Path(os.fsdecode(unquote_to_bytes(entry.path)))
    if found.is_absolute() or not found.parts or ".." in found.parts or "\0" in str(found):
        raise _wrong(entry, "which is not in the folder")
    if len(found.parts) > DEPTH_MAX + 1 or max(len(os.fsencode(part)) for part in found.parts) > _NAME_BYTES_MAX:
        raise _wrong(entry, "whose name is too long")
    return found


def target_of(entry: Entry) -> Path:
    """Where a link leads, as it says itself."""
    return Path(os.fsdecode(unquote_to_bytes(entry.target)))


def check_shards(manifest: Manifest) -> None:
    """Refuse what would fill the memory of whoever reads it.

    Raises:
        CheckpointDamaged: a shard is larger than ones of its kind are, so it was not written by this module.
    """
    for shard in manifest.shards:
        most = LISTING_BYTES_MAX if shard.name == LISTING else PACK_BYTES_MAX
        if not shard.name.startswith(LARGE) and shard.size > most:
            raise CheckpointDamaged(f"{shard.name} of step {manifest.step} has {shard.size} bytes, and may have {most}")


def read(listing: bytes, manifest: Manifest) -> list[Entry]:
    """The listing, folders first and links last, if a folder could be so, and its shards hold what it says.

    Raises:
        CheckpointDamaged: it can't.
    """
    try:
        entries = msgspec.json.decode(listing, type=list[Entry])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointDamaged(f"the listing of step {manifest.step} says nothing: {error}") from None
    if len(entries) > ENTRIES_MAX:
        raise CheckpointDamaged(
            f"the listing of step {manifest.step} names {len(entries)} files, at most {ENTRIES_MAX}"
        )
    _check_places(entries)
    left: dict[str, int] = {}
    for shard in manifest.shards:  # the parts of a sparse file together, under the name that they begin with
        name = shard.name.rpartition("-")[0] if shard.name.startswith(SPARSE) else shard.name
        left[name] = left.get(name, 0) + shard.size
    for entry in entries:
        if not (0 <= entry.mode <= MODES_MAX and abs(entry.mtime_ns) <= _MTIME_NS_MAX and 0 <= entry.size <= _SIZE_MAX):
            raise _wrong(entry, "whose mode, time or size no file has")
        if entry.kind == "file":
            _take(entry, left)
    return sorted(entries, key=lambda entry: (entry.kind != "folder", entry.kind == "link", entry.path.count("/")))


def parts_of(manifest: Manifest) -> dict[str, list[str]]:
    """The shards that hold each sparse file's data, in order, by the name that they begin with."""
    found: dict[str, list[str]] = {}
    for name in sorted(shard.name for shard in manifest.shards if shard.name.startswith(SPARSE)):
        found.setdefault(name.rpartition("-")[0], []).append(name)
    return found


def _check_places(entries: list[Entry]) -> None:
    """Each name once, below folders of the listing, and of a kind that can be made."""
    kinds: dict[Path, str] = {}
    for entry in entries:
        path = path_of(entry)
        if path in kinds:
            raise _wrong(entry, "twice")
        if entry.kind not in {"folder", "file", "link"}:
            raise _wrong(entry, f"a {entry.kind[:20]!r}, which is nothing that is kept")
        kinds[path] = entry.kind
    for entry in entries:
        above = path_of(entry).parent
        if above.parts and kinds.get(above) != "folder":
            raise _wrong(entry, "which lies in no folder of it")


def _take(entry: Entry, left: dict[str, int]) -> None:
    """Whether the shards hold this file, and no other has the same bytes of them."""
    if entry.shard.startswith(SPARSE):
        held, ends = left.pop(entry.shard, 0), 0
        for start, length in entry.extents[: EXTENTS_MAX + 1]:
            if start < ends or length < 0 or start + length > entry.size:
                raise _wrong(entry, "whose data lies outside of it, or twice in the same place")
            ends = start + length
            held -= length
        if held or len(entry.extents) > EXTENTS_MAX:
            raise _wrong(entry, "and its shards hold something else")
        return
    if entry.shard.startswith(LARGE):
        if left.pop(entry.shard, -1) != entry.size:
            raise _wrong(entry, f"with {entry.size} bytes, and its shard has others")
        return
    if entry.size == 0 and not entry.shard:
        return
    if not entry.shard.startswith(PACK) or entry.shard not in left or entry.offset < 0:
        raise _wrong(entry, "whose shard isn't there")
    left[entry.shard] -= entry.size
    if left[entry.shard] < 0:
        raise _wrong(entry, "and others, with more bytes together than their shard has")


def _wrong(entry: Entry, why: str) -> CheckpointDamaged:
    return CheckpointDamaged(f"the listing names {entry.path[:200]!r}, {why}")
