"""A number that all that comes of a process carries as its limits, whatever it does: see `members`.

The number says which agent gave it: so one that is younger than a runner knows its own, and leaves another fabric's alone.
"""

import hashlib
import os
import resource
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

TRACE_BASE: Final = 1 << 61
"""Limits from here to twice that are ours."""
BROKEN: Final = -1
"""In the place of a number: there was one, and the process has lowered a limit."""
_SUM: Final = 3 * TRACE_BASE
_NO_LIMIT: Final = "unlimited"
_LIMIT_LINES: Final = {resource.RLIMIT_RTTIME: b"Max realtime timeout", resource.RLIMIT_RSS: b"Max resident set"}
_OWN_BITS: Final = 32
_TAG_BITS: Final = 28
"""Above them, in a trace: whose it is."""


def tag_of(fabric: str, machine: str) -> int:
    """What all traces that a fabric's agent on a machine gives have in common."""
    digest = hashlib.sha256(f"{fabric} on {machine}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _TAG_BITS)


def new_trace(tag: int = 0) -> int:
    """A number for a limit, as good as unique."""
    return TRACE_BASE + (tag << _OWN_BITS) + secrets.randbits(_OWN_BITS)


def has_tag(trace: int, tag: int) -> bool:
    """Whether a trace was given by the agent with this tag."""
    return trace > 0 and (trace - TRACE_BASE) >> _OWN_BITS == tag


def trace_of(pid: int) -> int:
    """The number that a process carries as its limits; 0 = none of ours, `BROKEN` = no longer."""
    found = _hard_limits(pid)
    number, rest = found.get(resource.RLIMIT_RTTIME), found.get(resource.RLIMIT_RSS)
    if number is None or rest is None:
        return 0
    return number if TRACE_BASE <= number < 2 * TRACE_BASE and number + rest == _SUM else BROKEN


def _hard_limits(pid: int) -> dict[int, int]:
    """Those of the pair that a process has."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_bytes().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        for limit, name in _LIMIT_LINES.items():
            if line.startswith(name) and (hard := line[len(name) :].split()[1].decode()) != _NO_LIMIT:
                found[limit] = int(hard)
    return found


def carry_trace(trace: int) -> None:
    """Have this process, and all that comes of it, carry a number as its limits. Fine if that can't be."""
    if trace > 0:
        with suppress(OSError, ValueError):
            _carry(os.getpid(), trace)


def _carry(pid: int, trace: int) -> None:
    for limit, number in ((resource.RLIMIT_RTTIME, trace), (resource.RLIMIT_RSS, _SUM - trace)):
        resource.prlimit(pid, limit, (number, number))


def traced(pid: int, tag: int = 0) -> int:
    """Give a process a number, unless it has one."""
    if (already := trace_of(pid)) > 0:
        return already
    trace = new_trace(tag)
    with suppress(OSError, ValueError):
        _carry(pid, trace)
        return trace
    return 0
