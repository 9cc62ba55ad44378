"""One replica without its supervisor: an engine, its meter and outbox, and the listener that gateways talk to.

Ray Serve runs it as an actor (`serving.replica.actor`); tests run it as a plain process. It owns its signals: uvicorn's
re-raised SIGTERM would end the process before the engine's own processes are gone.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from fabric.charging.rates import Rate, charge_uhs
from fabric.errors import Conflict, InvalidRequest
from serving.acceptor import Bounds
from serving.calls import SliceLedger
from serving.engines.port import Engine, Start, engine_named
from serving.http_server import HttpServer
from serving.metering.book import Metering
from serving.metering.call_log import CallLog
from serving.metering.meter import Meter
from serving.metering.slices import Terms
from serving.replica.adapter_files import taken_over
from serving.replica.lora import Adapter, Adapters, Host, meter_id, rank_max

Fetch = Callable[[str], Path]

_BACKLOG: Final = 2048
_BOUNDS: Final = Bounds(most=16_384, per_address=16_384, keyless=2_048, keyless_per_address=2_048)
"""All gateways of a host have one address, and each shows its secret at once."""
_OUTBOX_WAIT_S: Final = 45.0
_ADAPTERS_WAIT_S: Final = 30.0
"""How long the model itself waits for its adapters at a start: what takes longer to fetch is loaded while it answers."""


class ReplicaSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica serves, and how.

    Args:
        replica_id: the same after a restart in place: its outbox is found by it.
        folder: the model in Hugging Face's format, on this machine; or a server's URL, where the engine takes one.
        engine: its name (`serving.engines.port`).
        engine_args: options of it, as `vllm serve` takes them.
        devices: that it has.
        state_dir: where the outbox is.
        trust: the secret of our gateways.
        tls: certificate and key files; without them only loopback is listened on.
        in_ray: whether Ray runs the process, and takes its figures.
        adapters: those that it has from the start, or as soon as they can be fetched.
    """

    replica_id: str
    model: str
    folder: str
    accelerator: str
    rate: Rate
    state_dir: str
    trust: str
    max_context: int | None = None
    kv_bytes: int | None = None
    engine: str = "vllm"
    engine_args: tuple[str, ...] = ()
    devices: int = 1
    on_cpu: bool = False
    host: str = "127.0.0.1"
    tls: tuple[str, str] | None = None
    in_ray: bool = False
    terms: Terms = Terms()
    adapters: tuple[Adapter, ...] = ()


