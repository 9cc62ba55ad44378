"""A rank's log as the archive keeps it: whole, or where it is too long its beginning and its end.

The end lies under a key of its own that says where in the log it begins, so that whoever has followed the job goes on at
the byte they had. Between the two stands a line that says what was left out; the cuts are at the ends of lines where there
are any nearby, and never within a character.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

import msgspec

from fabric.storage.archive import Archive

LOG_BYTES_MAX: Final = 64 * 2**20
"""Of one rank's log of one attempt: half of it its beginning, half its end."""
SLACK_BYTES: Final = 4 * 2**10
"""So much more is kept whole: what is left out is longer than the line that says so."""
_NEAR_BYTES: Final = 64 * 2**10
"""How far from a cut the end of a line is looked for."""
_COUNTED_BYTES: Final = 2**30
"""In so much that is left out the lines are counted."""
_PART_BYTES: Final = 2**20
_PART_MARK: Final = "@"
_CHARACTER_BYTES: Final = 4


class Piece(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A part of a log in the archive."""

    start: int
    """Where in the log it begins."""
    key: str


def read_part(path: Path, offset: int, limit: int) -> bytes:
    """A part of a plain file; nothing of what isn't one, because what a job leaves there need not be its log."""
    file = _opened(path)
    if file is None:
        return b""
    with file:
        file.seek(offset)
        return file.read(limit)


def keep_log(archive: Archive, path: Path, key: str) -> None:
    """Keep a log, unless it is empty."""
    file = _opened(path)
    if file is None:
        return
    with file:
        size = os.fstat(file.fileno()).st_size
        if size <= LOG_BYTES_MAX + SLACK_BYTES:
            if data := file.read(LOG_BYTES_MAX + SLACK_BYTES):
                archive.put(key, data)
            return
        half = LOG_BYTES_MAX // 2
        head = _whole_lines(file.read(half))
        begins = size - half
        file.seek(begins)
        tail = file.read(half)
        skipped = _until_line(tail)
        begins += skipped
        note = _note(file, len(head), begins, after=head[-1:])
        archive.put(key, head)
        archive.put(f"{key}{_PART_MARK}{begins - len(note):015d}", note + tail[skipped:])


def pieces_of(keys: Iterable[str]) -> dict[tuple[int, int], list[Piece]]:
    """The parts of logs by attempt and rank, in order, as their keys name them."""
    found: dict[tuple[int, int], list[Piece]] = {}
    for key in keys:
        epoch, rank = key.rsplit("/", 2)[1:]
        number, _, start = rank.partition(_PART_MARK)
        found.setdefault((int(epoch), int(number)), []).append(Piece(start=int(start or 0), key=key))
    return {whose: sorted(pieces) for whose, pieces in sorted(found.items())}


def incomplete(data: bytes) -> int:
    """How many bytes at the end begin a character of UTF-8 that goes on behind it."""
    for back in range(1, min(_CHARACTER_BYTES, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0x80:  # noqa: PLR2004  # it goes on with another one
            continue
        long = 2 if 0xC2 <= byte < 0xE0 else 3 if 0xE0 <= byte < 0xF0 else 4 if 0xF0 <= byte < 0xF5 else 0  # noqa: PLR2004
        return back if long > back else 0
    return 0


def _opened(path: Path) -> IO[bytes] | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        return None
    return file


def _whole_lines(head: bytes) -> bytes:
    """Up to the end of its last line, if that is near; else of its last character."""
    end = head.rfind(b"\n", max(0, len(head) - _NEAR_BYTES)) + 1
    return head[: end or len(head) - incomplete(head)]


def _until_line(tail: bytes) -> int:
    """Where its first whole line begins, if that is near; else its first whole character."""
    end = tail.find(b"\n", 0, _NEAR_BYTES) + 1
    if end and end < len(tail):
        return end
    return next((at for at in range(_CHARACTER_BYTES) if at >= len(tail) or tail[at] & 0xC0 != 0x80), 0)  # noqa: PLR2004


def _note(file: IO[bytes], start: int, end: int, *, after: bytes) -> bytes:
    told = f"{end - start:,} bytes"
    if end - start <= _COUNTED_BYTES:
        told = f"{_lines_in(file, start, end):,} lines, {told}"
    begin = "" if after == b"\n" else "\n"
    return f"{begin}[… {told} were left out here: print less, or write to storage …]\n".encode()


def _lines_in(file: IO[bytes], start: int, end: int) -> int:
    file.seek(start)
    count = 0
    while start < end and (part := file.read(min(_PART_BYTES, end - start))):
        count += part.count(b"\n")
        start += len(part)
    return count
