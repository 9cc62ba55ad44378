"""The LoRA adapters of a replica: brings those that are loaded to those that are wanted, one after the other.

An adapter is a model of its own for everybody who asks, pays or counts: it has a meter of its own, and an outbox. It knows
no engine: `Host` is where adapters are loaded.
"""

import asyncio
import contextlib
import hashlib
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import msgspec
import structlog

from fabric.charging.rates import Rate
from fabric.errors import FabricError, InvalidRequest
from serving.metering.meter import Meter
from serving.replica.sources import ARCHIVE, JOB

RANK: Final = "--max-lora-rank"
RANK_DEFAULT: Final = 16
AGAIN_S: Final = 15.0
"""How long until one that could not be loaded is tried again, where that may pass; doubled each time."""
_AGAIN_MAX_S: Final = 600.0
_REASON_CHARS: Final = 2_000

_log = structlog.get_logger()


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """One that is wanted.

    Args:
        version: another one is loaded anew.
    """

    name: str
    source: str
    version: str
    rate: Rate

    @property
    def mark(self) -> tuple[str, str, int]:
        """What is looked at to know whether it stands as it is wanted."""
        return self.name, self.version, self.rate.version

    @property
    def is_ours(self) -> bool:
        """Whether the operator put it on the nodes; else somebody made it."""
        return not self.source.startswith((ARCHIVE, JOB))


class AdapterStanding(msgspec.Struct, frozen=True, kw_only=True):
    """One that was loaded, or why it could not be: then an earlier version may still serve.

    Args:
        version: that was tried last.
        serves: whether calls for it are answered.
    """

    name: str
    version: str
    rate_version: int
    failure: str = ""
    serves: bool = True

    @property
    def mark(self) -> tuple[str, str, int]:
        """As an `Adapter` has it."""
        return self.name, self.version, self.rate_version


@runtime_checkable
class Host(Protocol):
    """An engine that takes adapters."""

    async def load_adapter(self, name: str, folder: Path, meter: Meter) -> None:
        """Answer for the name from here on, by these weights; calls that are under way end by theirs."""
        ...

    def drop_adapter(self, name: str) -> Awaitable[None]:
        """Answer for the name no longer; what is returned is over when its last call has ended."""
        ...


