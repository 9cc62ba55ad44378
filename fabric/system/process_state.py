"""What of a process outlives a function that ran in it, and would go on, or hold something, when its lease is over.

A runner that is kept serves one account alone, so what a job does to the modules, or to other objects of Python, is its own
account's affair, and harmless to all others: the environment, the directory, the arguments and the path are put back (see
`fabric.worker.execution`), modules of the job's folder are forgotten, and the rest is what the account's next job finds.
What is looked for here is what isn't: what computes, may be called later, or takes the node's resources while nobody pays.

    threads                      see `threads`, native ones too
    child processes              see the runner
    timers                       setitimer, and those of the kernel where it tells of them
    signals                      handlers of Python and of C, ignored ones
    audit, trace, profile hooks  and what is called when memory is collected, or the process forks
    open files and sockets       files; others beyond a few, which Ray and the archive open and close as they need
    memory                       mapped or allocated, beyond what libraries take
    rights and limits            resource limits, umask, user, groups, priority, processors

It is no defence against code that hides from the process itself: that can't hide from the node agent, which counts a kept
process's use from its next lease on, and ends what is beside it.
"""

import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

SOCKETS_MORE: Final = 32
"""So many more sockets and pipes than at the start are no sign of anything."""
MEMORY_MORE: Final = 2**30
"""So many more bytes than at the start are what libraries take that a job has loaded."""
_STATUS: Final = ("VmRSS", "Umask", "Uid", "Gid", "Groups", "SigIgn", "SigCgt", "CapEff", "NoNewPrivs", "Seccomp")
_KIB: Final = 1024
_THREADS_OWN: Final = 1 << 31 | 1 << 32
"""The signals by which the C library cancels threads and changes their users: caught from the first that needs them."""
_LIMITS: Final = tuple(value for name, value in vars(resource).items() if name.startswith("RLIMIT_"))
_SIGNALS: Final = tuple(signal.valid_signals())
_TIMERS: Final = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


class ProcessState(NamedTuple):
    """As it is before any job: what a job leaves is found by comparison."""

    status: tuple[str, ...]
    signals: tuple[int, ...]
    limits: tuple[tuple[int, int], ...]
    scheduling: tuple[Any, ...]
    hooks: tuple[Any, ...]
    files: Mapping[str, str]
    """By descriptor: what is open, "" for what is no file."""
    sockets: int
    memory: int


def state_now(known: "ProcessState | None" = None) -> ProcessState:
    """The state of this process; descriptors that are known are not looked up again."""
    files, sockets = _opened({} if known is None else known.files)
    status, caught, memory = _status()
    return ProcessState(
        status=status,
        signals=tuple(id(signal.getsignal(number)) for number in _SIGNALS if caught >> (number - 1) & 1),
        limits=tuple(resource.getrlimit(limit) for limit in _LIMITS),
        scheduling=(os.getpriority(os.PRIO_PROCESS, 0), frozenset(os.sched_getaffinity(0))),
        hooks=_hooks(),
        files=files,
        sockets=sockets,
        memory=memory,
    )


def left_in(before: ProcessState) -> str:
    """What a job has left in this process that another must not find; "" = nothing."""
    if any(any(signal.getitimer(timer)) for timer in _TIMERS) or _kernel_timers():
        return "a timer"
    now = state_now(before)
    for what, was, found in (
        ("a signal's handler", before.signals, now.signals),
        ("another status", before.status, now.status),
        ("other limits", before.limits, now.limits),
        ("another priority", before.scheduling, now.scheduling),
        ("a hook", before.hooks, now.hooks),
    ):
        if was != found:
            return what
    if any(name and descriptor not in before.files for descriptor, name in now.files.items()):
        return "an open file"
    if now.sockets > before.sockets + SOCKETS_MORE:
        return "open sockets"
    return "memory" if now.memory > before.memory + MEMORY_MORE else ""


class HooksWatch:
    """Notices hooks that Python has no word to list: they can only be added."""

    def __init__(self) -> None:
        self.seen = False

    def watch(self) -> None:
        """From now on."""
        for owner, name in ((sys, "addaudithook"), (os, "register_at_fork")):
            setattr(owner, name, self._noting(getattr(owner, name)))

    def _noting(self, add: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **options: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                self.seen = True
            return add(*args, **options)

        return noted


def _status() -> tuple[tuple[str, ...], int, int]:
    """What the kernel says of the process: its rights and signals, those it catches as bits, and the bytes of memory it has."""
    lines = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
    told = {name: said.strip() for name, _, said in lines if name in _STATUS}
    caught = int(told.pop("SigCgt"), 16) & ~_THREADS_OWN
    memory = int(told.pop("VmRSS", "0").split()[0]) * _KIB
    return (*told.values(), f"{caught:x}"), caught, memory


def _kernel_timers() -> bool:
    with suppress(OSError):
        return bool(Path("/proc/self/timers").read_bytes())
    return False


def _hooks() -> tuple[Any, ...]:
    """Identities, so that nothing of a job's is kept alive by looking at it."""
    return (
        id(sys.gettrace()),
        id(sys.getprofile()),
        id(threading.gettrace()),
        id(threading.getprofile()),
        tuple(map(id, gc.callbacks)),
        id(sys.excepthook),
        id(threading.excepthook),
        id(sys.unraisablehook),
    )


def _opened(known: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """What is open, by descriptor, with its name where it is a file; and how much of it is none."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208  # a third of the time
        if entry in known:
            found[entry] = known[entry]
            continue
        with suppress(OSError):
            name = os.readlink(f"/proc/self/fd/{entry}")  # noqa: PTH115
            is_file = name.startswith("/") and not name.startswith(("/dev/", "/proc/", "/sys/"))
            found[entry] = name if is_file else ""
    return found, sum(not name for name in found.values())
