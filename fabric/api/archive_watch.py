"""Whether the archive answers, as a door knows it: nobody waits for one that doesn't, and it is looked for until it does.

An archive that is slow is waited for; one that is away is told from it by asking, beside the call that waits, whether it
answers at all. Whoever waits is told then, and the next ones are at once.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

import structlog

from fabric.errors import FabricError, Unavailable
from fabric.outage import Outage
from fabric.storage.archive import Archive
from fabric.system.client_threads import aside

SLOW_S: Final = 1.0
"""A call to the archive that fails sooner makes nobody wait: no other is spared it."""
PATIENCE_S: Final = 2.0
"""How long a call waits until the archive is asked whether it is there."""
LOOK_S: Final = 3.0
"""How long the answer to that may take."""
NAME: Final = "the archive"

T = TypeVar("T")
Given = TypeVarTuple("Given")

log = structlog.get_logger()


class ArchiveWatch:
    """One for each door."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._outage: Outage | None = None
        self._looking: asyncio.Task[None] | None = None

    async def ask(self, call: Callable[[Unpack[Given]], T], *given: *Given) -> T:
        """What a blocking call to the archive gives, made in a thread.

        Raises:
            Unavailable: `archive_away`: it doesn't answer; or what the call raises.
        """
        return await self.wait_for(aside(call, *given))

    async def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """The same of any work that asks the archive, and is not ended with its caller."""
        if self._outage is not None:
            work.close()
            raise self._outage.refusal()
        began = time.monotonic()
        asking = asyncio.ensure_future(work)
        asking.add_done_callback(_heard)
        while not (await asyncio.wait((asking,), timeout=PATIENCE_S))[0]:
            looking = self._look()
            await asyncio.wait((asking, looking), timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if self._outage is not None and not asking.done():
                raise self._outage.refusal(_IN_DOUBT)
        try:
            return asking.result()
        except Unavailable as error:
            if time.monotonic() - began >= SLOW_S:
                self._note(error)
                self._look()
            raise

    def _look(self) -> "asyncio.Task[None]":
        if self._looking is None:
            self._looking = asyncio.create_task(self._until_it_answers())
        return self._looking

    async def _until_it_answers(self) -> None:
        try:
            while (error := await self._looked()) is not None:
                self._note(error).tried(error)
                await asyncio.sleep(self._note(error).pause_s)
        finally:
            if self._outage is not None:
                log.info("archive_back", lasted_s=round(self._outage.lasted_s, 1), tries=self._outage.tries)
            self._outage = self._looking = None

    async def _looked(self) -> Exception | None:
        """Why it doesn't answer; None if it does. In a thread of its own: those for calls may all wait for it."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[Exception | None] = loop.create_future()

        def tell(error: Exception | None) -> None:
            if not told.done():
                told.set_result(error)

        def look() -> None:
            error: Exception | None = None
            try:
                self._archive.look(LOOK_S)
            except FabricError as failed:
                error = failed
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell, error)

        threading.Thread(target=look, name="archive-look", daemon=True).start()
        try:
            return await asyncio.wait_for(told, LOOK_S)
        except TimeoutError:
            return Unavailable(f"it has not answered for {LOOK_S:g} s", code="archive_failed")

    def _note(self, error: Exception) -> Outage:
        if self._outage is None:
            self._outage = Outage(NAME, error, code="archive_away")
            log.warning("archive_away", why=self._outage.why)
        return self._outage


def _heard(asking: "asyncio.Future[Any]") -> None:
    """Nobody may be waiting for it any more."""
    if not asking.cancelled():
        asking.exception()


_IN_DOUBT: Final = "Whether this call was carried out is not known, and asking again is safe"