class Adapters:
    """Those of one replica, within the engine's event loop.

    Args:
        host: the engine.
        fetch: an adapter's folder on this node, looked at; it blocks.
        meter: opens the meter of an adapter.
        reprice: has a meter charge by other rates.
    """

    def __init__(
        self,
        host: Host,
        *,
        fetch: Callable[[Adapter], Path],
        meter: Callable[[Adapter], Awaitable[Meter]],
        reprice: Callable[[Meter, Rate], None],
    ) -> None:
        self._host, self._fetch, self._open, self._reprice = host, fetch, meter, reprice
        self._wanted: dict[str, Adapter] = {}
        self._meters: dict[str, Meter] = {}
        self._standing: dict[str, AdapterStanding] = {}
        self._due: set[str] = set()
        """Those that failed and are to be tried again now."""
        self._later: dict[str, tuple[float, asyncio.TimerHandle]] = {}
        """After how long those that failed are tried again, and what waits for that."""
        self._working: asyncio.Task[None] | None = None
        self._ending: dict[asyncio.Task[None], Meter] = {}

    def want(self, adapters: Sequence[Adapter]) -> None:
        """These and no others, as soon as may be."""
        self._wanted = {each.name: each for each in adapters}
        self._begin()

    def _begin(self) -> None:
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())

    async def settled(self) -> None:
        """Wait until all that is wanted was tried."""
        if self._working is not None:
            await asyncio.shield(self._working)

    def standing(self) -> tuple[AdapterStanding, ...]:
        return tuple(self._standing.values())

    @property
    def meters(self) -> tuple[Meter, ...]:
        """Those of dropped ones too, while calls are under way."""
        return (*self._meters.values(), *self._ending.values())

    async def close(self) -> bool:
        """Settle the calls of all of them; whether the ledger knows of them."""
        for _, timer in self._later.values():
            timer.cancel()
        if self._working is not None:
            self._working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._working
        for task in self._ending:
            task.cancel()
        meters, self._meters = self.meters, {}
        return all(await asyncio.gather(*(meter.close(for_good=True) for meter in meters)))

    async def _work(self) -> None:
        while (step := self._next()) is not None:
            name, adapter = step
            self._due.discard(name)
            if adapter is None:
                del self._standing[name]
                self._forget(name)
                self._drop(name)
                continue
            try:
                await self._bring(adapter)
            except Exception as error:  # noqa: BLE001 - an engine may fail with anything, and the others are wanted too
                _log.warning("adapter_failed", name=name, why=str(error)[:_REASON_CHARS])
                self._standing[name] = _failed(adapter, error, serves=name in self._meters)
                if not isinstance(error, InvalidRequest):  # what it is doesn't pass; all else may
                    self._try_later(name)
            else:
                self._forget(name)

    def _try_later(self, name: str) -> None:
        after_s, timer = self._later.get(name, (AGAIN_S / 2, None))
        if timer is not None:
            timer.cancel()
        after_s = min(2 * after_s, _AGAIN_MAX_S)
        self._later[name] = after_s, asyncio.get_running_loop().call_later(after_s, self._again, name)

    def _again(self, name: str) -> None:
        self._due.add(name)
        self._begin()

    def _forget(self, name: str) -> None:
        _, timer = self._later.pop(name, (0.0, None))
        if timer is not None:
            timer.cancel()

    def _next(self) -> tuple[str, Adapter | None] | None:
        """What to do: drop one, or bring one."""
        for name in self._standing:
            if name not in self._wanted:
                return name, None
        for adapter in self._wanted.values():
            has = self._standing.get(adapter.name)
            if has is None or has.mark != adapter.mark or adapter.name in self._due:
                return adapter.name, adapter
        return None

    async def _bring(self, adapter: Adapter) -> None:
        has, meter = self._standing.get(adapter.name), self._meters.get(adapter.name)
        if meter is not None:
            self._reprice(meter, adapter.rate)  # whichever version answers: its price is what is shown
        if meter is None or has is None or has.version != adapter.version or has.failure:
            folder = await asyncio.to_thread(self._fetch, adapter)
            fresh = meter or await self._open(adapter)
            try:
                await self._host.load_adapter(adapter.name, folder, fresh)
            except BaseException:
                if meter is None:
                    await fresh.close(for_good=True)
                raise
            if meter is None:
                self._meters[adapter.name] = fresh
                self._reprice(fresh, adapter.rate)
        self._standing[adapter.name] = AdapterStanding(
            name=adapter.name, version=adapter.version, rate_version=adapter.rate.version
        )

    def _drop(self, name: str) -> None:
        """At once for who comes now; its meter ends with the last call."""
        meter = self._meters.pop(name, None)
        if meter is not None:
            task = asyncio.create_task(_end(self._host.drop_adapter(name), meter))
            self._ending[task] = meter
            task.add_done_callback(self._ending.pop)


async def _end(over: Awaitable[None], meter: Meter) -> None:
    """Settle its calls, however long the ledger is away: until then they are among those that it doesn't know of."""
    await over
    await meter.close(timeout_s=math.inf, for_good=True)


def meter_id(replica_id: str, adapter: str) -> str:
    """What an adapter's meter and its outbox are called; never twice the same, as one may be dropped and come again while
    its last call is under way. What a killed process leaves is settled by whoever starts there next.
    """
    digest = hashlib.sha256(adapter.encode()).hexdigest()[:12]
    return f"{replica_id}~{digest}-{time.time_ns():x}"


def rank_max(engine_args: Sequence[str]) -> int:
    """The highest rank that an engine with these arguments takes."""
    for name, value in itertools.pairwise(engine_args):
        if name == RANK:
            return int(value)
    return RANK_DEFAULT


def _failed(adapter: Adapter, error: Exception, *, serves: bool) -> AdapterStanding:
    said = error.message if isinstance(error, FabricError) else f"the engine did not take it: {error}"
    return AdapterStanding(
        name=adapter.name,
        version=adapter.version,
        rate_version=adapter.rate.version,
        failure=said[:_REASON_CHARS],
        serves=serves,
    )