class Listener:
    """A replica that is up. `address` is where gateways reach it."""

    def __init__(self, spec: ReplicaSpec, engine: Engine, meter: Meter) -> None:
        self.spec, self.engine, self.meter = spec, engine, meter
        self.address = ""
        self.adapters: Adapters | None = None
        """Where its engine takes any."""
        self._server: HttpServer | None = None
        self._serving: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, spec: ReplicaSpec, ledger: SliceLedger, *, fetch: Fetch | None = None) -> "Listener":
        """Settle what an earlier process left, load the model, and listen. Takes as long as the engine's start.

        Args:
            spec: what is served.
            ledger: pays for it.
            fetch: the folder on this node of where an adapter comes from; None = it is one.
        """
        open_engine = engine_named(spec.engine, on_cpu=spec.on_cpu)
        meter = open_meter(spec, ledger, await _opened(spec))
        await meter.start()
        try:
            engine = await open_engine(_start_of(spec), meter)
        except BaseException:
            await meter.close(timeout_s=1.0)
            raise
        listener = cls(spec, engine, meter)
        if "--enable-lora" in spec.engine_args:
            await listener._take_adapters(ledger, fetch or Path)
        await listener._listen()
        return listener

    async def _take_adapters(self, ledger: SliceLedger, fetch: Fetch) -> None:
        """Load those that are wanted; what takes longer is loaded while it answers.

        Raises:
            InvalidRequest: the engine takes none (code `no_adapters`); it is closed.
        """
        spec, engine = self.spec, self.engine
        if not isinstance(engine, Host):
            await engine.close()
            raise InvalidRequest(
                f"the engine {spec.engine} takes no adapters: offer {spec.model} without enable-lora",
                code="no_adapters",
            )
        self.adapters = _adapters_of(spec, engine, ledger, fetch)
        self.adapters.want(spec.adapters)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.adapters.settled(), _ADAPTERS_WAIT_S)

    async def _listen(self) -> None:
        spec = self.spec
        assert spec.tls is not None or spec.host == "127.0.0.1", "what leaves the machine is encrypted"
        # Named as TCP, or asyncio leaves Nagle's algorithm on for what it accepts, and small writes wait 40 ms.
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((spec.host, 0))
        listening.listen(_BACKLOG)
        self._server = HttpServer(self.engine.app, bounds=_BOUNDS, tls=spec.tls, grace_s=1, lifespan="auto")
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        while not self._server.started and not self._serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        if self._serving.done():
            await self._serving
        scheme = "https" if spec.tls else "http"
        self.address = f"{scheme}://{spec.host}:{listening.getsockname()[1]}"

    def reprice(self, rate: Rate) -> None:
        """Other rates for calls that begin from now on."""
        _reprice(self.meter, rate)

    @property
    def meters(self) -> tuple[Meter, ...]:
        """Of the model, and of its adapters."""
        return (self.meter, *(self.adapters.meters if self.adapters is not None else ()))

    def _calls(self) -> int:
        return sum(len(meter.book.calls) for meter in self.meters)

    async def drain(self, *, timeout_s: float) -> bool:
        """Wait until the running calls have ended; whether they did. Gateways send nothing new to who drains."""
        deadline = time.monotonic() + timeout_s
        while self._calls() and time.monotonic() < deadline:  # noqa: ASYNC110 - rare, and the meter stays simple
            await asyncio.sleep(0.05)
        return not self._calls()

    async def close(self, *, drain_s: float = 30.0) -> bool:
        """Let calls end, settle them, and leave no process behind; whether the ledger knows all of it."""
        await self.drain(timeout_s=drain_s)
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
        settled = self.adapters is None or await self.adapters.close()
        return await self.engine.close() and settled


def _start_of(spec: ReplicaSpec) -> Start:
    return Start(
        model=spec.model,
        source=spec.folder,
        trust=spec.trust,
        max_context=spec.max_context,
        kv_bytes=spec.kv_bytes,
        options=spec.engine_args,
        devices=spec.devices,
        on_cpu=spec.on_cpu,
        in_ray=spec.in_ray,
    )


def open_meter(spec: ReplicaSpec, ledger: SliceLedger, outbox: CallLog) -> Meter:
    """The meter of a replica, with what its outbox remembers. Hold ids are unique for ever: name, time and process."""
    book = Metering(
        name=f"slice/{spec.replica_id}/{time.time_ns() // 1_000_000}-{os.getpid()}",
        model=spec.model,
        accelerator=spec.accelerator,
        charge=partial(charge_uhs, spec.rate),
        terms=spec.terms,
        rate_version=spec.rate.version,
    )
    return Meter(book, outbox, ledger)


def _reprice(meter: Meter, rate: Rate) -> None:
    meter.book.reprice(partial(charge_uhs, rate), rate_version=rate.version)


def _adapters_of(spec: ReplicaSpec, engine: Host, ledger: SliceLedger, fetch: Fetch) -> Adapters:
    def folder_of(adapter: Adapter) -> Path:
        return taken_over(
            fetch(adapter.source),
            name=adapter.name,
            parent=spec.model,
            base=Path(spec.folder),
            rank_max=rank_max(spec.engine_args),
            cache=Path(spec.state_dir) / "adapters",
            is_ours=adapter.is_ours,
        )

    async def meter_of(adapter: Adapter) -> Meter:
        named = meter_id(spec.replica_id, adapter.name)
        own = msgspec.structs.replace(spec, replica_id=named, model=adapter.name, rate=adapter.rate)
        meter = open_meter(own, ledger, await _opened(own))
        await meter.start()
        return meter

    return Adapters(engine, fetch=folder_of, meter=meter_of, reprice=_reprice)


async def _opened(spec: ReplicaSpec) -> CallLog:
    """The replica's outbox. Another one that starts on this node may be settling it: that is over in a while."""
    path = Path(spec.state_dir) / f"{spec.replica_id.replace('/', '_')}.outbox"
    deadline = time.monotonic() + _OUTBOX_WAIT_S
    while True:
        try:
            return await asyncio.to_thread(CallLog, path)
        except Conflict:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
