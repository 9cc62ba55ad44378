"""Ray as a job's processes have it: a cluster of the lease's own, made of its devices and of nothing else.

`ray.init()` in a job starts it, as it would on a laptop: processes of the job's, below its own, with the devices that the
lease has. So whatever a program does with Ray stays within the lease, and works as it does everywhere: placement groups,
any scheduling strategy, detached and restarted actors, the libraries that are built of these. All of it is metered with the
job, and ends with it. The cluster that the fabric itself runs on is another one.

Ray waits without end for what no node will ever have. Here a request that can't fit is refused where it is made, with the
lease's numbers; what gets by is found among the requests that wait, and ends the program.
"""

import inspect
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.core.generated import autoscaler_pb2, autoscaler_pb2_grpc

from fabric.errors import InvalidRequest, Unavailable
from fabric.worker.lease_ray_settings import TOKEN, LeaseRay, told_ray
from fabric.worker.on_import import when_imported
from fabric.worker.ray_end import RayWatch, look, watch_own
from fabric.worker.ray_start import NOT_STARTED, noted

_ADDRESS: Final = "RAY_ADDRESS"
_AUTO_CONNECT: Final = "RAY_ENABLE_AUTO_CONNECT"
_INSTALLS: Final = ("pip", "uv", "conda", "image_uri", "container")
_TOKEN_BYTES: Final = 32
_OWN_WORDS: Final = ("local", "auto")
_LOOK_S: Final = 2.0
_NEVER_FITS_S: Final = 6.0
"""How long a request that can't fit is left waiting: what is being set up may be asked for before it is there."""
_CALL_S: Final = 5.0
_EPSILON: Final = 1e-6
_RAY_TRAIN: Final = ("ray.train.v2.api.data_parallel_trainer", "training.integrations.ray")
"""What trains, and what has it go on after an eviction."""


def install() -> None:
    """Have `ray.init` in this process start, or find, the lease's cluster. Does nothing outside of a job, or twice."""
    settings = told_ray(os.environ)
    if settings is None or getattr(ray.init, "is_the_leases", False):
        return
    _open(Path(settings.folder))
    _Own(settings, ray.init).take_over()
    when_imported(*_RAY_TRAIN)


def _open(folder: Path) -> None:
    """Make the folder of the lease's sessions, and the token that its processes show each other. This process may have read
    others before.
    """
    real = Path(os.path.realpath(folder))
    real.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(real / TOKEN, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_hex(_TOKEN_BYTES))
    except FileExistsError:
        pass
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _without_rays_handler() -> Iterator[None]:
    """Ray sets its own handler of SIGTERM as the first thing, which ends the program before it could save, and takes seconds
    to start; and another one below Python, which ends it with a trace of the stack. The program's stays.
    """
    utils = ray._private.utils  # noqa: SLF001
    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before
        if (
            threading.current_thread() is threading.main_thread()
            and (own := signal.getsignal(signal.SIGTERM)) is not None
        ):
            signal.signal(signal.SIGTERM, own)


