"""A cut: what a folder that is written to all the time held at one moment, copied beside it.

Most of it is copied while others write, and what has changed since is copied once more while they stand still: so that is
short, however large the folder. What is too large for a copy beside it is sent to where it will be kept instead, while others
write. It does not know who writes, nor how these are made to stand still.
"""

import os
import shutil
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from fabric.checkpoints.holes import extents_of
from fabric.checkpoints.listing import ENTRIES_MAX, Entry, entries_of, path_of
from fabric.errors import Conflict, Unavailable
from fabric.system.disk_watch import taken_by

_RACY_NS: Final = 100_000_000
"""A file that was changed so shortly before it was looked at may have been changed again without another time."""
_PART_BYTES: Final = 8 * 2**20
_SENT_BYTES: Final = 2**20
"""Smaller files are copied beside the folder in any case."""
Send = Callable[[Path, Entry], Entry]
"""Keeps a file as it is read; gives the entry with where that is."""


class _Mark(NamedTuple):
    """By which it is seen that a file is another than it was."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Cut:
    """One, in a folder of its own that is empty or not there."""

    def __init__(
        self, folder: Path, *, beside: Path, go_on: Callable[[], bool] = lambda: True, send: Send | None = None
    ) -> None:
        """Nothing is copied yet.

        Args:
            folder: what is written to.
            beside: where it is copied.
            go_on: asked between parts of files: no = it is given up.
            send: for large files of a folder that there is no room to copy; None = then there is no cut.
        """
        self._folder, self._beside, self._go_on, self._send = folder, beside, go_on, send
        self._marks: dict[str, _Mark] = {}
        self._places: dict[str, Path] = {}
        self._sent: dict[str, Entry] = {}
        self._is_sent = False
        """Whether large files are sent, because there is no room to copy them."""
        self.entries: tuple[Entry, ...] = ()
        self.left_out: tuple[str, ...] = ()

    def copy(self) -> None:
        """While others write: copy what there is, as it is just now.

        Raises:
            Unavailable: there is no room for it (`node_full`).
            Conflict: it is given up.
        """
        entries = [entry for entry in entries_of(self._folder)[0] if entry.kind == "file"]
        self._beside.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = self._free_bytes()
        self._is_sent = _sum(entries) > free // 2 and taken_by(self._folder, files_max=ENTRIES_MAX).bytes > free // 2
        copied = [entry for entry in entries if entry.size < _SENT_BYTES] if self._send is not None else entries
        if self._is_sent and (size := _sum(copied)) > free // 2:
            raise Unavailable(
                f"{size} bytes of {self._folder} would have to be copied, which is more than half of the {free} bytes that are"
                " free there: pack small files together, or use nodes with larger disks",
                code="node_full",
            )
        for entry in entries:
            try:
                self._take(entry, send=self._send if self._is_sent and entry.size >= _SENT_BYTES else None)
            except OSError:
                self._forget(entry)  # it is gone, or another: there is a second look

    def finish(self, *, unsure: Container[str] = ()) -> None:
        """While nobody writes: copy what has changed since.

        Args:
            unsure: paths as in entries, of files that may have changed although they don't look so.

        Raises:
            Conflict: somebody did write; or it is given up.
            Unavailable: there is no room for what has changed (`node_full`).
        """
        self.entries, self.left_out = entries_of(self._folder)
        try:
            changed = [entry for entry in self.entries if entry.kind == "file" and self._has_changed(entry, unsure)]
            self._check_room(changed)
            for entry in changed:
                self._forget(entry)
                self._take(entry)
        except OSError as error:
            raise Conflict(
                f"{self._folder} was written to while it was copied: {error}", code="directory_busy"
            ) from None
        if entries_of(self._folder)[0] != self.entries:
            raise Conflict(f"{self._folder} was written to while it was copied", code="directory_busy")

    @property
    def sent(self) -> dict[str, Entry]:
        """What was sent, and is as it was when the cut was finished, by path."""
        return self._sent

    def place(self, entry: Entry) -> Path:
        """Where a file's copy is."""
        return self._places[entry.path]

    def _has_changed(self, entry: Entry, unsure: Container[str]) -> bool:
        about = (self._folder / path_of(entry)).lstat()
        return entry.path in unsure or self._marks.get(entry.path) != _mark_of(about)

    def _check_room(self, changed: list[Entry]) -> None:
        free = self._free_bytes()
        held = sum((self._folder / path_of(entry)).lstat().st_blocks * 512 for entry in changed) if self._is_sent else 0
        if held > free // 2:
            raise Unavailable(
                f"{held} bytes of {self._folder} have changed while they were sent, which is more than half of the {free} bytes"
                " that are free there: be quiet for a moment after a save, or use nodes with larger disks",
                code="node_full",
            )

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._beside).free

    def _forget(self, entry: Entry) -> None:
        self._marks.pop(entry.path, None)
        self._sent.pop(entry.path, None)

    def _take(self, entry: Entry, *, send: Send | None = None) -> None:
        path = self._folder / path_of(entry)
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            about = os.fstat(handle)
            now_ns = _now_ns(self._beside)
            if send is not None:
                self._sent[entry.path] = send(path, entry)
            else:
                place = self._places.setdefault(entry.path, self._beside / f"{len(self._places)}")
                self._write(handle, place, size=about.st_size)
            if now_ns - about.st_ctime_ns > _RACY_NS:
                self._marks[entry.path] = _mark_of(about)
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


def _sum(entries: Iterable[Entry]) -> int:
    return sum(entry.size for entry in entries)


def _mark_of(about: os.stat_result) -> _Mark:
    return _Mark(about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def _now_ns(folder: Path) -> int:
    """The time as the folder's own file system has it: a far one's clock may be another."""
    os.utime(folder)
    return folder.stat().st_mtime_ns
