"""What a job does with Ray in its runner's process: noticed, and kept to what is the lease's.

A courtesy and no fence: it tells a program what it may not do where it would do it. What a job does in spite of it is found
by the reconciler and the node agents.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import ray

from fabric.errors import InvalidRequest

_INSTALLS: Final = ("pip", "uv", "conda", "image_uri", "container")


class RayUse:
    """Notices whether a job starts Ray tasks or actors of its own."""

    def __init__(self) -> None:
        self.seen = False

    def watch(self) -> None:
        """From now on. Also makes `ray.init` and `ray.shutdown` harmless: this process is connected, and stays so."""
        for kind in (ray.remote_function.RemoteFunction, ray.actor.ActorClass):
            kind._remote = self._noting(kind._remote)  # noqa: SLF001  # the one place all starts pass through
        ray.init = lambda *_args, **_options: ray.get_runtime_context()
        ray.shutdown = lambda *_args, **_options: None

    def _noting(self, start: Callable[..., Any]) -> Callable[..., Any]:
        def noted(handle: Any, *args: Any, **options: Any) -> Any:
            self.seen = True
            _check(options.get("runtime_env"))
            return start(handle, *args, **options)

        return noted


def _check(runtime_env: Any) -> None:
    """Refuse to have Ray install packages, which it would do outside of the lease."""
    if isinstance(runtime_env, Mapping) and any(runtime_env.get(name) for name in _INSTALLS):
        raise InvalidRequest(
            "packages are installed for a whole job, not for one of its tasks or actors: submit it with"
            ' runtime_env={"pip": [...]}, and all of them have these',
            code="invalid_runtime_env",
        )
