"""The pool: what is offered becomes leases, leases become replicas, and both go when nobody needs them.

One task looks at the board every second and decides, by `serving.host.scaling`, how many replicas of each model there should
be; one task for each replica takes it through its life: lease, start, ready, drain, gone. A load that fails gives its
lease back, says why with the engine's last lines, and is tried again later and later. It knows neither Ray nor gRPC:
`Ground` is where replicas stand, `Board` where things are read and said.
"""

import asyncio
import contextlib
import hashlib
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import structlog

from fabric.charging.rates import Rate, rate_for
from fabric.errors import FabricError, Unavailable
from serving.host.scaling import Bounds, Demand, replicas_for, wanted
from serving.replica.lora import Adapter
from serving.replica.standing import BUSY, LOADING, STUCK_S, Standing

_EVERY_S: Final = 1.0
_RETRY_S: Final = (5.0, 300.0)
_FAILURES_MAX: Final = 8
"""So many loads that fail in a row, in some ten minutes, are not followed by another until the model is offered anew: each
burns tokens.
"""
_SWEEP_EVERY_S: Final = 60.0
NO_CAPACITY: Final = "no_capacity"
"""The code of what is no failure of the model's: there were no devices."""
_REASON_CHARS: Final = 2_000
_SILENT_S: Final = 45.0
"""A replica that says nothing at all for so long is given up: restarting it in place did not help. One whose lease is lost
with its node is given up as soon as the gate says so, and one that says that it loads its model is not silent.
"""
_LOADING_S: Final = 900.0
_BUSY_US: Final = 5_000_000
"""A replica whose engine's loop hasn't come round for so long gets nothing new; its streams stay."""

_log = structlog.get_logger()


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is offered, as the pool needs it."""

    name: str
    source: str
    parent: str = ""
    """The model in whose replicas it runs, where it is an adapter."""
    accelerators: tuple[str, ...] = ()
    devices: int = 1
    replicas_min: int = 0
    replicas_max: int = 1
    ttft_objective_us: int | None = None
    dedicated_to: str = ""
    max_context: int | None = None
    engine: str = "vllm"
    engine_args: tuple[tuple[str, str], ...] = ()
    rates: tuple[Rate, ...] = ()

    @property
    def version(self) -> str:
        """Of what a replica is started with: another version needs other replicas; another count or price doesn't."""
        plain = msgspec.structs.replace(self, replicas_min=0, replicas_max=0, ttft_objective_us=None, rates=())
        return hashlib.sha256(msgspec.json.encode(plain)).hexdigest()[:12]

    def rate(self, accelerator: str) -> Rate:
        """What it costs on this type.

        Raises:
            FabricError: nothing is said of this type (code `no_rate`).
        """
        rate = rate_for(self.rates, accelerator=accelerator)
        if rate is None:
            raise FabricError(f"{self.name} has no rate on {accelerator}: offer it with one", code="no_rate")
        return rate


class Asked(msgspec.Struct, frozen=True):
    """What gateways and replicas say of a model."""

    offer: Offer
    queued: int = 0
    """Calls that wait at gateways."""
    changed: int = 0
    """Grows whenever it is offered again or scaled."""


class Plot(Protocol):
    """A lease on the ground."""

    lease_id: str
    accelerator: str

    async def is_lost(self) -> bool:
        """Whether it ended, with its node for one: nothing in it comes back."""
        ...

    async def close(self) -> None: ...


class Ground(Protocol):
    """Where replicas stand."""

    async def sweep(self) -> None:
        """Give back what was leased for replicas that nobody here knows, by a host that was killed for one."""
        ...

    async def lease(self, offer: Offer) -> Plot:
        """Devices for one replica; waits for them. Cancelled, it gives back what it has asked for."""
        ...

    async def start(self, replica_id: str, offer: Offer, plot: Plot) -> None:
        """Load the model; an error says why it could not be, with the engine's last lines."""
        ...

    async def look(self, replica_id: str) -> Standing: ...
    async def reprice(self, replica_id: str, rate: Rate) -> None:
        """Other rates for calls that begin from now on."""
        ...

    async def adapt(self, replica_id: str, adapters: Sequence[Adapter]) -> None:
        """Have it load these adapters and no others; comes back before they are."""
        ...

    async def stop(self, replica_id: str, *, drain: bool = True) -> None:
        """Let its calls end, settle them, and remove it; without `drain`, one that is broken: at once."""
        ...


