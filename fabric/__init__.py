"""Compute tokens on Ray: submit a job, pay for it in tokens, watch it burn.

    import fabric

    fabric.connect()
    job = fabric.submit(train, corpus, tokens="0.5", accelerators="H100:2")
    print(job.result(), job.cost().burned_ct)

Importing this costs nothing: names are looked up when they are used. `submit`, `quote`, `lease`, `job`, `jobs` and
`balance` are those of the connection that `connect` made.
"""

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric.sdk import Balance, Cost, Fabric, Job, Lease, Limits, Quote, Resources, connect

__all__ = [
    "Balance",
    "Cost",
    "Fabric",
    "Job",
    "Lease",
    "Limits",
    "Quote",
    "Resources",
    "balance",
    "connect",
    "job",
    "jobs",
    "lease",
    "quote",
    "submit",
]

_MODULES = frozenset({"context", "errors"})

_OF_THE_CONNECTION = frozenset({"balance", "job", "jobs", "lease", "quote", "submit"})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fabric.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'fabric' has no attribute {name!r}")
    from fabric import sdk  # noqa: PLC0415  # not before it is used

    return _of_the_connection(name, sdk.Fabric) if name in _OF_THE_CONNECTION else getattr(sdk, name)


def _of_the_connection(name: str, kind: type) -> Callable[..., Any]:
    """A method of the connection there is when it is called, so that looking at this module connects to nothing."""

    @functools.wraps(getattr(kind, name))
    def method(*args: Any, **kwargs: Any) -> Any:
        from fabric import sdk  # noqa: PLC0415

        return getattr(sdk.current(), name)(*args, **kwargs)

    return method


def __dir__() -> list[str]:
    return sorted(__all__)
