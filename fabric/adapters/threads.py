"""Which threads a process runs: whether a job's function has left one behind."""

import _thread
import sys
import threading
import time
from typing import Final, NamedTuple

_LOOKS: Final = 3
_LOOK_S: Final = 0.002


class Threads(NamedTuple):
    """What runs in this process, whoever started it: `threading` doesn't know of all."""

    started: int
    """Of those that Python started: one that is within a function in C shows no frame."""
    running: frozenset[int]
    """Those that run Python."""


def threads_now() -> Threads:
    return Threads(_thread._count(), frozenset(sys._current_frames()))  # noqa: SLF001


def threads_beside(before: Threads) -> bool:
    """Whether this process has threads beside those that it had before, and the one that asks."""
    for _ in range(_LOOKS):
        now = threads_now()
        if now.started <= before.started and now.running <= before.running | {threading.get_ident()}:
            return False
        time.sleep(_LOOK_S)  # one of Ray's own calls back for a moment
    return True
