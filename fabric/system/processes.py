"""The processes of a lease, as the kernel shows them: who they are, what they used, and how to end them.

A process belongs to a lease if it descends from one of its runners or carries the lease's id in its environment, which
children inherit even when they leave the tree. Linux only.
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

LEASE_VARIABLE: Final = "FABRIC_LEASE_ID"
FABRIC_VARIABLE: Final = "FABRIC_ID"
"""Whose lease that is: two fabrics on one machine end nothing of each other's."""
NO_LEASE_YET: Final = "-"
"""What the variable is filled with in a process that will carry a lease's id, and doesn't yet."""
_PROC: Final = Path("/proc")
_SETTLED_S: Final = 3.0
_STAT_FIELDS: Final = 48
"""So many of /proc/pid/stat are read, from the state on; of a process that is just going there may be none."""
_SET_CHILD_SUBREAPER: Final = 36
_MARKS_MAX: Final = 20_000
_marks: dict[int, tuple[int, int, "Mark"]] = {}
"""By pid: (when it started, its image, what it carries). A pid may be used again, with another start, and a process may run another
program, with another environment.
"""
_TICK_US: Final = 1_000_000 // os.sysconf("SC_CLK_TCK")


class Identity(NamedTuple):
    """A process, whatever becomes of its number."""

    pid: int
    started_at: int

    @property
    def started_at_s(self) -> float:
        """By the wall clock."""
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + self.started_at * _TICK_US / 1_000_000


class Mark(NamedTuple):
    """What a process carries in the environment that its program was started with."""

    lease: str = ""
    """The lease's id, or its runner's name; "" = none."""
    fabric: str = ""
    """Which fabric's; "" = it doesn't say."""


class Seen(NamedTuple):
    """A living process, as one look shows it."""

    pid: int
    parent: int
    session: int
    started_at: int
    image: int
    """Another one after each exec: where its first environment lies; 0 = the kernel doesn't say."""

    @property
    def identity(self) -> Identity:
        return Identity(self.pid, self.started_at)


class CpuUsage(NamedTuple):
    threads_us: dict[int, int]
    """By living thread: how long it ran or waited for a core."""
    ran_us: int
    """How long all threads ran, ended ones too."""
    children_us: int
    """How long children ran that ended and were waited for."""


def all_processes() -> list[Seen]:
    """All that live; no zombies."""
    return [seen for pid in _all_pids() if (seen := seen_of(pid)) is not None]


def seen_of(pid: int) -> Seen | None:
    """One of them; None if it doesn't live."""
    try:
        fields = _stat(pid)
    except (OSError, ValueError):
        return None
    if len(fields) < _STAT_FIELDS:
        return None
    if fields[0] in "ZX":
        return None
    return Seen(pid, int(fields[1]), int(fields[3]), started_at=int(fields[19]), image=int(fields[47]))


def tree_of(roots: Sequence[int], *, lease_id: str) -> list[int]:
    """The roots that live, all that descends from them, and all that carries the lease's id, by number; no zombies."""
    children: dict[int, list[int]] = {}
    waiting = []
    for seen in all_processes():
        children.setdefault(seen.parent, []).append(seen.pid)
        if seen.pid in roots or mark_of(seen).lease == lease_id:
            waiting.append(seen.pid)
    found: set[int] = set()
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return sorted(found - {os.getpid()})


def below(root: int, pids: Iterable[int]) -> list[int]:
    """Those of the processes that descend from `root`."""
    parents = {seen.pid: seen.parent for seen in all_processes()}

    def descends(pid: int) -> bool:
        while (parent := parents.get(pid)) is not None:
            if parent == root:
                return True
            pid = parent
        return False

    return [pid for pid in pids if descends(pid)]


