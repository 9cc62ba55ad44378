"""When a lease ends, what its owner's own process has going in it gets an error that says so.

Ray itself would wait: it tries a task again in a placement group that is gone, for ever. So what this process starts in a
lease is noted, and cancelled when that is over, however it ended; what is started later is cancelled at once. `ray.get` then
says why. What would be started beside a lease is refused (`lease_bounds`). Needs Ray, and is imported where that is.
"""

import contextlib
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

import ray

from fabric.errors import JobFailed
from fabric.sdk.lease_bounds import refuse_outside, watch_groups

_NOTED_MAX: Final = 100_000
_leases: Final[dict[str, "Going"]] = {}
"""By placement group: what goes on in the leases that this process has opened, and in those that it had."""
_patched: Final = threading.Lock()
_is_patched = False


class LeaseEnded(JobFailed, ray.exceptions.RayError):  # type: ignore[misc]  # Ray has no types
    """What ran in a lease can't go on: that is over."""

    code = "lease_ended"


class Going:
    """What this process has going in one lease."""

    def __init__(self, lease_id: str, *, bound: bool = True, types: Collection[str] = ()) -> None:
        self.bound = bound
        """Whether what would run beside it is refused."""
        self.types = types
        """What Ray calls the lease's devices."""
        self.over = ""
        """Why it is over; "" while it isn't."""
        self.told = False
        """Whether it is said in the place of Ray's errors: not if its owner has closed it."""
        self._lease_id = lease_id
        self._tasks: deque[bytes] = deque(maxlen=_NOTED_MAX)
        self._actors: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    def task(self, made: Any) -> None:
        """A task, or a call of an actor, has been started in it."""
        references = made if isinstance(made, list) else [made]
        with self._lock:
            self._tasks.extend(each.binary() for each in references if isinstance(each, ray.ObjectRef))
            over = bool(self.over)
        if over:
            self._cancel(each for each in references if isinstance(each, ray.ObjectRef))

    def actor(self, handle: Any) -> None:
        """An actor has been made in it."""
        with self._lock:
            self._actors.add(handle)
            over = bool(self.over)
        if over:
            _ended(handle)

    def has(self, actor: Any) -> bool:
        """Whether an actor was made in it."""
        with self._lock:
            return actor in self._actors

    def end(self, why: str) -> None:
        """It is over: cancel what goes on."""
        with self._lock:
            if self.over:
                return
            self.over = why
            tasks, actors = list(self._tasks), list(self._actors)
        if not ray.is_initialized():
            return
        for handle in actors:
            _ended(handle)
        self._cancel(ray.ObjectRef(each) for each in tasks)

    @property
    def lease_id(self) -> str:
        return self._lease_id

    def error(self) -> LeaseEnded:
        """What is said of it."""
        return LeaseEnded(f"lease {self._lease_id} is over: {self.over}", lease_id=self._lease_id)

    def started(self, reference: Any) -> bool:
        """Whether it was started in this lease."""
        return isinstance(reference, ray.ObjectRef) and reference.binary() in self._tasks

    @staticmethod
    def _cancel(references: Iterator[Any]) -> None:
        for reference in references:
            with contextlib.suppress(Exception):  # of an actor's call, say, whose actor is ended
                ray.cancel(reference, force=True)


def opened(lease_id: str, placement_group_id: str, *, bound: bool = True, types: Collection[str] = ()) -> Going:
    """From now on what this process starts in that placement group is noted; and where it is `bound`, the rest refused, if it
    wants devices, such as those that the lease has.
    """
    _watch_ray()
    return _leases.setdefault(placement_group_id, Going(lease_id, bound=bound, types=types))


def tell(going: Going, why: str) -> None:
    """End it, and say so where people look."""
    if not going.over:
        going.told = True
        print(f"fabric: {why}; what runs in the lease is cancelled", file=sys.stderr)  # noqa: T201  # for who waits
    going.end(why)


def _ended(handle: Any) -> None:
    with contextlib.suppress(Exception):
        ray.kill(handle, no_restart=True)


def _watch_ray() -> None:
    global _is_patched  # noqa: PLW0603  # once a process
    with _patched:
        if _is_patched:
            return
        _is_patched = True
        function, actor, method = ray.remote_function.RemoteFunction, ray.actor.ActorClass, ray.actor.ActorMethod
        function._remote = _noting(function._remote, Going.task)  # noqa: SLF001  # the one place all starts pass through
        actor._remote = _noting(actor._remote, Going.actor)  # noqa: SLF001
        method._remote = _noting_calls(method._remote)  # noqa: SLF001
        ray.get = _saying(ray.get)
        watch_groups(_held)


def _held() -> str:
    """The id of a lease that this process holds and is bound to, "" if none."""
    return next((going.lease_id for going in _binding()), "")


def _binding() -> list[Going]:
    return [going for going in list(_leases.values()) if going.bound and not going.over]


def _noting(start: Callable[..., Any], note: Callable[[Going, Any], None]) -> Callable[..., Any]:
    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        given = options.get("scheduling_strategy") or getattr(self, "_default_options", {}).get("scheduling_strategy")
        group = getattr(given, "placement_group", None)
        if (group is None or group.id.hex() not in _leases) and (held := _held()):
            refuse_outside(held, self, options, types={name for going in _binding() for name in going.types})
        made = start(self, *arguments, **options)
        if group is not None and (going := _leases.get(group.id.hex())) is not None:
            note(going, made)
        return made

    return noted


def _noting_calls(call: Callable[..., Any]) -> Callable[..., Any]:
    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        made = call(self, *arguments, **options)
        handle = getattr(self, "_actor", None)
        for going in list(_leases.values()) if handle is not None else ():
            if going.has(handle):
                going.task(made)
        return made

    return noted


def _saying(get: Callable[..., Any]) -> Callable[..., Any]:
    def said(wanted: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return get(wanted, *arguments, **options)
        except ray.exceptions.RayError as error:
            references = wanted if isinstance(wanted, list | tuple) else [wanted]
            for going in list(_leases.values()):
                if going.told and any(going.started(each) for each in references):
                    raise going.error() from error
            raise

    return said
