"""A replica under Ray Serve: the actor around `serving.listener`, and how it gets into its lease.

Serve starts it, checks its health, restarts it in place and lets its streams end; gateways talk to its own listener,
which spares the first token a proxy. Serve takes no scheduling strategy, but what a strategy becomes inside Ray: the
lease's placement group has resources of its own names, and an actor that asks for those runs in it and nowhere else.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
from ray import serve

from fabric import logs
from fabric.adapters.archive import Archive
from fabric.adapters.guarded import Admitted, Guarded, sealed
from fabric.api.tls import ensure_certificate
from fabric.charging.rates import Rate
from fabric.errors import FabricError, Unavailable
from fabric.profile import Profile
from serving.adapter_files import CONFIG
from serving.event_thread import EventThread
from serving.ledger import GrpcLedger
from serving.leftovers import settle_left
from serving.listener import Listener, ReplicaSpec
from serving.lora import Adapter
from serving.pool import BUSY, LOADING, STUCK_S, Standing
from serving.replica_log import last_lines, output_to
from serving.sources import folder_of

_BUNDLE_SHARE: Final = 0.001
_SECRET_BYTES: Final = 32
_READY_S: Final = 900
_HEALTH_EVERY_S: Final = 5
_LOOK_TIMEOUT_S: Final = 5.0
_CHECK_S: Final = 10.0
_SETTLE_S: Final = 30.0
_LOOK_S: Final = 0.4
_QUIET_LOOKS: Final = 5
"""So many looks in a row: what Ray says of its resources is a second old, and Serve's next start may be under way."""
_NAMESPACE: Final = "fabric-serving"
_APP: Final = "fabric-{}-{}"


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
        self._spec = msgspec.structs.replace(self._spec, rate=msgspec.json.decode(rate, type=Rate))
        if self._listener is not None:
            await self._thread.run(_repriced(self._listener, self._spec.rate))

    async def adapt(self, adapters: bytes) -> None:
        """These adapters and no others, as soon as may be."""
        if self._listener is not None:
            await self._thread.run(_adapted(self._listener, msgspec.json.decode(adapters, type=tuple[Adapter, ...])))

    async def check_health(self) -> None:
        """Serve asks this every few seconds; an error has the replica restarted in place. One that is busy is not: its loop
        is waited for, for minutes.
        """
        if self._opening.done() and self._opening.exception() is not None:
            raise Unavailable(self._failure, code="load_failed")
        if self._listener is not None:
            await checked(self._thread, self._listener.engine.check)

    async def close(self, drain_s: float) -> bool:
        """Let calls end, settle them, end the engine; whether the ledger knows all of it."""
        listener, self._listener = self._listener, None
        if listener is None:
            return True
        settled = await self._thread.run(listener.close(drain_s=drain_s))
        await self._thread.stop()
        return settled

    async def _open(self) -> None:
        log, profile = _prepared(self._spec, self._door)
        try:
            folder = await asyncio.to_thread(folder_of, self._spec.folder, self._archive, cache=log.parent / "models")
            self._thread.start()
            with output_to(log):
                await self._thread.run(self._listen(folder, log.parent, profile))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - an engine may fail with anything
            said = f"{type(error).__name__}: {error}"[:500]
            self._failure = f"{self._spec.model} could not be loaded: {said}\n{last_lines(log)}".rstrip()
            raise Unavailable(self._failure, code="load_failed") from None

    async def _listen(self, folder: Path, state_dir: Path, profile: Profile) -> None:
        """In the engine's loop."""
        ledger = GrpcLedger(profile)
        fetch = partial(folder_of, archive=self._archive, cache=state_dir / "models", sought=CONFIG)
        spec = msgspec.structs.replace(self._spec, folder=str(folder))
        self._listener = await Listener.open(spec, ledger, fetch=fetch)
        self._settling = asyncio.create_task(settle_left(state_dir, ledger))


@serve.deployment
class ReplicaActor(Guarded):
    """What Serve runs. What it is started with is kept in Ray's store, where jobs can read it: so it is sealed, and only who
    knows the replica's secret can have anything of it. `__del__` is Serve's word for an orderly end.
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
            await self._inside.close(drain_s=0.0)


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


def options_in(document: Mapping[str, Any], *, bundle: int = 0) -> dict[str, Any]:
    """Actor options that put a replica into a lease: the resources by the names that they have within its placement
    group, which is what Ray's own scheduling strategy comes to.

    Args:
        document: the lease's, as `fabric.adapters.cluster_settings.LeaseInfo`.
        bundle: which of its bundles.
    """
    group = document["placement_group_id"]
    # The bundle's by its number and by none: Ray gives back the one only with the other, and its node dies of what is left.
    resources = {f"bundle_group_{bundle}_{group}": _BUNDLE_SHARE, f"bundle_group_{group}": _BUNDLE_SHARE}
    for name, amount in document["bundles"][bundle]["resources"].items():
        resources[f"{name}_group_{bundle}_{group}"] = amount
        resources[f"{name}_group_{group}"] = amount
    return {"num_cpus": 0, "resources": resources, "runtime_env": {"env_vars": dict(document["env_vars"])}}


def wait_until_vacated(group_id: str, *, within_s: float = 10.0) -> bool:
    """Wait until nobody has any of a placement group's resources, for a while on end; whether that came about."""
    if not ray.is_initialized():
        return True
    give_up_at, quiet = time.monotonic() + within_s, 0
    while quiet < _QUIET_LOOKS and time.monotonic() < give_up_at:
        free = ray.available_resources()
        of_group = {name: whole for name, whole in ray.cluster_resources().items() if name.endswith(group_id)}
        quiet = quiet + 1 if all(free.get(name, 0.0) >= whole for name, whole in of_group.items()) else 0
        time.sleep(_LOOK_S)
    return quiet >= _QUIET_LOOKS


