"""What a process that follows a journal does for itself: it is told what to follow over its standard input, and ends with it."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from fabric import logs


def follow_as_told(follow: Callable[[bytes], Coroutine[Any, Any, None]], *, niceness: int) -> None:
    """Be told in one line what to follow, and follow it until the standard input ends.

    Args:
        follow: given the line; everything that it keeps is kept in transactions, as it is ended between any two steps.
        niceness: how far what decides and what serves goes first.
    """
    logs.begin()
    with suppress(OSError):
        os.nice(niceness)
    told = sys.stdin.buffer.readline()
    if not told:
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(follow(told))


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(0)
