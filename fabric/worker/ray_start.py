"""Whether a program's Ray has started, and still runs, as whoever judges the program's end learns it.

On a machine that has too much else to do Ray's processes end while they start, or are not there in time. Then the program
fails, whoever stands above it; or Ray's own code ends it before Python hears of that. It is no fault of the program's: the
attempt counts as interrupted (`exits.unless_ray`), which is tried again, later each time, and never refunded, as the program
could say so itself. The process that starts Ray notes it in a file beside Ray's sessions, and removes that once it is attached.

The same holds of a Ray that ends in the middle of the run (`ray_end`): killed from outside, or as its agent has ended. That is noted
in a file of its own, which counts for as long as the program has that Ray: it may ask something of it much later.

A program that goes on without its Ray, and soon ends for a reason of its own, is tried again, too: it can't be told from one that
ends for Ray's sake in its own way. To take the former for the latter costs a few attempts, each of which says why; to take the
latter for the former loses its work for a fault that wasn't its own.
"""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fabric.errors import Unavailable
from fabric.worker.lease_ray_settings import START_S

NOT_STARTED: Final = "ray_not_started"
HAS_ENDED: Final = "ray_ended"
NOTE: Final = "starting"
END_NOTE: Final = "ended"
STARTS: Final = 3
"""How often a node is started whose raylet ends while it starts, as when another process has taken its port."""
SOON_S: Final = 60.0
"""Who ends later than this after a start that failed has gone on without Ray, and ended for something else."""
_LONGEST_S: Final = STARTS * START_S + SOON_S
"""The same of a start of which nobody knows how it went."""
_UNHEARD: Final = f"{NOT_STARTED}: its process ended while Ray started"
_NOTE_BYTES_MAX: Final = 2_000


@contextmanager
def noted(folder: Path) -> Iterator[None]:
    """Inside, a process of the job's starts Ray. The note stays where that raises `Unavailable`, or never comes to an end."""
    note = folder / NOTE
    _write(note, _UNHEARD)
    (folder / END_NOTE).unlink(missing_ok=True)  # of the one before
    try:
        yield
    except Unavailable as error:
        _write(note, f"{NOT_STARTED}: {error.message}")
        raise
    except BaseException:  # what the program asked for can't be had, or it was interrupted
        note.unlink(missing_ok=True)
        raise
    note.unlink(missing_ok=True)


def note_end(folder: Path, why: str, *, is_let_go: bool = False) -> None:
    """The Ray whose sessions are in this folder has ended by itself. Where the program lets it go, that counts for a while only."""
    _write(folder / (NOTE if is_let_go else END_NOTE), f"{HAS_ENDED}: {why}")
    if is_let_go:
        (folder / END_NOTE).unlink(missing_ok=True)


def why_not(folder: Path) -> str:
    """Why Ray doesn't run whose sessions are in this folder, if it has just not started, or has ended by itself; "" = it does, or
    nobody knows. Begins with the code for it. Anything may lie there: it is a job's folder.
    """
    if (ended := _read(folder / END_NOTE)) is not None:
        return ended[0]
    if (found := _read(folder / NOTE)) is None:
        return ""
    said, at = found
    return said if time.time() - at <= (_LONGEST_S if said == _UNHEARD else SOON_S) else ""


def _read(note: Path) -> tuple[str, float] | None:
    """What it says, and since when; None where there is none."""
    try:
        handle = os.open(note, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            return None
        return os.read(handle, _NOTE_BYTES_MAX).decode(errors="replace"), about.st_mtime
    finally:
        os.close(handle)


def _write(note: Path, why: str) -> None:
    with suppress(OSError):  # the disk is full: then the end is judged as it was before there were notes
        draft = note.with_name(f"{note.name}.{os.getpid()}")
        draft.write_text(why)
        draft.replace(note)  # whole or not at all: its process may be ended at any moment
