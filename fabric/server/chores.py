"""Chores: what goes on by itself for as long as the gate lives, whatever fails or hangs meanwhile."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from fabric.errors import FabricError
from fabric.gate import Gate

CHORE_S: Final = 120.0
"""A chore that takes longer waits for something that is away, and is begun again."""

log = structlog.get_logger()


async def again_and_again(chore: Callable[[], Awaitable[None]], pause_s: float, *, failed_pause_s: float) -> None:
    """Do it, pause, do it again. One that fails is tried again at its next turn; an outage is told of once, and its end."""
    failed = ""
    while True:
        try:
            async with asyncio.timeout(CHORE_S):
                await chore()
        except FabricError as error:
            if failed != error.code:
                log.warning("chore_failed", chore=chore.__name__, code=error.code, error=error.message)
            failed = error.code
            await asyncio.sleep(failed_pause_s)
        except Exception:
            log.exception("chore_failed", chore=chore.__name__)
            failed = "failed"
            await asyncio.sleep(failed_pause_s)
        else:
            if failed:
                log.info("chore_works_again", chore=chore.__name__)
            failed = ""
        await asyncio.sleep(pause_s)


def next_due(core: Gate) -> tuple[int | None, float]:
    """When a tick has something to do, and how long it took to find out."""
    began = time.monotonic()
    return core.next_due_us(), time.monotonic() - began
