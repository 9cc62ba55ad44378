"""The processes of a lease, as the kernel shows them: who they are, what they used, and how to end them.

A process belongs to a lease if it descends from one of its runners or carries the lease's id in its environment, which
children inherit even when they leave the tree. Linux only.
"""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

LEASE_VARIABLE: Final = "FABRIC_LEASE_ID"
_PROC: Final = Path("/proc")
_TICK_US: Final = 1_000_000 // os.sysconf("SC_CLK_TCK")


class CpuUsage(NamedTuple):
    threads_us: dict[int, int]
    """By living thread: how long it ran or waited for a core."""
    ran_us: int
    """How long all threads ran, ended ones too."""
    children_us: int
    """How long children ran that ended and were waited for."""


def tree_of(roots: Sequence[int], *, lease_id: str) -> list[int]:
    """The roots that live, all that descends from them, and all that carries the lease's id, by number."""
    parents = {pid: parent for pid in _all_pids() if (parent := _parent_of(pid)) is not None}
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    marker = f"{LEASE_VARIABLE}={lease_id}\0".encode()
    waiting = [pid for pid in parents if pid in roots or _carries(pid, marker)]
    found: set[int] = set()
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return sorted(found - {os.getpid()})


def cpu_of(pid: int) -> CpuUsage | None:
    """One reading, or None if the process is gone."""
    try:
        threads_us = {}
        for thread in os.scandir(f"/proc/{pid}/task"):
            ran_ns, waited_ns, _ = _text(Path(thread.path, "schedstat")).split()
            threads_us[int(thread.name)] = (int(ran_ns) + int(waited_ns)) // 1000
        fields = _stat(pid)
    except (OSError, ValueError):
        return None
    ran_us = (int(fields[11]) + int(fields[12])) * _TICK_US
    return CpuUsage(threads_us, ran_us, (int(fields[13]) + int(fields[14])) * _TICK_US)


def end_all(roots: Sequence[int], *, lease_id: str, timeout_s: float = 10.0) -> bool:
    """Kill the lease's processes until none is left. Whether that succeeded within the timeout."""
    give_up_at = time.monotonic() + timeout_s
    while pids := [pid for pid in tree_of(roots, lease_id=lease_id) if _is_running(pid)]:
        for pid in pids:
            kill(pid)
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.01)
    return True


def is_there(pid: int) -> bool:
    """Whether a process has this number."""
    return (_PROC / str(pid)).exists()


def kill(pid: int, with_signal: int = signal.SIGKILL) -> None:
    """Send a signal; fine if the process is gone."""
    try:
        os.kill(pid, with_signal)
    except (ProcessLookupError, PermissionError):
        return


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir(_PROC) if entry.name.isdigit()]


def _parent_of(pid: int) -> int | None:
    try:
        return int(_stat(pid)[1])
    except (OSError, ValueError):
        return None


def _is_running(pid: int) -> bool:
    try:
        return _stat(pid)[0] not in "ZX"
    except (OSError, ValueError):
        return False


def _stat(pid: int) -> list[str]:
    """The fields of /proc/pid/stat after the command's name: state, parent, ..."""
    return _text(_PROC / str(pid) / "stat").rpartition(")")[2].split()


def _carries(pid: int, marker: bytes) -> bool:
    try:
        return marker in (_PROC / str(pid) / "environ").read_bytes() + b"\0"
    except OSError:
        return False


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii", errors="replace")
