"""What one customer, or one address, may ask of a door: every bound that keeps one from weighing on the others.

A customer counts as one, however many keys it makes; each of the operator's keys counts alone. Before a key was looked at,
only the address is known.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

from fabric.errors import Fact, RateLimited

_REMEMBERED_MAX: Final = 10_000
_BURST_S: Final = 2
_PACE_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one caller may ask for."""

    requests_per_s: int = 200
    """For each customer, however many keys it makes, and for each operator key."""
    streams: int = 128
    """At once: what is watched, followed, fetched and uploaded, for each customer and each operator key."""
    histories: int = 4
    """Of those, statements, receipts, exports and usage: each may be about all that a customer ever did."""
    calls: int = 1_000
    """In hand at once, streams included."""
    messages: int = 16
    """That come in at once: the next ones wait at the sender's."""
    guesses_per_s: int = 100
    """Keys that nobody here knows, for each address."""
    connections: int = 256
    """From one address at once: of IPv6 a /64 counts as one. With a load balancer before the door, all come from its own."""
    connections_per_account: int = 512
    """From all addresses together: the newest beyond are closed. One over which several accounts ask is a proxy's."""
    updates_per_s: int = 2_000
    """Of jobs, over all that is watched; beyond, each stream has the last state of a job a little later."""
    log_bytes_per_s: int = 32 * 2**20
    """Of logs; beyond, the reader waits."""
    checkpoint_bytes_per_s: int = 64 * 2**20
    """Of checkpoints that are fetched; beyond, the reader waits."""
    checkpoints: int = 4
    """Fetched at once."""
    call_bytes: int = 192 * 2**10
    """Of one request that is not a blob: the gate remembers what it was asked."""
    request_bytes: int = 2 * 2**20
    """Of one message on the wire, before anybody has looked who sends it."""
    blob_bytes: int = 512 * 2**20
    """Of one blob."""
    blobs_bytes: int = 16 * 2**30
    """Of all blobs that an account keeps, those included that are coming in; a small one counts as 32 KiB."""
    archive_bytes: int = 2**40
    """All that an account's jobs keep in the archive: who keeps more starts no further job."""
    archive_values: int = 500_000
    """In how many values."""
    blobs_bytes_without_tokens: int = 64 * 2**20
    """The same, of an account that has neither tokens nor credit."""


class RateLimit:
    """A token bucket for each caller: so many requests a second, and twice that at once."""

    def __init__(self, *, per_s: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def pace(self, caller: str, *, as_many: int) -> None:
        """Count as `spend` does, and wait where that would refuse."""
        while True:
            try:
                return self.spend(caller, as_many=as_many)
            except RateLimited:
                await asyncio.sleep(_PACE_S)

    def check(self, caller: str) -> None:
        """Refuse one who has spent too many already; counts nothing.

        Raises:
            RateLimited: as `spend`.
        """
        if caller in self._buckets:
            self.spend(caller, as_many=0)

    def left(self, caller: str) -> tuple[int, int, float]:
        """How many requests may come at once, how many may now, and in how many seconds as many may as ever."""
        burst = self._per_s * _BURST_S
        left, seen_at = self._buckets.get(caller, (float(burst), 0.0))
        left = min(burst, left + (self._monotonic() - seen_at) * self._per_s)
        return burst, max(0, int(left)), max(0.0, (burst - left) / self._per_s)

    def spend(self, caller: str, *, as_many: int = 1) -> None:
        """Count one request, or what weighs as much as several: it may take what comes next, too.

        Raises:
            RateLimited: there were too many; `retry_after_s` says when to try again.
        """
        now = self._monotonic()
        burst = self._per_s * _BURST_S
        left, seen_at = self._buckets.pop(caller, (float(burst), now))
        left = min(burst, left + (now - seen_at) * self._per_s)
        allowed = left >= 1
        self._buckets[caller] = (left - as_many if allowed else left, now)
        if len(self._buckets) > _REMEMBERED_MAX:
            self._buckets.popitem(last=False)
        if not allowed:
            raise RateLimited(
                f"you may send {self._per_s} requests a second: try again in 1 s, or gather what you ask",
                limit_per_s=self._per_s,
                retry_after_s=1,
            )


class StreamLimit:
    """How many streams each caller has open: an idle one costs as much memory as a busy one, and some poll the gate."""

    def __init__(
        self,
        *,
        most: int,
        what: str = "streams open",
        remedy: str = "close one, or watch many jobs with one",
        code: str = "too_many_streams",
        retry_after_s: int | None = None,
    ) -> None:
        self._most = most
        self._facts: dict[str, Fact] = {} if retry_after_s is None else {"retry_after_s": retry_after_s}
        self._what, self._remedy, self._code = what, remedy, code
        self._open: Counter[str] = Counter()

    @contextmanager
    def one_more(self, caller: str) -> Iterator[None]:
        """Count one stream for as long as it is open.

        Raises:
            RateLimited: there are too many.
        """
        if self._open[caller] >= self._most:
            raise RateLimited(
                f"you have {self._most} {self._what}, which is all you may: {self._remedy}",
                code=self._code,
                limit=self._most,
                **self._facts,
            )
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]


@dataclass(slots=True)
class _Line:
    turns: asyncio.Semaphore
    waiting: int = field(default=0)


class Turns:
    """So many at once for each caller; the others wait for their turn."""

    def __init__(self, *, at_once: int) -> None:
        self._at_once = at_once
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """Wait for one, and have it."""
        line = self._lines.get(caller)
        if line is None:
            line = self._lines[caller] = _Line(asyncio.Semaphore(self._at_once))
        line.waiting += 1
        try:
            async with line.turns:
                yield
        finally:
            line.waiting -= 1
            if not line.waiting:
                self._lines.pop(caller, None)
