"""What Ray may unpickle in a process of ours: records, enums and errors of ours, plain containers, and Ray's own errors.

Ray unpickles the arguments of every call, and every answer, before our code sees them, and a pickle may name any function
to be called. Jobs are inside the cluster and can call, so in the processes that hold the ledger or the operator's keys a
pickle may name classes from a short list and nothing else. A handle of somebody's actor makes Ray load the class behind
it: only modules of ours are loaded, from this machine. Not for runners, whose process is the job's own.

Knows where Ray unpickles (its version is pinned; a test says when that has moved). Knows nothing of what is said.
"""

import builtins
import collections
import dataclasses
import enum
import io
import pickle
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import pydantic
import ray._private.function_manager
import ray._private.serialization
import ray.exceptions
import structlog
from ray.util.placement_group import PlacementGroup

from fabric.system.moved import MOVED

__all__ = ["Refused", "loads", "restrict_ray"]

_OURS: Final = "fabric."
_BUILTINS: Final = (
    bool, bytearray, bytes, complex, dict, float, frozenset, int, list, object, range, set, slice, str, tuple,
)  # fmt: skip
_COLLECTIONS: Final = (collections.Counter, collections.OrderedDict, collections.defaultdict, collections.deque)
_NAMED: Final = {
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pydantic.types", "SecretBytes"),
    ("pydantic.types", "SecretStr"),
    ("msgspec._utils", "rebuild"),
    ("copyreg", "_reconstructor"),
    ("fabric.errors", "_rebuild"),
    ("ray._raylet", "PlacementGroupID"),
    (PlacementGroup.__module__, PlacementGroup.__qualname__),
}
"""What else is used, by module and name. The functions among them only make an instance of a class of this list."""
_RECORDS: Final = (enum.Enum, msgspec.Struct, pydantic.BaseModel, BaseException)

_log = structlog.get_logger(__name__)


class Refused(pickle.UnpicklingError):
    """A pickle named something that is not on the list."""


def loads(data: Any, *, buffers: Any = None) -> Any:
    """The pickled object, if it is made of nothing but what is on the list.

    Raises:
        Refused: it isn't; nothing of it was called.
    """
    return _Unpickler(io.BytesIO(data), buffers=buffers).load()


def restrict_ray() -> None:
    """From now on Ray unpickles in this process what is on the list, and loads actors' classes from here."""
    for module in (ray._private.serialization, ray.exceptions):  # noqa: SLF001 - Ray has no setting for it
        if not isinstance(module.pickle, _Pickles):
            module.pickle = _Pickles(module.pickle)
    manager = ray._private.function_manager.FunctionActorManager  # noqa: SLF001
    manager._load_actor_class_from_gcs = _load_ours  # noqa: SLF001


_Base: Final[Any] = pickle._Unpickler  # noqa: SLF001
"""In Python, because the one in C lets a pickle set attributes of a class, or of an enum's member, for everybody."""


class _Unpickler(_Base):  # type: ignore[misc]
    dispatch = dict(_Base.dispatch)  # noqa: RUF012 - as the class it extends has it

    def load_build(self) -> None:
        changed = self.stack[-2]
        if isinstance(changed, (type, enum.Enum)) or callable(changed):
            raise Refused(f"a pickle may not change {changed!r}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module_name: str, global_name: str) -> Any:
        module_name = MOVED.get(module_name, module_name)
        known = (module_name, global_name) in _NAMED
        if known or module_name in ("builtins", "collections", "ray.exceptions") or module_name.startswith(_OURS):
            found = super().find_class(module_name, global_name)
            if known or _is_harmless(found):
                return found
        _log.warning("pickle_refused", module=module_name[:100], name=global_name[:100])
        raise Refused(f"{module_name}.{global_name} may not come in a pickle here")


def _is_harmless(found: Any) -> bool:
    """Whether calling it makes a value, and does nothing else."""
    if not isinstance(found, type):
        return False
    if found in (*_BUILTINS, *_COLLECTIONS):
        return True
    if found.__module__ == builtins.__name__:
        return issubclass(found, BaseException)
    if found.__module__ == ray.exceptions.__name__:
        return issubclass(found, ray.exceptions.RayError)
    is_named_tuple = issubclass(found, tuple) and hasattr(found, "_fields")
    is_record = issubclass(found, _RECORDS) or _is_frozen(found) or is_named_tuple
    return found.__module__.startswith(_OURS) and is_record


def _is_frozen(found: type) -> bool:
    return dataclasses.is_dataclass(found) and bool(found.__dataclass_params__.frozen)  # type: ignore[attr-defined]


class _Pickles:
    """Ray's pickle module, but for what it loads."""

    def __init__(self, inside: Any) -> None:
        self._inside = inside

    def loads(self, data: Any, *, buffers: Any = None) -> Any:
        return loads(data, buffers=buffers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)


def _load_ours(manager: Any, job_id: Any, descriptor: Any) -> Any:
    del job_id
    if descriptor.module_name in MOVED:
        descriptor = SimpleNamespace(module_name=MOVED[descriptor.module_name], class_name=descriptor.class_name)
    if not descriptor.module_name.startswith(_OURS):
        raise Refused(f"an actor of the class {descriptor.module_name}.{descriptor.class_name} is none of ours")
    return manager._load_actor_class_from_local(descriptor)  # noqa: SLF001
