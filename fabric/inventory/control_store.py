"""Ray's control store, as the gate's process sees it: asked for the nodes again and again, and known to be away soon.

While it is away, what runs goes on, and so do its meters: Ray's processes speak to each other without it. Nothing new can
be started or removed, so leases wait to be built until it is back, and the time doesn't count against them.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

import ray
import structlog

from fabric.outage import Outage

ANSWER_S: Final = 3.0
"""A control store that takes longer for the list of its nodes counts as away, until it has answered."""
LOOK_S: Final = 0.5
"""How often a piece of work looks whether its time is up."""
NAME: Final = "Ray's control store"

T = TypeVar("T")

log = structlog.get_logger()


class ControlStore:
    """Whether it is there. Whoever looks at the nodes tells."""

    def __init__(self) -> None:
        self._outage: Outage | None = None
        self._there = asyncio.Event()
        self._there.set()

    @property
    def outage(self) -> Outage | None:
        """Since when it is away, and why; None while it answers."""
        return self._outage

    async def nodes(self) -> Sequence[Mapping[str, Any]]:
        """Its nodes, however long it takes to hear of them."""
        slow = TimeoutError(f"it has not answered for {ANSWER_S:g} s")
        stall = asyncio.get_running_loop().call_later(ANSWER_S, self._note, slow)
        try:
            found: Sequence[Mapping[str, Any]] = await asyncio.to_thread(ray.nodes)
        except Exception as error:
            self._note(error).tried(error)
            raise
        finally:
            stall.cancel()
        self._note_return()
        return found

    async def back(self) -> None:
        """Wait until it is there."""
        await self._there.wait()

    async def within(self, seconds: float, work: Coroutine[Any, Any, T]) -> T:
        """What the work comes to, if it ends in time; while the control store is away, the clock stands.

        Raises:
            TimeoutError: it didn't; it was cancelled then.
        """
        loop = asyncio.get_running_loop()
        left_s, looked_at = seconds, loop.time()
        looking: asyncio.TimerHandle
        async with asyncio.timeout(None) as limit:

            def look() -> None:
                nonlocal left_s, looked_at, looking
                now = loop.time()
                if self._outage is None:
                    left_s -= now - looked_at
                looked_at = now
                if left_s <= 0:
                    limit.reschedule(now)
                else:
                    looking = loop.call_later(min(LOOK_S, left_s), look)

            looking = loop.call_later(min(LOOK_S, left_s), look)
            try:
                return await work  # in no task of its own: what needs no wait is done at once
            finally:
                looking.cancel()

    def _note(self, error: BaseException) -> Outage:
        if self._outage is None:
            self._outage = Outage(NAME, error, code="ray_away")
            self._there.clear()
            log.error("ray_away", why=self._outage.why)
        return self._outage

    def _note_return(self) -> None:
        if self._outage is not None:
            log.info("ray_back", lasted_s=round(self._outage.lasted_s, 1), tries=self._outage.tries)
        self._outage = None
        self._there.set()
