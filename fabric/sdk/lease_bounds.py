"""What a process may start over Ray while it holds a lease: what goes into the lease, and small things without a device.

A lease has what is started with `.options(**lease.options())`. Ray's libraries place their tasks and actors themselves, and a
placement group takes devices of its own: these would run beside the lease, on what nobody has paid for, until they are ended
as that. They are refused where they are started. Needs Ray, and is imported where that is.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from fabric.accelerators import devices_in
from fabric.errors import InvalidRequest

_LIBRARIES: Final = {
    "ray.data": "Ray Data",
    "ray.train": "Ray Train",
    "ray.tune": "Ray Tune",
    "ray.air": "Ray Train",
    "ray.rllib": "RLlib",
    "ray.serve": "Ray Serve",
    "ray.util.multiprocessing": "ray.util.multiprocessing",
    "ray.util.joblib": "ray.util.joblib",
    "ray.util.dask": "Dask on Ray",
}


def refuse_outside(lease_id: str, handle: Any, options: Mapping[str, Any], *, types: Collection[str] = ()) -> None:
    """Refuse a task or an actor that is to be started outside of the lease, if it is a library's, or wants a device: as Ray
    calls them, or by its type, of which the lease names further ones.

    Raises:
        InvalidRequest: `outside_lease`.
    """
    asked = {**(getattr(handle, "_default_options", None) or {}), **options}
    made_of = getattr(handle, "_function", None) or getattr(handle.__ray_metadata__, "modified_class", None)
    library = _library_of(getattr(made_of, "__module__", "") or "")
    if library:
        raise _outside(lease_id, library)
    if devices := devices_in({"GPU": asked.get("num_gpus"), **(asked.get("resources") or {})}, types=types):
        name = getattr(made_of, "__name__", "a task")
        raise _outside(lease_id, f"{name}, which wants {', '.join(devices)},", mine=True)


def watch_groups(lease_id: Callable[[], str]) -> None:
    """From now on refuse this process placement groups while it holds a lease, whose id `lease_id` tells, or ""."""
    groups: Any = sys.modules["ray.util.placement_group"]
    validate = groups._validate_bundles  # noqa: SLF001  # the one place all pass through

    def refused(bundles: Any, *arguments: Any, **options: Any) -> Any:
        if held := lease_id():
            raise _outside(held, "a placement group")
        return validate(bundles, *arguments, **options)

    groups._validate_bundles = refused  # noqa: SLF001


def _library_of(module: str) -> str:
    return next((words for name, words in _LIBRARIES.items() if module == name or module.startswith(f"{name}.")), "")


def _outside(lease_id: str, what: str, *, mine: bool = False) -> InvalidRequest:
    start = "start it with .options(**lease.options()), or " if mine else ""
    return InvalidRequest(
        f"{what} would run outside of lease {lease_id}, on devices that nobody has paid for: {start}submit the whole program, as"
        " a script or as a function with ray_program=True: there all of Ray has the job's devices",
        code="outside_lease",
    )
