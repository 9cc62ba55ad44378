"""Reports to the gate, in order and in batches, said again until the gate has them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import structlog

from fabric.errors import Unavailable
from fabric.gate.events import AnyEvent

Report = Callable[[Sequence[AnyEvent]], Awaitable[object]]

_RETRY_S: Final = 0.2
_log = structlog.get_logger(__name__)


class Reports:
    """What is put first is reported first."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._waiting: list[tuple[AnyEvent, asyncio.Future[None] | None]] = []
        self._more = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to report; once is enough."""
        self._sender = self._sender or asyncio.create_task(self._send())

    def put(self, event: AnyEvent, *, within_s: float = 0.0) -> None:
        """Report it soon, at the latest after so many seconds: what can wait a little often goes with what follows."""
        self._waiting.append((event, None))
        if within_s > 0:
            asyncio.get_running_loop().call_later(within_s, self._more.set)
        else:
            self._more.set()

    async def deliver(self, event: AnyEvent) -> None:
        """Report it, and wait until the gate has it."""
        delivered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, delivered))
        self._more.set()
        await delivered

    async def close(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
            with suppress(asyncio.CancelledError):
                await self._sender

    async def _send(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            batch, self._waiting = self._waiting, []
            if batch:
                await self._hand_over([event for event, _ in batch])
            for _, delivered in batch:
                if delivered is not None and not delivered.done():
                    delivered.set_result(None)

    async def _hand_over(self, events: Sequence[AnyEvent]) -> None:
        while True:
            try:
                await self._report(events)
            except Unavailable:
                await asyncio.sleep(_RETRY_S)
            except Exception:  # noqa: BLE001  # one refused event must not silence the others
                if len(events) > 1:
                    for event in events:
                        await self._hand_over([event])
                    return
                _log.exception("event_refused", event_=type(events[0]).__name__)
                return
            else:
                return
