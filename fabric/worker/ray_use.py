"""What a function does with Ray in its runner's process: noticed, and kept to what is the lease's.

A runner is a process of the fabric's own cluster. There a function may start tasks and actors that need no device: they are
captured into its lease. All else, also what there is to be had, needs the Ray of a lease (`lease_ray`), which a process of the job's own has: it is refused
with that remedy where it would be done, because it would wait without end, or take what isn't leased. What a job does in
spite of it is found by the reconciler and the node agents.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import ray

from fabric.accelerators import TYPE_LABEL, canonical_accelerator, devices_in
from fabric.errors import InvalidRequest
from fabric.worker.lease_ray import refuse_installs

_ADDRESSES: Final = (None, "", "auto")
_HARMLESS: Final = frozenset({
    "address", "ignore_reinit_error", "include_dashboard", "configure_logging", "logging_level", "logging_format",
    "logging_config", "log_to_driver", "namespace", "dashboard_host", "dashboard_port",
})  # fmt: skip
"""What makes no difference where a process is connected already."""
_WHAT_THERE_IS: Final = ("nodes", "cluster_resources", "available_resources")
"""What here is told of the fabric's whole cluster: who sizes a program by it would count on others' devices."""
_nodes: Final = ray.nodes


class RayUse:
    """Notices whether a job starts Ray tasks or actors of its own."""

    def __init__(self) -> None:
        self.seen = False

    def watch(self) -> None:
        """From now on. `ray.init` says how this process is connected, and `ray.shutdown` leaves it so."""
        for kind in (ray.remote_function.RemoteFunction, ray.actor.ActorClass):
            kind._remote = self._noting(kind._remote)  # noqa: SLF001  # the one place all starts pass through
        groups = sys.modules["ray.util.placement_group"]
        groups._validate_bundles = self._refusing(groups._validate_bundles)  # type: ignore[attr-defined]  # noqa: SLF001
        ray.init = _connected
        ray.shutdown = lambda *_args, **_options: None
        for asked in _WHAT_THERE_IS:
            setattr(ray, asked, _untold(asked))

    def _noting(self, start: Callable[..., Any]) -> Callable[..., Any]:
        def noted(handle: Any, *args: Any, **options: Any) -> Any:
            self.seen = True
            asked = {**(getattr(handle, "_default_options", None) or {}), **options}
            refuse_installs(asked.get("runtime_env"))
            _refuse_devices([{"GPU": asked.get("num_gpus") or 0, **(asked.get("resources") or {})}])
            return start(handle, *args, **options)

        return noted

    def _refusing(self, validate: Callable[..., Any]) -> Callable[..., Any]:
        def validated(bundles: Any, *args: Any, **options: Any) -> Any:
            self.seen = True
            answer = validate(bundles, *args, **options)
            _refuse_devices(bundles)
            return answer

        return validated


def _connected(address: str | None = None, **options: Any) -> Any:
    """What `ray.init` returns, of the connection that there is."""
    asked = sorted(name for name, value in options.items() if name not in _HARMLESS and value is not None)
    if address not in _ADDRESSES or asked:
        raise InvalidRequest(
            f"ray.init({', '.join(asked) or f'address={address!r}'}) needs a Ray of the job's own: submit it with"
            " ray_program=True",
            code="needs_ray_program",
        )
    worker = ray._private.worker  # noqa: SLF001
    node_id = ray.get_runtime_context().get_node_id()
    return worker.RayContext({**worker._global_node.address_info, "node_id": node_id})  # noqa: SLF001


def _untold(asked: str) -> Callable[..., Any]:
    def untold(*_args: Any, **_options: Any) -> Any:
        raise InvalidRequest(
            f"ray.{asked}() would tell of the whole fabric, not of this job's lease: submit it with ray_program=True, and it"
            " tells what the job has",
            code="needs_ray_program",
        )

    return untold


def _refuse_devices(requests: Sequence[Mapping[str, float]]) -> None:
    wanted = {name: amount for request in requests for name, amount in request.items() if amount}
    types = {canonical_accelerator(node["Labels"].get(TYPE_LABEL, "")) for node in _nodes()} - {"CPU"} if wanted else ()
    if named := devices_in(wanted, types=types):
        raise InvalidRequest(
            f"a task, actor or placement group of this job wants {', '.join(named)}, and the function itself holds the lease's"
            " devices: submit it with ray_program=True, and what it starts over Ray has them",
            code="needs_ray_program",
        )
