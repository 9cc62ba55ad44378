"""A replica's own log: what its process and its engine write, and the end of it for who asks why a model can't be loaded."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LINES_KEPT: Final = 30


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Standard output and error of this process and its children, also to a file of the replica's own from here on."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    yield


def last_lines(log: Path) -> str:
    """Its last telling lines; "" where there are none."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        telling = [line for line in lines if line.strip() and " INFO " not in line]
        return "\n".join(telling[-_LINES_KEPT:])
    return ""
