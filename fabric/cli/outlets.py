"""Standard output and standard error as a command finds them: closed, full, broken off, or of few letters."""

import errno
import os
import sys
from pathlib import Path
from typing import Any, Final

from fabric.errors import InvalidRequest

OUTPUT_FAILED: Final = frozenset(
    {errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}
)
"""What a write to standard output says that had no room."""


def prepare_output() -> None:
    """A letter that can't be shown is a `?`, and what is closed takes all and shows nothing."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def leave_output() -> None:
    """Nothing more is written to standard output, nor what waits to be: nobody reads it, or it has no room."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
    except (OSError, ValueError):
        return  # it is no file of the system's


def unwritten(error: OSError) -> InvalidRequest:
    """What is said of an answer that could not be written."""
    return InvalidRequest(f"can't write the answer: {error.strerror}", code="file_unusable")


def can_show(text: str, stream: Any) -> bool:
    """Whether a stream has all these letters."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
