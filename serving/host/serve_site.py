"""Replicas as applications of Ray Serve, seen from a driver, and how they get into their leases.

Serve takes no scheduling strategy, but what a strategy becomes inside Ray: the lease's placement group has resources of its
own names, and an actor that asks for those runs in it and nowhere else.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import ray
from ray import serve

from fabric.charging.rates import Rate
from fabric.errors import FabricError, Unavailable
from fabric.storage.archive import Archive
from fabric.system.guarded import Admitted, sealed
from serving.replica.actor import Door, ReplicaActor
from serving.replica.listener import ReplicaSpec
from serving.replica.lora import Adapter
from serving.replica.standing import BUSY, Standing

_BUNDLE_SHARE: Final = 0.001
_SECRET_BYTES: Final = 32
_READY_S: Final = 900
_HEALTH_EVERY_S: Final = 5
_LOOK_TIMEOUT_S: Final = 5.0
_SETTLE_S: Final = 30.0
_LOOK_S: Final = 0.4
_QUIET_LOOKS: Final = 5
"""So many looks in a row: what Ray says of its resources is a second old, and Serve's next start may be under way."""
_NAMESPACE: Final = "fabric-serving"
_APP: Final = "fabric-{}-{}"


def options_in(document: Mapping[str, Any], *, bundle: int = 0) -> dict[str, Any]:
    """Actor options that put a replica into a lease: the resources by the names that they have within its placement
    group, which is what Ray's own scheduling strategy comes to.

    Args:
        document: the lease's, as `fabric.cluster.settings.LeaseInfo`.
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


def _own(error: BaseException) -> FabricError:
    """The fabric's own error inside what Ray wraps around it."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)  # Ray's own wrapper is of the error's class too, with a trace as message
        if isinstance(cause, FabricError) and inner is None:
            return cause
        cause = inner or cause.__cause__
    return Unavailable(f"the replica did not start: {error}"[-2_000:], code="load_failed")