class ServeSite:
    """Replicas as applications of Ray Serve, from a driver's side. Its calls block: run them in threads.

    Ray is joined, and Serve's controller started, for the first replica: a fabric that serves no model has neither.
    """

    def __init__(self, door: Door, *, ray_address: str, archive: Archive | None = None, mark: str = "") -> None:
        """Say where; nothing is joined yet.

        Args:
            door: for the replicas.
            ray_address: of the cluster.
            archive: the fabric's.
            mark: of this host and those that were before it here, by which their applications are known.
        """
        self._door, self._ray_address, self._archive, self._mark = door, ray_address, archive, mark
        self._handles: dict[str, Admitted] = {}
        self._joining = threading.Lock()
        self._joined = False

    def _join(self) -> None:
        with self._joining:
            if self._joined:
                return
            try:
                ray.init(address=self._ray_address, namespace=_NAMESPACE, log_to_driver=False, configure_logging=False)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise Unavailable(f"can't join Ray at {self._ray_address}: {error}", code="ray_unreachable") from error
            try:
                serve.start(http_options={"location": "NoServer"})
            except BaseException:
                ray.shutdown()  # so that the next one can join again
                raise
            self._door = msgspec.structs.replace(self._door, gateways_at=ray.util.get_node_ip_address())
            self._joined = True

    def start(self, spec: ReplicaSpec, options: Mapping[str, Any], *, env: Mapping[str, str]) -> None:
        """Deploy, and wait until the model is loaded.

        Raises:
            FabricError: it could not be; why, in the engine's own last lines.
        """
        self._join()
        variables = {**options["runtime_env"]["env_vars"], **env}
        deployment = ReplicaActor.options(  # type: ignore[attr-defined]
            num_replicas=1,
            max_ongoing_requests=64,
            health_check_period_s=_HEALTH_EVERY_S,
            health_check_timeout_s=30,
            graceful_shutdown_timeout_s=20,
            ray_actor_options={**options, "runtime_env": {"env_vars": variables}},
        )
        secret = secrets.token_bytes(_SECRET_BYTES)
        app = deployment.bind(*sealed(secret, spec, self._door, self._archive))
        try:
            handle = Admitted(serve.run(app, name=self._app(spec.replica_id), route_prefix=None), secret)
            handle.open.remote().result(timeout_s=_READY_S)
        except Exception as error:  # noqa: BLE001 - Ray wraps it in whatever
            raise _own(error) from None
        self._handles[spec.replica_id] = handle

    def look(self, replica_id: str) -> Standing:
        try:
            said = self._handles[replica_id].look.remote().result(timeout_s=_LOOK_TIMEOUT_S)
        except TimeoutError:
            raise Unavailable(f"no answer in {_LOOK_TIMEOUT_S:g} s", code=BUSY) from None
        except Exception as error:  # noqa: BLE001 - Ray wraps it in whatever
            raise _own(error) from None
        return msgspec.json.decode(said, type=Standing)

    def reprice(self, replica_id: str, rate: Rate) -> None:
        """Tell it other rates."""
        self._tell(self._handles[replica_id].reprice, rate)

    def adapt(self, replica_id: str, adapters: Sequence[Adapter]) -> None:
        """Tell it which adapters are wanted."""
        self._tell(self._handles[replica_id].adapt, adapters)

    def _tell(self, method: Any, what: object) -> None:
        try:
            method.remote(msgspec.json.encode(what)).result(timeout_s=10)
        except Exception as error:  # noqa: BLE001 - Ray wraps it in whatever
            raise _own(error) from None

    def stop(self, replica_id: str, *, drain_s: float) -> None:
        """Let it end its calls, for up to `drain_s`, and remove it from Serve; 0 = it is broken and may not answer."""
        handle = self._handles.pop(replica_id, None)
        if handle is not None:
            with contextlib.suppress(Exception):  # it may be gone already
                handle.close.remote(drain_s).result(timeout_s=drain_s + (_SETTLE_S if drain_s else _LOOK_TIMEOUT_S))
        serve.delete(self._app(replica_id), _blocking=True)

    def clear(self, groups: Sequence[str]) -> None:
        """Before the first start: remove what a host that was here before has left, and wait until it is out of its
        placement groups.
        """
        self._join()
        for name in serve.status().applications:
            if name.startswith(self._app("")):
                serve.delete(name, _blocking=True)
        for group in groups:
            wait_until_vacated(group)

    def _app(self, replica_id: str) -> str:
        return _APP.format(self._mark, replica_id)

    def close(self) -> None:
        """End Serve, where it was started."""
        if self._joined:
            serve.shutdown()
            ray.shutdown()


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


def _own(error: BaseException) -> FabricError:
    """The fabric's own error inside what Ray wraps around it."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)  # Ray's own wrapper is of the error's class too, with a trace as message
        if isinstance(cause, FabricError) and inner is None:
            return cause
        cause = inner or cause.__cause__
    return Unavailable(f"the replica did not start: {error}"[-2_000:], code="load_failed")
