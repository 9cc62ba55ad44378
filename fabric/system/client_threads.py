"""Threads for what clients ask for, where that blocks.

The door may share its process with the gate, whose own threads start leases and end them in time: those must never wait for
an archive that somebody reads, however many somebodies there are. Knows nothing of what it runs.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar, TypeVarTuple, Unpack

CLERKS: Final = 16
"""Each waits for a disk or for the archive, most of its time."""

_clerks: Final = ThreadPoolExecutor(CLERKS, thread_name_prefix="clerk")

T = TypeVar("T")
Given = TypeVarTuple("Given")


async def aside(call: Callable[[Unpack[Given]], T], *given: *Given) -> T:
    """What `asyncio.to_thread` does, on a client's behalf."""
    return await asyncio.get_running_loop().run_in_executor(_clerks, call, *given)
