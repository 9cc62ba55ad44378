"""Whether a job uses Ray for work of its own, and what it must not do with the connection that is there already."""

from collections.abc import Callable
from typing import Any

import ray


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
        def noted(*args: Any, **options: Any) -> Any:
            self.seen = True
            return start(*args, **options)

        return noted
