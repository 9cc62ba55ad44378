"""Where what a job prints goes: all of it, also what is printed below Python, to the log of its rank."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fabric.log_text import last_lines

_END_BYTES: Final = 64 * 2**10


@contextmanager
def logged(log_file: Path) -> Iterator[None]:
    """Everything the process and its children print goes to the job's log, also what is printed below Python."""
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    streams = sys.stdout, sys.stderr
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (_stream(fd) for fd in (1, 2))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for fd in (log, *kept):
            os.close(fd)


def end_of_log(log_file: Path, lines: int) -> str:
    """The last lines that a job has printed, of a part of its log that is read at once."""
    sys.stdout.flush()
    with suppress(OSError), log_file.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - _END_BYTES))
        return last_lines(log.read(_END_BYTES), lines)
    return ""


def _stream(fd: int) -> io.TextIOWrapper:
    """UTF-8 whatever the machine's locale, and no text that can't be printed: a file's name may have no encoding."""
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
