"""An event loop on a thread of its own, and how far it is behind: a busy loop is told from a dead one from outside.

Whoever looks after an engine must not wait for the loop that the engine's own application runs on: one request that keeps
that loop busy would make it look dead.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import uvloop

from fabric.errors import Internal

BEAT_S: Final = 0.25
_END_S: Final = 10.0

Done = TypeVar("Done")


class EventThread:
    """A loop that runs until `stop`. Start it from any thread; `run` may be awaited in any other loop."""

    def __init__(self, name: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._name, self._monotonic = name, monotonic
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._beat_at = 0.0

    def start(self) -> None:
        """Begin; a second time does nothing."""
        if self._thread is not None:
            return
        self._loop = loop = uvloop.new_event_loop()
        self._beat_at = self._monotonic()
        self._thread = threading.Thread(target=_run, args=(loop, self._beat), name=self._name, daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, Done]) -> Done:
        """What comes of `work` there. Cancelled here, it is cancelled there."""
        assert self._loop is not None, "it was started"
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def behind_s(self) -> float:
        """How long the loop has not come round.

        Raises:
            Internal: it has ended.
        """
        if self._thread is None or not self._thread.is_alive():
            raise Internal("the engine's event loop has ended", code="loop_ended")
        return max(0.0, self._monotonic() - self._beat_at - BEAT_S)

    async def stop(self) -> None:
        """End the loop, if it comes round to that soon."""
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            await asyncio.to_thread(self._thread.join, _END_S)

    def _beat(self) -> None:
        self._beat_at = self._monotonic()
        assert self._loop is not None, "it was started"
        self._loop.call_later(BEAT_S, self._beat)


def _run(loop: asyncio.AbstractEventLoop, first: Callable[[], None]) -> None:
    asyncio.set_event_loop(loop)
    loop.call_soon(first)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