class Board(Protocol):
    """Where the pool reads what is wanted, and says what there is."""

    async def asked(self) -> Sequence[Asked]: ...
    async def say(self, replicas: Sequence["Replica"], models: Sequence["Model"]) -> None: ...


@dataclass(slots=True, eq=False)
class Replica:
    """One replica on its way through its life: leasing | starting | ready | draining | failed."""

    replica_id: str
    offer: Offer
    version: str
    state: str = "leasing"
    reason: str = ""
    lease_id: str = ""
    accelerator: str = ""
    standing: Standing | None = None
    started_at_us: int = 0
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def counts(self) -> bool:
        """Whether it is, or is about to be, of use."""
        return self.state in {"leasing", "starting", "ready"}


@dataclass(slots=True)
class Model:
    """A model in the pool."""

    offer: Offer
    wanted: int = 0
    failures: int = 0
    reason: str = ""
    retry_at: float = 0.0
    changed: int = 0
    busy_at: float = 0.0
    """When more replicas than one fewer were last needed."""

    @property
    def state(self) -> str:
        if self.reason:
            return "failed"
        return "starting" if self.wanted else "idle"


class Pool:
    """Run it until cancelled, then `close` it."""

    def __init__(
        self,
        ground: Ground,
        board: Board,
        *,
        keep_us: int = 60_000_000,
        every_s: float = _EVERY_S,
        drain_s: float = 120,
    ) -> None:
        self._ground, self._board = ground, board
        self._keep_us, self._every_s, self._drain_s = keep_us, every_s, drain_s
        self._sweep_at = 0.0
        self.models: dict[str, Model] = {}
        self.replicas: dict[str, Replica] = {}

    async def run(self) -> None:
        """Look, decide, say; for ever."""
        while True:
            try:
                await self.turn()
            except FabricError as error:
                _log.warning("the door can't be reached", code=error.code, why=error.message)
            await asyncio.sleep(self._every_s)

    async def turn(self) -> None:
        """One look at the board, and what follows from it. What others have left goes first: its devices may be needed."""
        if time.monotonic() >= self._sweep_at:
            await self._ground.sweep()
            self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
        asked = {each.offer.name: each for each in await self._board.asked()}
        for name in [name for name in self.models if name not in asked]:
            del self.models[name]
        for name, each in asked.items():
            model = self.models.setdefault(name, Model(each.offer, busy_at=time.monotonic()))
            if model.offer.version != each.offer.version or model.changed != each.changed:
                model.failures, model.reason, model.retry_at = 0, "", 0.0
            model.offer, model.changed = each.offer, each.changed
            if each.offer.parent:
                model.wanted = sum(replica.counts for replica in self._of(each.offer.parent))
            else:
                self._steer(model, each)
        for replica in list(self.replicas.values()):
            if replica.offer.name not in asked or asked[replica.offer.name].offer.parent:
                replica.leave.set()
        await self._board.say(list(self.replicas.values()), list(self.models.values()))

    async def close(self) -> None:
        """Drain every replica and give every lease back."""
        for replica in self.replicas.values():
            replica.leave.set()
        tasks = [replica.task for replica in self.replicas.values() if replica.task is not None]
        if tasks:
            await asyncio.wait(tasks)
        with contextlib.suppress(FabricError):
            await self._board.say([], [])

    def _steer(self, model: Model, asked: Asked) -> None:
        """Start, keep or drain replicas of one model."""
        now, version = time.monotonic(), model.offer.version
        mine = self._of(model.offer.name)
        current = [each for each in mine if each.counts and each.version == version]
        demand = _demand(mine, asked, counted=len(current))
        if replicas_for(demand) >= max(1, len(current)):
            model.busy_at = now
        demand = _demand(mine, asked, counted=len(current), quiet_us=int((now - model.busy_at) * 1e6))
        offer = model.offer
        bounds = Bounds(offer.replicas_min, offer.replicas_max, offer.ttft_objective_us, self._keep_us)
        model.wanted = wanted(demand, bounds)
        if len(current) < model.wanted and now >= model.retry_at:
            for _ in range(model.wanted - len(current)):
                self._begin(model)
        for extra in _least_used(current)[: len(current) - model.wanted]:
            extra.leave.set()
        ready = sum(each.state == "ready" and each.version == version for each in mine)
        if ready >= min(model.wanted, 1):  # the new version serves: the old one goes
            for old in mine:
                if old.version != version:
                    old.leave.set()

    def _of(self, name: str) -> list[Replica]:
        return [each for each in self.replicas.values() if each.offer.name == name]

    def _begin(self, model: Model) -> None:
        replica_id = f"{model.offer.name}-{secrets.token_hex(4)}"
        replica = Replica(replica_id, model.offer, model.offer.version)
        self.replicas[replica_id] = replica
        replica.task = asyncio.create_task(self._live(replica))

    async def _live(self, replica: Replica) -> None:
        """A replica's whole life. Whatever happens in it, its lease goes back."""
        plot: Plot | None = None
        try:
            plot = await _unless(replica.leave, self._ground.lease(replica.offer))
            if plot is None:
                return
            replica.lease_id, replica.accelerator, replica.state = plot.lease_id, plot.accelerator, "starting"
            await _unless(replica.leave, self._ground.start(replica.replica_id, replica.offer, plot))
            await self._watch(replica, plot)
        except Exception as error:  # noqa: BLE001 - an engine may fail with anything
            self._failed(replica, error)
        finally:
            await self._end(replica, plot)

    async def _watch(self, replica: Replica, plot: Plot) -> None:
        """Look at it until it is to leave. Serve restarts it in place when it dies: meanwhile it isn't ready. One that is
        busy isn't either, and is waited for.
        """
        heard_at = served_at = time.monotonic()
        while not replica.leave.is_set():
            try:
                replica.standing = await self._ground.look(replica.replica_id)
                heard_at = time.monotonic()
                await self._keep_priced(replica, replica.standing)
                await self._keep_adapted(replica, replica.standing)
            except Exception as error:
                replica.state, replica.reason = "starting", f"restarting: {error}"[:_REASON_CHARS]
                now, code = time.monotonic(), error.code if isinstance(error, FabricError) else ""
                if code == LOADING:
                    heard_at = now
                if (
                    now - heard_at > (STUCK_S if code == BUSY else _SILENT_S)
                    or now - served_at > _LOADING_S
                    or await plot.is_lost()
                ):
                    raise
            else:
                behind_us = replica.standing.behind_us
                if behind_us > _BUSY_US:
                    replica.state, replica.reason = "starting", f"busy: no answer for {behind_us // 1_000_000} s"
                    if heard_at - served_at > _LOADING_S:
                        raise Unavailable(replica.reason, code="stuck")
                    await self._pause(replica)
                    continue
                served_at = heard_at
                if replica.state != "ready":
                    replica.state, replica.reason = "ready", ""
                    replica.started_at_us = time.time_ns() // 1_000
                    if (model := self.models.get(replica.offer.name)) is not None:
                        model.failures, model.reason = 0, ""
            await self._pause(replica)

    async def _pause(self, replica: Replica) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(replica.leave.wait(), self._every_s)

    async def _keep_priced(self, replica: Replica, standing: Standing) -> None:
        """Rates may change while it serves."""
        model = self.models.get(replica.offer.name)
        if model is None or model.offer.version != replica.version:
            return
        rate = model.offer.rate(replica.accelerator)
        if rate.version != standing.rate_version:
            await self._ground.reprice(replica.replica_id, rate)

    async def _keep_adapted(self, replica: Replica, standing: Standing) -> None:
        """Adapters come, change and go while it serves."""
        wanted: list[Adapter] = []
        for model in self.models.values():
            if model.offer.parent == replica.offer.name:
                try:
                    rate = model.offer.rate(replica.accelerator)
                except FabricError as error:
                    model.reason = error.message
                else:
                    version, source = str(model.changed), model.offer.source
                    wanted.append(Adapter(name=model.offer.name, source=source, version=version, rate=rate))
        if {each.mark for each in wanted} != {each.mark for each in standing.adapters}:
            try:
                await self._ground.adapt(replica.replica_id, wanted)
            except FabricError as error:  # it answers all the same, and is told again at the next look
                _log.warning("not_adapted", replica=replica.replica_id, why=error.message)
        for each in standing.adapters:
            known = self.models.get(each.name)
            if known is not None and each.version == str(known.changed):
                known.reason = each.failure

    def _failed(self, replica: Replica, error: Exception) -> None:
        replica.state, replica.reason = "failed", str(error)[-_REASON_CHARS:]
        _log.warning("replica_failed", replica=replica.replica_id, why=replica.reason)
        model = self.models.get(replica.offer.name)
        if model is not None and model.offer.version == replica.version:
            model.failures += not (isinstance(error, FabricError) and error.code == NO_CAPACITY)
            model.reason, model.retry_at = _after(model.failures, replica.reason)

    async def _end(self, replica: Replica, plot: Plot | None) -> None:
        if replica.state == "ready":
            replica.state = "draining"
            await self._say_draining(replica)
        try:
            if plot is not None:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(
                        self._ground.stop(replica.replica_id, drain=replica.state != "failed"), self._drain_s
                    )
                await plot.close()
        except FabricError as error:
            _log.warning("lease_not_closed", lease=replica.lease_id, why=error.message)
        finally:
            del self.replicas[replica.replica_id]

    async def _say_draining(self, replica: Replica) -> None:
        """Gateways must hear of it before its listener closes."""
        with contextlib.suppress(FabricError):
            await self._board.say(list(self.replicas.values()), list(self.models.values()))
        _log.info("draining", replica=replica.replica_id)


