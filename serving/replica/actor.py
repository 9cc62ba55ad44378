"""A replica under Ray Serve: the actor around `serving.replica.listener`.

Serve starts it (`serving.host.serve_site`), checks its health, restarts it in place and lets its streams end; gateways talk to
its own listener, which spares the first token a proxy.
"""

import asyncio
import contextlib
import hashlib
import os
import ssl
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
from ray import serve

from fabric import logs
from fabric.api.tls import ensure_certificate
from fabric.charging.rates import Rate
from fabric.client.profile import Profile
from fabric.config.engines import is_url
from fabric.errors import Unavailable
from fabric.storage.archive import Archive
from fabric.system.guarded import Guarded
from serving.event_thread import EventThread
from serving.fabric_client import FabricClient
from serving.replica import state
from serving.replica.adapter_files import CONFIG
from serving.replica.listener import Listener, ReplicaSpec
from serving.replica.log import last_lines, output_to
from serving.replica.lora import Adapter
from serving.replica.recovery import settle_left
from serving.replica.sources import folder_of
from serving.replica.standing import LOADING, STUCK_S, Standing

_CHECK_S: Final = 10.0


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """How a replica reaches the ledger: the certificate's text, because the file may be on another machine.

    Args:
        gateways_at: the address of the machine with the gateways, as Ray has it.
    """

    address: str
    api_key: str
    ca_pem: str
    gateways_at: str = ""


class Opened:
    """What is in a replica's actor. Made in its event loop, and begins at once to load its model: also where Serve has
    restarted the actor in place, and the pool looks at it. The engine and its listener have a loop of their own, so that
    Serve and the pool have an answer while that one is busy.
    """

    def __init__(self, spec: ReplicaSpec, door: Door, archive: Archive | None = None) -> None:
        self._door, self._archive = door, archive
        self._spec = _reachable(spec, door.gateways_at)
        self._listener: Listener | None = None
        self._thread = EventThread("engine")
        self._settling: asyncio.Task[int] | None = None
        self._failure = ""
        self._opening = asyncio.create_task(self._open())

    async def open(self) -> bytes:
        """Wait until the model is loaded; the `Standing`.

        Raises:
            Unavailable: it could not be loaded; the message ends with the engine's last lines.
        """
        await asyncio.shield(self._opening)
        return await self.look()

    async def look(self) -> bytes:
        """The `Standing`, as JSON."""
        listener = self._listener
        if listener is None:
            if self._failure:
                raise Unavailable(self._failure, code="load_failed")
            raise Unavailable("the model is being loaded", code=LOADING)
        load = listener.engine.load()
        return msgspec.json.encode(
            Standing(
                address=listener.address,
                tls_sha256=_fingerprint(self._spec.tls),
                running=load["running"],
                capacity=_capacity(self._spec),
                max_context=load["max_context"],
                rate_version=listener.meter.book.rate_version,
                ttft_p50_us=load["ttft_p50_us"],
                ttft_p99_us=load["ttft_p99_us"],
                unreported_calls=sum(meter.unreported() for meter in listener.meters),
                behind_us=round(self._thread.behind_s() * 1e6),
                abilities=listener.engine.abilities,
                adapters=listener.adapters.standing() if listener.adapters is not None else (),
            )
        )

    async def reprice(self, rate: bytes) -> None:
        """Other rates for calls that begin from now on; after a restart too."""
        await self._keep(msgspec.structs.replace(self._spec, rate=msgspec.json.decode(rate, type=Rate)))
        if self._listener is not None:
            await self._thread.run(_repriced(self._listener, self._spec.rate))

    async def adapt(self, adapters: bytes) -> None:
        """These adapters and no others, as soon as may be; after a restart too."""
        await self._keep(
            msgspec.structs.replace(self._spec, adapters=msgspec.json.decode(adapters, type=tuple[Adapter, ...]))
        )
        if self._listener is not None:
            await self._thread.run(_adapted(self._listener, self._spec.adapters))

    async def _keep(self, spec: ReplicaSpec) -> None:
        if spec != self._spec:
            self._spec = spec
            await asyncio.to_thread(state.keep, spec)

    async def check_health(self) -> None:
        """Serve asks this every few seconds; an error has the replica restarted in place. One that is busy is not: its loop
        is waited for, for minutes.
        """
        if self._opening.done() and self._opening.exception() is not None:
            raise Unavailable(self._failure, code="load_failed")
        if self._listener is not None:
            await checked(self._thread, self._listener.engine.check)

    async def close(self, drain_s: float) -> bool:
        """End for good; whether the ledger knows all of it."""
        settled = await self.end(drain_s)
        await asyncio.to_thread(state.forget, self._spec)
        return settled

    async def end(self, drain_s: float = 0.0) -> bool:
        """Let calls end, settle them, end the engine; whether the ledger knows all of it. Serve may start it anew."""
        listener, self._listener = self._listener, None
        if listener is None:
            return True
        settled = await self._thread.run(listener.close(drain_s=drain_s))
        await self._thread.stop()
        return settled

    async def _open(self) -> None:
        log, profile = _prepared(self._spec, self._door)
        self._spec = await asyncio.to_thread(state.kept, self._spec)
        try:
            folder = await asyncio.to_thread(self._source, log.parent / "models")
            self._thread.start()
            with output_to(log):
                await self._thread.run(self._listen(folder, log.parent, profile))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - an engine may fail with anything
            said = f"{type(error).__name__}: {error}"[:500]
            self._failure = f"{self._spec.model} could not be loaded: {said}\n{last_lines(log)}".rstrip()
            raise Unavailable(self._failure, code="load_failed") from None

    def _source(self, cache: Path) -> str:
        """The model as the engine takes it: a folder on this node, or a server."""
        source = self._spec.folder
        return source if is_url(source) else str(folder_of(source, self._archive, cache=cache))

    async def _listen(self, folder: str, state_dir: Path, profile: Profile) -> None:
        """In the engine's loop."""
        ledger = FabricClient(profile)
        fetch = partial(folder_of, archive=self._archive, cache=state_dir / "models", sought=CONFIG)
        spec = msgspec.structs.replace(self._spec, folder=folder)
        self._listener = await Listener.open(spec, ledger, fetch=fetch)
        self._settling = asyncio.create_task(settle_left(state_dir, ledger))


