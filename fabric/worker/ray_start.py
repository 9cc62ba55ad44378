"""Whether a program's Ray has started, as whoever judges the program's end learns it.

On a machine that has too much else to do Ray's processes end while they start, or are not there in time. Then the program
fails, whoever stands above it; or Ray's own code ends it before Python hears of that. It is no fault of the program's: the
attempt counts as interrupted (`exits.unless_ray`), which is tried again, later each time, and never refunded, as the program
could say so itself. The process that starts Ray notes it in a file beside Ray's sessions, and removes that once it is attached.
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
NOTE: Final = "starting"
STARTS: Final = 3
"""How often a node is started whose raylet ends while it starts, as when another process has taken its port."""
SOON_S: Final = 60.0
"""Who ends later than this after a start that failed has gone on without Ray, and ended for something else."""
_LONGEST_S: Final = STARTS * START_S + SOON_S
"""The same of a start of which nobody knows how it went."""
_UNHEARD: Final = "its process ended while Ray started"
_NOTE_BYTES_MAX: Final = 2_000


@contextmanager
def noted(folder: Path) -> Iterator[None]:
    """Inside, a process of the job's starts Ray. The note stays where that raises `Unavailable`, or never comes to an end."""
    note = folder / NOTE
    _write(note, _UNHEARD)
    try:
        yield
    except Unavailable as error:
        _write(note, error.message)
        raise
    except BaseException:  # what the program asked for can't be had, or it was interrupted
        note.unlink(missing_ok=True)
        raise
    note.unlink(missing_ok=True)


def why_not(folder: Path) -> str:
    """Why Ray hasn't started whose sessions are in this folder, if that was so just now; "" = it has, or nobody knows. Anything may
    lie there: it is a job's folder.
    """
    try:
        handle = os.open(folder / NOTE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        about = os.fstat(handle)
        said = os.read(handle, _NOTE_BYTES_MAX).decode(errors="replace") if stat.S_ISREG(about.st_mode) else ""
    finally:
        os.close(handle)
    return said if time.time() - about.st_mtime <= (_LONGEST_S if said == _UNHEARD else SOON_S) else ""


def _write(note: Path, why: str) -> None:
    with suppress(OSError):  # the disk is full: then the end is judged as it was before there were notes
        note.write_text(why)
