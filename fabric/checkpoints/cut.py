"""A cut: what a folder that is written to all the time held at one moment, copied beside it.

Most of it is copied while others write, and what has changed since is copied once more while they stand still: so that is
short, however large the folder. It does not know who writes, nor how these are made to stand still.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from fabric.checkpoints.holes import extents_of
from fabric.checkpoints.listing import Entry, entries_of, path_of
from fabric.errors import Conflict, Unavailable

_RACY_NS: Final = 100_000_000
"""A file that was changed so shortly before it was looked at may have been changed again without another time."""
_PART_BYTES: Final = 8 * 2**20


class _Mark(NamedTuple):
    """By which it is seen that a file is another than it was."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Cut:
    """One, in a folder of its own that is empty or not there."""

    def __init__(self, folder: Path, *, beside: Path, go_on: Callable[[], bool] = lambda: True) -> None:
        """Nothing is copied yet. `go_on` is asked between parts of files: no = it is given up."""
        self._folder, self._beside, self._go_on = folder, beside, go_on
        self._marks: dict[str, _Mark] = {}
        self._places: dict[str, Path] = {}
        self.entries: tuple[Entry, ...] = ()
        self.left_out: tuple[str, ...] = ()

    def copy(self) -> None:
        """While others write: copy what there is, as it is just now.

        Raises:
            Unavailable: there is no room for it (`node_full`).
            Conflict: it is given up.
        """
        entries, _ = entries_of(self._folder)
        taken = sum(entry.size for entry in entries)
        self._beside.mkdir(mode=0o700, parents=True, exist_ok=True)
        if taken > (free := shutil.disk_usage(self._beside).free) // 2 and self._held_bytes(entries) > free // 2:
            raise Unavailable(
                f"{self._folder} holds {taken} bytes, and a copy of it would take more than half of the {free} bytes that are"
                " free there",
                code="node_full",
            )
        for entry in entries:
            if entry.kind == "file":
                try:
                    self._take(entry)
                except OSError:
                    self._marks.pop(entry.path, None)  # it is gone, or another: there is a second look

    def finish(self) -> None:
        """While nobody writes: copy what has changed since.

        Raises:
            Conflict: somebody did write; or it is given up.
        """
        self.entries, self.left_out = entries_of(self._folder)
        try:
            for entry in self.entries:
                if entry.kind == "file":
                    self._take(entry)
        except OSError as error:
            raise Conflict(
                f"{self._folder} was written to while it was copied: {error}", code="directory_busy"
            ) from None
        if entries_of(self._folder)[0] != self.entries:
            raise Conflict(f"{self._folder} was written to while it was copied", code="directory_busy")

    def place(self, entry: Entry) -> Path:
        """Where a file's copy is."""
        return self._places[entry.path]

    def _take(self, entry: Entry) -> None:
        path = self._folder / path_of(entry)
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            about = os.fstat(handle)
            mark = _Mark(about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
            if self._marks.get(entry.path) == mark:
                return
            place = self._places.setdefault(entry.path, self._beside / f"{len(self._places)}")
            now_ns = _now_ns(self._beside)
            self._write(handle, place, size=about.st_size)
            if now_ns - mark.ctime_ns > _RACY_NS:
                self._marks[entry.path] = mark
        finally:
            os.close(handle)

    def _write(self, handle: int, place: Path, *, size: int) -> None:
        """Copy the first `size` bytes; holes stay holes."""
        with place.open("wb", buffering=0) as out:
            for start, length in extents_of(handle, size):
                os.lseek(out.fileno(), start, os.SEEK_SET)
                at = start
                while at < start + length:
                    if not self._go_on():
                        raise Conflict("the copy was given up", code="directory_busy")
                    sent = os.sendfile(out.fileno(), handle, at, min(_PART_BYTES, start + length - at))
                    if not sent:
                        raise OSError("it has become shorter")
                    at += sent
            out.truncate(size)

    def _held_bytes(self, entries: tuple[Entry, ...]) -> int:
        """What files take of the disk: holes count nothing."""
        total = 0
        for entry in entries:
            if entry.kind == "file":
                try:
                    total += (self._folder / path_of(entry)).lstat().st_blocks * 512
                except OSError:
                    continue
        return total


def _now_ns(folder: Path) -> int:
    """The time as the folder's own file system has it: a far one's clock may be another."""
    os.utime(folder)
    return folder.stat().st_mtime_ns
