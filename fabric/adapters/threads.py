"""Which threads a process runs: whether a job's function has left one behind, of Python's or of C's."""

import _thread
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

_LOOKS: Final = 3
_LOOK_S: Final = 0.002


class Threads(NamedTuple):
    """What runs in this process, whoever started it: `threading` doesn't know of all."""

    started: int
    """Of those that Python started: one that is within a function in C shows no frame."""
    running: frozenset[int]
    """Those that run Python."""
    tasks: Mapping[str, str] = MappingProxyType({})
    """All of them, as the kernel numbers them: one that Python knows nothing of may have been started by a library, or by a
    job. Since when each is there is looked up when it is new, so that a number that is used again is told apart.
    """


def threads_now(known: Threads | None = None) -> Threads:
    """The threads of now; what is known of them already is not looked up again, which takes most of the time."""
    before: Mapping[str, str] = {} if known is None else known.tasks
    tasks = {name: before.get(name) or _since(name) for name in os.listdir("/proc/self/task")}  # noqa: PTH208
    return Threads(_thread._count(), frozenset(sys._current_frames()), tasks)  # noqa: SLF001


def threads_beside(before: Threads) -> bool:
    """Whether this process has threads beside those that it had before, and the one that asks."""
    for _ in range(_LOOKS):
        if not _beside(before):
            return False
        time.sleep(_LOOK_S)  # one of Ray's own calls back for a moment
    return True


def _beside(before: Threads) -> bool:
    now = Threads(_thread._count(), frozenset(sys._current_frames()))  # noqa: SLF001
    if now.started > before.started or now.running - before.running - {threading.get_ident()}:
        return True
    mine = str(threading.get_native_id())
    tasks = os.listdir("/proc/self/task")  # noqa: PTH208
    return any(name != mine and (name not in before.tasks or _since(name) != before.tasks[name]) for name in tasks)


def _since(task: str) -> str:
    """When a thread was started, in the kernel's ticks; "" if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