class _Own:
    """The lease's Ray, in one process of the job."""

    def __init__(self, settings: LeaseRay, init: Callable[..., Any]) -> None:
        self._settings = settings
        self._init = init
        self._watch: threading.Thread | None = None
        self._has_started = False
        """Whether this process has started the cluster: then it ends with `ray.shutdown`, as Ray's own does."""
        self._end: RayWatch | None = None
        """Watches, as long as it has."""
        self._nodes: list[dict[str, float]] = []
        """What each node has in all, as it was when somebody asked for more."""

    def take_over(self) -> None:
        def own_init(address: str | None = None, **options: Any) -> Any:
            return self.init(address, **options)

        own_init.__doc__, own_init.__name__ = self._init.__doc__, "init"
        own_init.__signature__ = inspect.signature(self._init)  # type: ignore[attr-defined]
        own_init.is_the_leases = True  # type: ignore[attr-defined]
        ray.init = own_init
        ray._private.worker.init = own_init  # noqa: SLF001
        context = ray.runtime_context.RuntimeContext
        group_of = context.get_placement_group_id
        # Outside of a program's own groups the lease is the group.
        context.get_placement_group_id = lambda here: group_of(here) or self._settings.group or None
        stop = ray.shutdown

        def own_shutdown(*args: Any, **options: Any) -> None:
            if self._end is not None:
                self._end.let_go()
                self._end = None
            stop(*args, **options)
            if self._has_started:
                self._has_started = False
                os.environ.pop(_ADDRESS, None)

        ray.shutdown = own_shutdown
        ray._private.worker.shutdown = own_shutdown  # noqa: SLF001
        for kind in (ray.remote_function.RemoteFunction, ray.actor.ActorClass):
            kind._remote = self._checking(kind._remote)  # noqa: SLF001  # the one place that all starts pass through
        groups = sys.modules["ray.util.placement_group"]
        groups._validate_bundles = self._checking_bundles(groups._validate_bundles)  # type: ignore[attr-defined]  # noqa: SLF001

    def init(self, address: str | None, **options: Any) -> Any:
        """Start the lease's cluster, or find it.

        Raises:
            InvalidRequest: it is another cluster's address, or asks for more than the lease has.
            Unavailable: it doesn't start on a machine that has too much else to do: the job is tried again.
        """
        known = os.environ.get(_ADDRESS, "")
        if address not in (None, "", *_OWN_WORDS, known):
            raise InvalidRequest(
                f"ray.init(address={address!r}): a job's Ray is made of its own lease, {self._settings.lease}: call ray.init()"
                " without an address",
                code="foreign_cluster",
            )
        refuse_installs(options.get("runtime_env"))
        if ray.is_initialized():
            return self._init(**options)
        asked = {name: options.pop(name, None) for name in ("num_cpus", "num_gpus", "resources")}
        self._refuse_beyond(asked)
        if known and address != "local":
            # Another process of the job has started it: what was asked for fits, and can't be changed any more.
            with _without_rays_handler():
                found = self._init(address=known, **options)
        else:
            with noted(Path(self._settings.folder)):
                found = self._start(self._with_defaults(asked, options))
            self._end = watch_own(Path(self._settings.folder))
        self._nodes = []
        self._begin_watch()
        return found

    def _start(self, options: Mapping[str, Any]) -> Any:
        """Start the lease's cluster.

        Raises:
            Unavailable: it doesn't start, or not all of its nodes join it.
        """
        from fabric.worker.ray_node import started  # noqa: PLC0415  # most processes start none

        with _without_rays_handler():
            try:
                found = started(lambda: self._init(address="local", **options))
            except (ChildProcessError, TimeoutError) as error:
                raise Unavailable(
                    f"the program's Ray has not started, however often it was tried: {error}", code=NOT_STARTED
                ) from error
        os.environ[_ADDRESS] = ray.get_runtime_context().gcs_address
        self._has_started = True
        if self._settings.bell:
            self._gather()
        return found

    def _gather(self) -> None:
        """Have the lease's other nodes join.

        Raises:
            Unavailable: they don't.
        """
        from fabric.worker.ray_hosts import JOIN_S, Head, ring  # noqa: PLC0415  # most processes need nothing of it

        token = (Path(self._settings.folder) / TOKEN).read_text()
        address = ray.get_runtime_context().gcs_address
        ring(self._settings.bell, Head(address=address, token=token, folder=self._settings.folder))
        give_up_at = time.monotonic() + JOIN_S
        while (there := len(_nodes())) < self._settings.nodes:
            if time.monotonic() > give_up_at:
                raise Unavailable(
                    f"{there} of the lease's {self._settings.nodes} nodes have joined the program's Ray within {JOIN_S:g} s:"
                    " see the other ranks' logs",
                    code="nodes_missing",
                )
            time.sleep(_LOOK_S / 10)

    def _with_defaults(self, asked: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        settings = self._settings
        resources = {name: amount for name, amount in {**settings.also, **settings.devices}.items() if name != "GPU"}
        return {
            "include_dashboard": False,
            "object_store_memory": settings.store_bytes,
            "_temp_dir": settings.folder,
            **options,
            "num_cpus": settings.cpus if asked["num_cpus"] is None else asked["num_cpus"],
            "num_gpus": settings.devices.get("GPU", 0) if asked["num_gpus"] is None else asked["num_gpus"],
            "resources": {**resources, **(asked["resources"] or {})},
        }

    def _refuse_beyond(self, asked: Mapping[str, Any]) -> None:
        wanted = {"GPU": asked["num_gpus"] or 0, **(asked["resources"] or {})}
        devices = {"GPU": 0.0, "NPU": 0.0, **self._settings.devices}
        over = {name: amount for name, amount in wanted.items() if name in devices and amount > devices[name]}
        if over:
            raise self._too_much("ray.init", over)

    def _checking(self, start: Callable[..., Any]) -> Callable[..., Any]:
        def checked(handle: Any, *args: Any, **options: Any) -> Any:
            asked = {**(getattr(handle, "_default_options", None) or {}), **options}
            refuse_installs(asked.get("runtime_env"))
            if self._is_there():
                self._refuse_misfit(_name_of(handle), [_needs(asked)], strategy=asked.get("scheduling_strategy"))
            return start(handle, *args, **options)

        return checked

    def _checking_bundles(self, validate: Callable[..., Any]) -> Callable[..., Any]:
        def validated(bundles: Any, *args: Any, **options: Any) -> Any:
            answer = validate(bundles, *args, **options)
            if self._is_there():
                self._refuse_misfit("a placement group", bundles)
            return answer

        return validated

    def _is_there(self) -> bool:
        """Whether there is a cluster: what starts something begins it, as Ray does it by itself, unless it is told not to."""
        if not ray.is_initialized() and os.environ.get(_AUTO_CONNECT, "") != "0":
            ray.init()
        return bool(ray.is_initialized())

    def _refuse_misfit(self, what: str, requests: Sequence[Mapping[str, float]], *, strategy: Any = None) -> None:
        """Refuse what no node, or not all nodes together, will ever have. What goes into a placement group Ray looks at."""
        if getattr(strategy, "placement_group", None) is not None or not any(requests):
            return
        if fits(requests, self._nodes):
            return
        self._nodes = _nodes()
        if self._nodes and not fits(requests, self._nodes):
            raise self._too_much(what, _summed(requests), nodes=self._nodes)

    def _too_much(
        self, what: str, wanted: Mapping[str, float], *, nodes: Sequence[Mapping[str, float]] = ()
    ) -> InvalidRequest:
        has = {**dict.fromkeys(wanted, 0.0), **{name: _summed(nodes).get(name, 0.0) for name in wanted}}
        if not nodes:
            has = {name: self._settings.devices.get(name, 0.0) for name in wanted}
        remedy = "ask for less, or submit the job with more or other accelerators"
        if set(_short(wanted, has)) <= {"CPU"}:
            remedy = "ask for less, or have more logical CPUs: ray.init(num_cpus=...)"
        return InvalidRequest(
            f"{what} needs {_words(wanted)}, and the job's lease, {self._settings.lease}, has {_words(has)}: {remedy}",
            code="exceeds_lease",
            needs=_words(wanted),
            has=_words(has),
        )

    def _begin_watch(self) -> None:
        if self._watch is None and _is_driver():
            self._watch = threading.Thread(target=self._watch_requests, name="fabric-requests", daemon=True)
            self._watch.start()

    def _watch_requests(self) -> None:
        """End the program where something waits that never fits: nothing else would."""
        since: dict[str, float] = {}
        while True:
            time.sleep(_LOOK_S)
            try:
                misfits = {json.dumps(each, sort_keys=True): each for each in self._misfits()}
            except Exception:  # noqa: BLE001, S112  # Ray is down or away for a moment: there is nothing to look at
                continue
            now = time.monotonic()
            since = {key: since.get(key, now) for key in misfits}
            late = [misfits[key] for key, at in since.items() if now - at >= _NEVER_FITS_S]
            if late:
                sys.stderr.write(f"{self._too_much('a request', _summed(late[0]), nodes=_nodes()).message}\n")
                sys.stderr.flush()
                sys.stdout.flush()
                look()  # it would have fitted a node that is gone
                os._exit(1)

    def _misfits(self) -> list[list[dict[str, float]]]:
        """Requests that wait, and fit no nodes: the bundles of each."""
        if not ray.is_initialized():
            return []
        state = _state()
        nodes = [dict(node.total_resources) for node in state.node_states]
        waiting = [[dict(each.request.resources_bundle)] for each in state.pending_resource_requests if each.count]
        waiting += [
            [dict(each.resources_bundle) for each in gang.requests] for gang in state.pending_gang_resource_requests
        ]
        plain = [each for each in waiting if not any("_group_" in name for request in each for name in request)]
        return [each for each in plain if nodes and not fits(each, nodes)]


def fits(requests: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether these could all be held at once by nodes of which nobody holds anything: the largest first, where it fits."""
    left = [dict(node) for node in nodes]
    for request in sorted(requests, key=lambda each: sum(each.values()), reverse=True):
        node = next((node for node in left if _has(node, request)), None)
        if node is None:
            return False
        for name, amount in request.items():
            node[name] = node.get(name, 0.0) - amount
    return True


def refuse_installs(runtime_env: Any) -> None:
    """Refuse to have Ray install packages: these are a whole job's, which installs them once, and keeps them.

    Raises:
        InvalidRequest: `invalid_runtime_env`.
    """
    if isinstance(runtime_env, Mapping) and any(runtime_env.get(name) for name in _INSTALLS):
        raise InvalidRequest(
            "packages are installed for a whole job, not for one of its tasks or actors: submit it with"
            ' runtime_env={"pip": [...]}, and all of them have these',
            code="invalid_runtime_env",
        )


def _has(node: Mapping[str, float], request: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) + _EPSILON >= amount for name, amount in request.items())


def _needs(asked: Mapping[str, Any]) -> dict[str, float]:
    """What a task or an actor needs of a node at the least."""
    found = {"CPU": asked.get("num_cpus"), "GPU": asked.get("num_gpus"), "memory": asked.get("memory")}
    return {name: float(amount) for name, amount in {**found, **(asked.get("resources") or {})}.items() if amount}


def _nodes() -> list[dict[str, float]]:
    """What each node of the lease's cluster has in all."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _state() -> Any:
    channel = init_grpc_channel(str(ray.get_runtime_context().gcs_address))
    with channel:
        stub = autoscaler_pb2_grpc.AutoscalerStateServiceStub(channel)
        request = autoscaler_pb2.GetClusterResourceStateRequest()
        return stub.GetClusterResourceState(request, timeout=_CALL_S).cluster_resource_state


def _is_driver() -> bool:
    worker = ray._private.worker  # noqa: SLF001
    return bool(worker.global_worker.mode == worker.SCRIPT_MODE)


def _name_of(handle: Any) -> str:
    function = getattr(handle, "_function_name", "")
    if function:
        return f"task {function.rpartition('.')[2]}"
    meta = getattr(handle, "__ray_metadata__", None)
    return f"actor {getattr(meta, 'class_name', '?').rpartition('.')[2]}"


def _summed(requests: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for request in requests:
        for name, amount in request.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _short(wanted: Mapping[str, float], has: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in wanted.items() if amount > has.get(name, 0.0) + _EPSILON}


def _words(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(amounts.items())) or "nothing"