def _after(failures: int, reason: str) -> tuple[str, float]:
    """What is said after so many failures in a row, and when it is tried again."""
    if failures >= _FAILURES_MAX:
        return f"given up after {failures} failures, offer or scale it to try again: {reason}"[:_REASON_CHARS], math.inf
    first, longest = _RETRY_S
    return reason, time.monotonic() + min(longest, first * 2 ** max(0, failures - 1))


async def _unless(leave: asyncio.Event, work: Any) -> Any:
    """What comes of `work`, or None when it is to leave first."""
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave.wait())
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        doing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            return await doing  # it may have come through all the same, and must then be given back
        return None
    finally:
        leaving.cancel()


def _demand(mine: Sequence[Replica], asked: Asked, *, counted: int, quiet_us: int = 0) -> Demand:
    standing = [each.standing for each in mine if each.standing is not None and each.state == "ready"]
    ttfts = sorted(each.ttft_p50_us for each in standing if each.ttft_p50_us)
    return Demand(
        running=sum(each.running for each in standing),
        waiting=sum(each.waiting for each in standing) + asked.queued,
        replicas=counted,
        capacity=min((each.capacity for each in standing), default=16),
        ttft_us=ttfts[len(ttfts) // 2] if ttfts else None,
        quiet_us=quiet_us,
    )


def _least_used(replicas: Sequence[Replica]) -> list[Replica]:
    """Those that can go first: not there yet, then idle, then the youngest."""

    def use(replica: Replica) -> tuple[bool, int, int]:
        running = replica.standing.running if replica.standing else 0
        return replica.state == "ready", running, -replica.started_at_us

    return sorted(replicas, key=use)