@serve.deployment
class ReplicaActor(Guarded):
    """What Serve runs. What it is started with is kept in Ray's store, where jobs can read it: so it is sealed, and only who
    knows the replica's secret can have anything of it. `__del__` is Serve's word for an orderly end: also of one that it has
    found ill, and starts anew.
    """

    INSIDE = Opened
    TENANTS = True
    """Serve's own pickles name classes of Serve."""

    def __init__(self, closed: bytes, digest: bytes) -> None:
        super().__init__(closed, digest)
        logs.make_written_private()

    async def check_health(self) -> None:
        """As `Opened` has it; nothing is wrong before anybody has told the secret."""
        if self._inside is not None:
            await self._inside.check_health()

    async def __del__(self) -> None:
        if self._inside is not None:
            await self._inside.end()


async def _repriced(listener: Listener, rate: Rate) -> None:
    listener.reprice(rate)


async def _adapted(listener: Listener, adapters: Sequence[Adapter]) -> None:
    if listener.adapters is not None:
        listener.adapters.want(adapters)


async def checked(thread: EventThread, check: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Raise what `check` raises in an engine's loop; or nothing, where that loop is busy, unless it is so for too long.

    Raises:
        Unavailable: the loop doesn't come round any more (code `stuck`).
        FabricError: as `check`; or the loop has ended.
    """
    behind_s = thread.behind_s()
    if behind_s > STUCK_S:
        raise Unavailable(f"the engine's event loop has not come round for {behind_s:.0f} s", code="stuck")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(thread.run(check()), _CHECK_S)


def _prepared(spec: ReplicaSpec, door: Door) -> tuple[Path, Profile]:
    """The replica's folder on this node; its log, and how to reach the door from here."""
    state_dir = Path(spec.state_dir)
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca = ""
    if door.ca_pem:
        ca = str(state_dir / f"door-ca.{os.getpid()}.pem")
        Path(ca).write_text(door.ca_pem)
    log = state_dir / f"{spec.replica_id.replace('/', '_')}.log"
    return log, Profile(address=door.address, api_key=door.api_key, ca=ca)


def _reachable(spec: ReplicaSpec, gateways_at: str) -> ReplicaSpec:
    """On the gateways' own machine a replica listens on loopback; on another one at the node's address, with TLS, and
    gateways know its certificate by the fingerprint that the board has.
    """
    here = ray.util.get_node_ip_address()
    if not gateways_at or here == gateways_at:
        return spec
    files = ensure_certificate(Path(spec.state_dir) / "replica-tls", hosts=(here,))
    return msgspec.structs.replace(spec, host=here, tls=(str(files.cert), str(files.key)))


def _fingerprint(tls: tuple[str, str] | None) -> str:
    if tls is None:
        return ""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(Path(tls[0]).read_text())).hexdigest()


def _capacity(spec: ReplicaSpec) -> int:
    """Calls at once: the engine's own limit where one is set, a modest number where none is."""
    for name, value in zip(spec.engine_args, spec.engine_args[1:], strict=False):
        if name == "--max-num-seqs":
            return int(value)
    return 16 if spec.on_cpu else 128
