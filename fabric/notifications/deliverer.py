"""The deliverer: takes what waits in the store to its endpoints, at least once, again and again for three days.

An endpoint is sent to one at a time, what is of one subject in order: while its first is tried again, the others wait. What
isn't known to have arrived, because we or the receiver died, is sent again under the same id. An endpoint that fails rests, so
that one that is away costs the others nothing.
"""

import asyncio
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from typing import Final, Protocol

import structlog
from msgspec.structs import replace

from fabric.notifications.endpoints import Endpoint
from fabric.notifications.notice import Notice
from fabric.notifications.rows import Delivery
from fabric.notifications.store import KEPT_US, NoticeStore
from fabric.notifications.webhooks import Answer

PAUSES_S: Final = (5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 28_800)
"""Before a try, each after the one before it; then every eight hours."""
RESTS_S: Final = (2, 5, 30, 120, 600)
"""How long an endpoint isn't sent anything that has failed so often in a row."""
GIVEN_UP_US: Final = 3 * 86_400_000_000
"""So long after it was made a notice is not sent any more."""
AT_ONCE: Final = 16
"""Endpoints that are sent to at the same time."""
PAGE: Final = 500
RATE_S: Final = 0.05
"""The least time between two notices for one endpoint."""
LOOK_S: Final = 0.2
FORGET_S: Final = 3_600.0
_S: Final = 1_000_000

log = structlog.get_logger()


class Sends(Protocol):
    """A way to an endpoint."""

    async def send(self, endpoint: Endpoint, notice: Notice, *, now_us: int) -> Answer:
        """One try; ends soon, whatever happens."""


class Deliverer:
    """One for a store. Several do no harm, but send twice."""

    def __init__(self, store: NoticeStore, sender: Sends, *, now_us: Callable[[], int], rate_s: float = RATE_S) -> None:
        """Put the parts together.

        Args:
            store: what waits.
            sender: the way.
            now_us: what time it is.
            rate_s: the least time between two notices for one endpoint.
        """
        self._store = store
        self._sender = sender
        self._now_us = now_us
        self._rate_s = rate_s
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._rests: dict[str, tuple[int, int]] = {}
        """Of endpoints that fail: how often in a row, and until when nothing is sent."""

    async def run(self) -> None:
        """Deliver for ever."""
        forget_us = 0
        try:
            while True:
                try:
                    await self.look()
                    if self._now_us() > forget_us:
                        forget_us = self._now_us() + round(FORGET_S * _S)
                        await self._forget()
                except Exception as error:  # noqa: BLE001 - the store may be away: trying again is all that helps
                    log.warning("notices_not_delivered", error=str(error))
                    await asyncio.sleep(5)
                await asyncio.sleep(LOOK_S)
        finally:
            for task in self._busy.values():
                task.cancel()

    async def look(self) -> None:
        """Begin to deliver what can be."""
        self._busy = {name: task for name, task in self._busy.items() if not task.done()}
        if len(self._busy) >= AT_ONCE:
            return
        now_us = self._now_us()
        resting = [name for name, (_, until_us) in self._rests.items() if until_us > now_us]
        due = await self._store.due(now_us, besides=(*self._busy, *resting), limit=PAGE)
        if not due:
            return
        endpoints = {each.endpoint_id: each for each in await self._store.endpoints()}
        by_endpoint = sorted(
            ((delivery.endpoint_id, (delivery, notice)) for delivery, notice in due), key=itemgetter(0)
        )
        for endpoint_id, found in groupby(by_endpoint, key=itemgetter(0)):
            if endpoint_id in endpoints and len(self._busy) < AT_ONCE:
                work = self._deliver(endpoints[endpoint_id], [pair for _, pair in found])
                self._busy[endpoint_id] = asyncio.create_task(work)

    async def until_idle(self) -> None:
        """Deliver what can be delivered now, and wait for it."""
        while True:
            await self.look()
            if not self._busy:
                return
            await asyncio.gather(*self._busy.values())

    async def _deliver(self, endpoint: Endpoint, found: list[tuple[Delivery, Notice]]) -> None:
        """One after the other, until one doesn't arrive."""
        for delivery, notice in found:
            now_us = self._now_us()
            answer = await self._sender.send(endpoint, notice, now_us=now_us)
            tried = replace(delivery, tries=delivery.tries + 1, last_at_us=now_us, answer=answer.said)
            if answer.arrived:
                endpoint = replace(endpoint, failing_since_us=0)
                self._rests.pop(endpoint.endpoint_id, None)
                await self._store.note(replace(tried, state="done"), endpoint)
            elif answer.is_gone:
                log.warning("endpoint_gone", endpoint=endpoint.endpoint_id, account=endpoint.account_id)
                await self._store.note(
                    replace(tried, state="given_up"), replace(endpoint, ended="it answered 410 Gone")
                )
                return
            else:
                endpoint = replace(endpoint, failing_since_us=endpoint.failing_since_us or now_us)
                self._rest(endpoint.endpoint_id, answer)
                await self._store.note(self._again(tried, answer), endpoint)
                return
            await asyncio.sleep(self._rate_s)

    def _rest(self, endpoint_id: str, answer: Answer) -> None:
        failures = self._rests.get(endpoint_id, (0, 0))[0] + 1
        rest_s = max(RESTS_S[min(failures, len(RESTS_S)) - 1], answer.retry_after_s)
        self._rests[endpoint_id] = failures, self._now_us() + rest_s * _S

    async def _forget(self) -> None:
        now_us = self._now_us()
        await self._store.forget(before_us=now_us - KEPT_US, give_up_us=now_us - GIVEN_UP_US)
        self._rests = {name: rest for name, rest in self._rests.items() if rest[1] > now_us - KEPT_US}

    def _again(self, tried: Delivery, answer: Answer) -> Delivery:
        pause_s = max(PAUSES_S[min(tried.tries, len(PAUSES_S)) - 1], answer.retry_after_s)
        next_at_us = self._now_us() + pause_s * _S
        if next_at_us > tried.made_at_us + GIVEN_UP_US:
            return replace(tried, state="given_up", answer=f"given up after {tried.tries} tries: {answer.said}")
        return replace(tried, next_at_us=next_at_us)
