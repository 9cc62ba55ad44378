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
_LINKS_OWN: Final = 2
"""To a folder: from the one that it is in, and from itself."""


class Threads(NamedTuple):
    """What runs in this process, whoever started it: `threading` doesn't know of all."""

    started: int
    """Of those that Python started: one that is within a function in C shows no frame."""
    running: frozenset[int]
    """Those that run Python."""
    tasks: Mapping[str, "Task"] = MappingProxyType({})
    """All of them, as the kernel numbers them: one that Python knows nothing of may have been started by a library, or by a
    job.
    """


class Task(NamedTuple):
    """A thread, told apart from a later one of the same number."""

    inode: int
    """Of its place in /proc: another for another thread, and cheap to look at, but it may change while the thread goes on."""
    since: str
    """When it was started, in the kernel's ticks: looked up where the other says too little."""


def threads_now(known: Threads | None = None) -> Threads:
    """The threads of now; what is known of them already is not looked up again, which takes most of the time."""
    before: Mapping[str, Task] = {} if known is None else known.tasks
    return Threads(_thread._count(), frozenset(sys._current_frames()), _tasks(before))  # noqa: SLF001


def as_many_as(before: Threads) -> bool:
    """Whether there are as many threads as then, which costs a fiftieth of a look at each. It doesn't say that they are the
    same: who needs that looks for those that are beside them.
    """
    return _thread._count() == before.started and _count() == len(before.tasks)  # noqa: SLF001


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
    tasks = _tasks(before.tasks)
    tasks.pop(str(threading.get_native_id()), None)
    return any(name not in before.tasks or task.since != before.tasks[name].since for name, task in tasks.items())


def _tasks(known: Mapping[str, Task]) -> dict[str, Task]:
    found = {}
    with os.scandir("/proc/self/task") as entries:
        for entry in entries:
            there, inode = known.get(entry.name), entry.inode()
            found[entry.name] = there if there and there.inode == inode else Task(inode, _since(entry.name))
    return found


def _count() -> int:
    """Of threads, as the kernel tells it by the links to their folder; -1 where it doesn't."""
    return os.stat("/proc/self/task").st_nlink - _LINKS_OWN  # noqa: PTH116


def _since(task: str) -> str:
    """When a thread was started, in the kernel's ticks; "" if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
