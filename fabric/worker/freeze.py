"""A freeze: a program's processes stand still for a moment, so that the folder they write to can be taken as it is.

What is half written then stays half written. So a moment is looked for at which nothing is (`Rest`), as far as the kernel
tells: no file of the folder is open for writing, or those that are open are logs, or at rest; and nobody has just ended in
the middle of a write. Linux only.
"""

import os
import signal
import time
from collections.abc import Callable, Collection, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote_from_bytes

from fabric.errors import Conflict
from fabric.system.processes import Identity, are_still, kill, seen_of

STILL_WITHIN_S: Final = 2.0
"""How long a process may take to stand still: one that waits for a disk takes its time."""
_LOOK_S: Final = 0.002
CLOSED_S: Final = 1.0
"""For so long a moment is looked for at which no file is open."""
_AT_REST_S: Final = 0.5
_EMPTY_S: Final = 5.0
"""A file that is empty so long has not just been opened, to be written from its beginning."""
_LOG_BYTES_PER_S: Final = 2**20
"""Who writes more is no log."""
_AFTERMATH_S: Final = 2.0
"""Whoever ends in the middle of a write leaves half a file, and those above it may be about to end for that. Who still goes on
after so long goes on with what is there."""
_MAP_WORDS: Final = 6
_STANDARD: Final = 3
"""What a shell has redirected to a file is a log."""


class Writing(NamedTuple):
    """A file of the folder that a process has open, and writes to elsewhere than at its end."""

    pid: int
    descriptor: int
    inode: int


class Position(NamedTuple):
    at: int
    size: int
    age_s: float
    """Since it was written to."""


@contextmanager
def frozen(find: Callable[[], Collection[int]], *, halted: Container[int] = ()) -> Iterator[frozenset[int]]:
    """Inside, all processes that `find` finds stand still, and new ones there are none; they go on afterwards. Those that
    stood still before are left as they are, and so are the `halted`, which may have been told to a moment ago: they
    don't stand still before they have run once more. Yields all.

    Raises:
        Conflict: some of them don't stand still in time (`not_still`); all go on.
    """
    held: set[Identity] = set()
    try:
        yield _stopped(find, held, halted)
    finally:
        for each in held:
            if (seen := seen_of(each.pid)) is not None and seen.identity == each:
                kill(each.pid, signal.SIGCONT)


def _stopped(find: Callable[[], Collection[int]], held: set[Identity], halted: Container[int]) -> frozenset[int]:
    give_up_at = time.monotonic() + STILL_WITHIN_S
    known: set[int] = set()
    while (new := set(find()) - known) and time.monotonic() < give_up_at:
        known |= new
        for pid in new:
            seen = seen_of(pid)
            if seen is not None and pid not in halted and not are_still([pid]):
                held.add(seen.identity)
                kill(pid, signal.SIGSTOP)
        while not are_still(new) and time.monotonic() < give_up_at:
            time.sleep(_LOOK_S)
    if new or not are_still(known):
        raise Conflict(
            f"{len(known | new)} processes don't all stand still within {STILL_WITHIN_S:g} s: one waits for a disk, or new ones"
            " are started all the time",
            code="not_still",
        )
    return frozenset(known)


def written_by(pids: Collection[int], folder: Path) -> dict[Writing, Position]:
    """What these processes have open for writing in the folder; what is only ever appended to is no such file."""
    below = f"{os.path.realpath(folder)}{os.sep}"
    found: dict[Writing, Position] = {}
    for pid in pids:
        with suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError, ValueError, KeyError):
                    if int(entry.name) >= _STANDARD and str(entry.readlink()).startswith(below):
                        found |= _written(pid, entry)
    return found


def _written(pid: int, descriptor: Path) -> dict[Writing, Position]:
    lines = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text().splitlines()
    words = dict(line.split(":", 1) for line in lines if ":" in line)
    flags, about = int(words["flags"], 8), descriptor.stat()
    if not flags & os.O_ACCMODE or flags & os.O_APPEND or not about.st_nlink:
        return {}
    position = Position(int(words["pos"]), about.st_size, time.time() - about.st_mtime)
    return {Writing(pid, int(descriptor.name), about.st_ino): position}


def _lives(pid: int) -> bool:
    return seen_of(pid) is not None


def mapped_by(pids: Collection[int], folder: Path) -> set[str]:
    """The files of the folder that these processes may write to without a system call: they have them mapped. Paths as a
    listing of the folder has them.
    """
    below = f"{os.path.realpath(folder)}{os.sep}".encode()
    found: set[str] = set()
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines():
                words = line.split(maxsplit=5)
                if len(words) == _MAP_WORDS and words[1][1:4:2] == b"ws" and words[5].startswith(below):
                    found.add(quote_from_bytes(words[5].replace(b"\\012", b"\n").removeprefix(below)))
    return found


class Rest:
    """Looks again and again whether a file of the folder is half written."""

    def __init__(self, *, lives: Callable[[int], bool] = _lives) -> None:
        """Nothing was seen yet. `lives` tells who closed a file from who ended with it."""
        self._lives = lives
        self._cut_off: tuple[float, float] | None = None
        """When somebody has ended in the middle of a write: first, and last, without a longer pause between."""
        self._began: float | None = None
        self._first: dict[Writing, tuple[float, int]] = {}
        """When and where each was seen first; it has been written onwards since."""
        self._last: dict[Writing, int] = {}
        self._restless: set[Writing] = set()
        """What was half written, for all one could see."""

    def is_at_rest(self, open_files: dict[Writing, Position], *, now: float) -> bool:
        """Whether the folder can be taken as it is, seeing what is open for writing. `now` counts seconds."""
        self._began = now if self._began is None else self._began
        if any(each not in open_files and not self._lives(each.pid) for each in self._restless):
            first = now if self._cut_off is None or now - self._cut_off[1] >= _AFTERMATH_S else self._cut_off[0]
            self._cut_off = first, now
        for each, position in open_files.items():
            if each not in self._first or not 0 < position.at >= self._last.get(each, 0):
                self._first[each] = now, position.at
        self._first = {each: first for each, first in self._first.items() if each in open_files}
        self._last = {each: position.at for each, position in open_files.items()}
        self._restless = {
            each
            for each, position in open_files.items()
            if position.age_s < (_AT_REST_S if position.size else _EMPTY_S) and not self._is_log(each, position, now)
        }
        if self._cut_off is not None and now - self._cut_off[0] < _AFTERMATH_S:
            return False
        return not (open_files if now - self._began < CLOSED_S else self._restless)

    def is_cut_off(self, *, now: float) -> bool:
        """Whether somebody has just ended in the middle of a write."""
        return self._cut_off is not None and now - self._cut_off[1] < _AFTERMATH_S

    def _is_log(self, each: Writing, position: Position, now: float) -> bool:
        since, at = self._first[each]
        return position.at > 0 and now - since >= CLOSED_S and position.at - at < _LOG_BYTES_PER_S * (now - since)
