"""How every process of ours logs: lines on standard error, in a file that its owner alone may read.

A traceback in them names lines of code and never the variables there, which hold what customers send and what opens doors.
A library that shows them by default (structlog does, where rich is installed) is told not to here, and each process of ours
says so when it begins.
"""

import io
import logging
import os
import stat
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TextIO

import structlog

from fabric.visible import visible, visible_lines

PRIVATE: Final = 0o600
UMASK: Final = 0o077
"""What a process of ours makes is its owner's alone."""


def plain(level: str = "INFO") -> None:
    """Log so from now on, in this process."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            _shown,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_traceback),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


def begin(level: str = "INFO") -> None:
    """Log so, and let whatever this process makes be its owner's alone: for a process of ours, when it begins."""
    plain(level)
    os.umask(UMASK)
    make_private(1, 2)


def make_private(*descriptors: int) -> None:
    """Let nobody but its owner read a file that is open; fine if it is none, or somebody else's."""
    for descriptor in descriptors:
        with suppress(OSError):
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.fchmod(descriptor, PRIVATE)


def make_written_private() -> None:
    """The same for all log files that this process writes to."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError, ValueError):
            if entry.readlink().suffix in (".err", ".log", ".out"):
                make_private(int(entry.name))


def open_private(path: Path) -> int:
    """A descriptor that appends to a log file, which its owner alone may read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE)
    make_private(descriptor)
    return descriptor


def _traceback(out: TextIO, about: Any) -> None:
    """In lines that begin with a bar: none of them, whatever the error's text has in it, can be taken for an entry."""
    written = io.StringIO()
    structlog.dev.plain_traceback(written, about)
    lines = visible_lines(written.getvalue()).splitlines()
    out.write("\n" + "\n".join(f"  | {line}" for line in lines if line))


def _shown(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Control characters, which come with what others say, as their names."""
    for name, value in event.items():
        if isinstance(value, str) and name != "stack":
            event[name] = visible(value)
    return event