def cpu_of(pid: int) -> CpuUsage | None:
    """One reading, or None if the process is gone."""
    try:
        threads_us = {}
        for thread in os.scandir(f"/proc/{pid}/task"):
            ran_ns, waited_ns, _ = _text(f"{thread.path}/schedstat").split()
            threads_us[int(thread.name)] = (int(ran_ns) + int(waited_ns)) // 1000
        fields = _stat(pid)
    except (OSError, ValueError):
        return None
    ran_us = (int(fields[11]) + int(fields[12])) * _TICK_US
    return CpuUsage(threads_us, ran_us, (int(fields[13]) + int(fields[14])) * _TICK_US)


def adopt_orphans() -> None:
    """From now on whatever descends from this process stays below it, also when its own parent has ended: a daemon that
    forks twice, leaves the session and forgets its environment is still found.
    """
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_all(
    roots: Sequence[int], *, lease_id: str, timeout_s: float = 10.0, find: Callable[[], Sequence[int]] | None = None
) -> bool:
    """Kill the lease's processes until none is left. Whether that succeeded within the timeout. `find` says which they are;
    None = the roots, what descends from them, and what carries the mark.

    First all are made to stand still, so that none starts another; the roots go last, because they hold the others.
    One that keeps forking and ending faster than /proc can be read gets away: only a container of its own would hold it.
    """
    give_up_at = time.monotonic() + timeout_s
    still: set[int] = set()
    while pids := (tree_of(roots, lease_id=lease_id) if find is None else find()):
        for pid in (moving := [pid for pid in pids if pid not in still]):
            kill(pid, signal.SIGSTOP)
        still.update(moving)
        if moving and time.monotonic() < give_up_at:
            continue
        below = [pid for pid in pids if pid not in roots]
        for pid in below if below and time.monotonic() < give_up_at else pids:
            kill(pid)
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.01)
    return True


def are_still(pids: Iterable[int]) -> bool:
    """Whether all threads of all of these that live stand still."""
    return all(_thread_state(thread.path) in "TtZX" for pid in pids for thread in _threads(pid))


def is_there(pid: int) -> bool:
    """Whether a process has this number."""
    return (_PROC / str(pid)).exists()


def kill(pid: int, with_signal: int = signal.SIGKILL) -> None:
    """Send a signal; fine if the process is gone."""
    try:
        os.kill(pid, with_signal)
    except (ProcessLookupError, PermissionError):
        return


def _threads(pid: int) -> list["os.DirEntry[str]"]:
    try:
        return list(os.scandir(f"/proc/{pid}/task"))
    except OSError:
        return []


def _thread_state(path: str) -> str:
    try:
        return _text(f"{path}/stat").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir(_PROC) if entry.name.isdigit()]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/pid/stat after the command's name: state, parent, ..."""
    return _text(f"/proc/{pid}/stat").rpartition(")")[2].split()


def mark_of(seen: Seen) -> Mark:
    """What a process carries. Asked once of a program that has a lease's id, or has run for a while without one, and again of
    one that is to carry an id and doesn't yet. What is started for a lease may run others before: Ray's worker first runs
    what sets its environment up, for seconds on a machine under load.
    """
    known = _marks.get(seen.pid)
    if known is not None and known[:2] == (seen.started_at, seen.image):
        return known[2]
    try:
        environment = _bytes(f"/proc/{seen.pid}/environ").split(b"\0")
    except OSError:
        return Mark()
    mark = Mark(_value_of(LEASE_VARIABLE, environment), _value_of(FABRIC_VARIABLE, environment))
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - seen.started_at * _TICK_US / 1_000_000
    if mark.lease.strip(NO_LEASE_YET) or (not mark.lease and age_s > _SETTLED_S):
        if len(_marks) > _MARKS_MAX:
            _marks.clear()
        _marks[seen.pid] = (seen.started_at, seen.image, mark)
    return mark


def _value_of(variable: str, environment: Iterable[bytes]) -> str:
    name = f"{variable}=".encode()
    return next((entry[len(name) :].decode(errors="replace") for entry in environment if entry.startswith(name)), "")


def _bytes(path: str) -> bytes:
    """The whole of a file of /proc: a plain read, because these are read by the hundred."""
    handle = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(handle, 65_536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(handle)


def _text(path: str) -> str:
    return _bytes(path).decode("ascii", errors="replace")
