"""What attempts take of a node's disk, so that none of them leaves nothing to the others.

Counted is what lies in the attempts' own folders: work, home, temporary files, checkpoints, logs. Holes count nothing, and a
file with several names counts once. Looking takes time with the number of files, so it is done at most so often that it
takes a small part of it; how much is free is looked at every time. It does not know what becomes of whoever takes too much.
"""

import os
import shutil
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

_LOOK_S: Final = 60.0
_SHARE_OF_TIME: Final = 20
"""At most one part in so many of the time goes into counting."""
_FREE_SHARE: Final = 20
"""Less than one part in so many of the disk is too little for others,"""
_FREE_BYTES: Final = 10 * 2**30
"""or less than this, if that is less."""
_GIB: Final = 2**30


class DiskLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt may have on one node's disk."""

    attempt_bytes: int = 2**40
    attempt_files: int = 2_000_000


class Taken(NamedTuple):
    """By one attempt."""

    bytes: int
    files: int


class DiskWatch:
    """One machine's."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._counted_at: float | None = None
        self._took_s = 0.0

    def too_large(self, work_dir: Path, folders: Collection[str], limits: DiskLimits) -> dict[str, str]:
        """Of these folders of attempts, those that take too much, and what is to be said of each."""
        try:
            disk = shutil.disk_usage(work_dir)
        except OSError:
            return {}
        scarce = disk.free < min(disk.total // _FREE_SHARE, _FREE_BYTES)
        began = self._monotonic()
        pause_s = max(0.0 if scarce else _LOOK_S, _SHARE_OF_TIME * self._took_s)
        if not folders or (self._counted_at is not None and began - self._counted_at < pause_s):
            return {}
        taken = {name: taken_by(work_dir / name, files_max=limits.attempt_files) for name in folders}
        self._counted_at = self._monotonic()
        self._took_s = self._counted_at - began
        found = {name: said for name, each in taken.items() if (said := _too_much(each, limits))}
        largest = max(taken, key=lambda name: taken[name].bytes)
        if scarce and not found and taken[largest].bytes >= disk.free:
            found[largest] = (
                f"{disk.free / _GIB:.1f} GiB of the node's disk are free, and of all jobs there this one takes the most:"
                f" {taken[largest].bytes / _GIB:.1f} GiB. {_REMEDY}"
            )
        return found


_REMEDY: Final = "Delete what it doesn't need while it runs, or use nodes with larger disks; then resume it"


def taken_by(folder: Path, *, files_max: int) -> Taken:
    """What a folder takes of the disk; no more is counted once there are more files than may be."""
    waiting, size, files, seen = [folder], 0, 0, set[tuple[int, int]]()
    while waiting and files <= files_max:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                files += 1
                with suppress(OSError):
                    about = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    elif about.st_nlink > 1:
                        if (about.st_dev, about.st_ino) in seen:
                            continue
                        seen.add((about.st_dev, about.st_ino))
                    size += about.st_blocks * 512
                if files > files_max:
                    break
    return Taken(size, files)


def _too_much(taken: Taken, limits: DiskLimits) -> str:
    if taken.bytes > limits.attempt_bytes:
        return (
            f"it takes {taken.bytes / _GIB:.1f} GiB of the node's disk, and may take {limits.attempt_bytes / _GIB:.1f}."
            f" {_REMEDY}"
        )
    if taken.files > limits.attempt_files:
        return f"it has more than {limits.attempt_files:,} files on the node's disk, which is all it may. {_REMEDY}"
    return ""
