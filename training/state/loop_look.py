"""Whether objects of anybody's have changed: what they hold, level by level, as numbers that change when it does.

A look is bounded in time and in how many objects it sees; large arrays are read up to a bound, and tensors are known by torch's
version counters. Nothing of an object's own code is called but `state_dict`. Loggers, progress bars and the like have no state of
a training, and libraries that keep their own are passed over.
"""

import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, count, cycle, islice
from types import (
    BuiltinFunctionType,
    CodeType,
    FrameType,
    FunctionType,
    GeneratorType,
    MappingProxyType,
    MethodType,
    ModuleType,
)  # fmt: skip
from typing import Any, Final

from training.state.generators import access_to
from training.state.object_state import MISSING, attributes, is_module, is_stateful, is_tensor, name_of
from training.state.plain import digest, is_plain

Place = tuple[Any, ...]
"""A name, and the way on from it: attributes (".", name) and items ("[", key)."""

_LOOK_S: Final = 0.1
_LOOKED_AT_MAX: Final = 20_000
_ITEMS_MAX: Final = 64
"""A container of more items is looked at as a whole."""
_WHOLE_MAX: Final = 100_000
_DIGEST_BYTES: Final = 1 << 20
_ARRAYS_BYTES: Final = 128 << 20
_SIMPLE: Final = frozenset({bool, int, float, str, bytes, complex, type(None)})
_LEFT: Final = (
    ModuleType, FunctionType, BuiltinFunctionType, MethodType, type, property, BaseException, CodeType, FrameType, MappingProxyType,
)  # fmt: skip
_LEFT_PACKAGES: Final = frozenset({
    "_io", "_thread", "_weakref", "accelerate", "aim", "asyncio", "clearml", "comet_ml", "concurrent", "contextlib", "contextvars",
    "datasets", "datetime", "fabric", "functools", "io", "lightning", "lightning_fabric", "logging", "loguru", "matplotlib", "mlflow",
    "multiprocessing", "neptune", "pathlib", "pytorch_lightning", "ray", "re", "rich", "serving", "socket", "structlog", "subprocess",
    "swanlab", "tempfile", "tensorboard", "tensorboardX", "threading", "time", "tokenizers", "tqdm", "training", "transformers",
    "wandb", "weakref",
})  # fmt: skip
"""What they make has no state of a training, or keeps it itself."""
_TORCHS_LEFT: Final = (
    "torch.utils.data", "torch.utils.tensorboard", "torch.distributed", "torch._", "torch.profiler", "torch.jit",
)  # fmt: skip
_ITERATORS: Final = (GeneratorType, count, cycle, chain, islice, enumerate, zip, map, filter)


@dataclass
class Seen:
    """What a look has found."""

    prints: dict[Place, Hashable] = field(default_factory=dict)
    """By place, what changes when what is there does."""
    ids: dict[Place, int] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    """Names below which not all was looked at."""
    kinds: dict[str, type] = field(default_factory=dict)
    """The classes of what was seen."""


class Look:
    """From some names on, level by level."""

    def __init__(self, is_left: Callable[[Any], bool]) -> None:
        """What `is_left` is not looked at."""
        self._is_left = is_left
        self._until = time.monotonic() + _LOOK_S
        self._waiting = deque[tuple[Place, Any]]()
        self._prints = _Prints(_ARRAYS_BYTES)
        self.seen = Seen()

    def over(self, values: Iterable[tuple[str, Any]]) -> Seen:
        """All that can be reached from the values, by name."""
        done, seen, waiting = set[int](), self.seen, self._waiting
        waiting += (((name,), value) for name, value in values)
        while waiting:
            place, value = waiting.popleft()
            if value is MISSING:
                continue
            if len(seen.prints) > _LOOKED_AT_MAX or time.monotonic() > self._until:
                seen.cut |= {place[0], *(other[0] for other, _ in waiting)}
                break
            if type(value) not in _SIMPLE:
                if id(value) in done or self._is_left(value):
                    continue
                done.add(id(value))
                seen.ids[place] = id(value)
            with suppress(Exception):  # objects of anybody's may raise anything
                seen.prints[place] = self._print(place, value)
        return seen

    def _print(self, place: Place, value: Any) -> Hashable:
        """What changes when it does; what it is made of waits to be looked at by itself."""
        kind = type(value)
        if isinstance(value, list | tuple | deque) and not hasattr(kind, "_make"):
            if len(value) <= _ITEMS_MAX and any(type(item) not in _SIMPLE for item in value):
                self._waiting += (((*place, ("[", at)), item) for at, item in enumerate(value))
                return kind.__name__, len(value)
        elif isinstance(value, dict):
            if len(value) <= _ITEMS_MAX and all(type(key) in _SIMPLE for key in value):
                self._waiting += (((*place, ("[", key)), item) for key, item in value.items())
                return kind.__name__, tuple(value)
        elif not _is_leaf(value):
            self.seen.kinds[name_of(kind)] = kind
            parts = ((name, part) for name, part in attributes(value) if not name.endswith("_hooks"))
            self._waiting += (((*place, (".", name)), part) for name, part in parts)
            return name_of(kind)
        return self._prints.of(value)


def has_no_state(value: Any) -> bool:
    """Whether it is of a kind that has no state of a training, or that keeps it itself."""
    if isinstance(value, _LEFT) or is_ours(value):
        return True
    if is_tensor(value) or is_module(value) or hasattr(value, "_num_yielded"):
        return False
    if isinstance(value, dict | list | tuple):
        return False
    for kind in type(value).__mro__:
        if kind.__module__.partition(".")[0] in _LEFT_PACKAGES or kind.__module__.startswith(_TORCHS_LEFT):
            return True
    if type(value).__module__.partition(".")[0] != "torch":
        return False
    return not (is_stateful(value) or access_to(value) is not None)


def is_iterator(value: Any) -> bool:
    """Whether it gives out one thing after the other, and can't be told where to go on."""
    kind = type(value)
    return isinstance(value, _ITERATORS) or kind.__name__.endswith("_iterator") or hasattr(value, "_num_yielded")


def is_ours(value: Any) -> bool:
    """Whether it goes over a run's own steps or batches."""
    if isinstance(value, GeneratorType):
        frame = value.gi_frame
        return frame is not None and str(frame.f_globals.get("__name__", "")).startswith("training.")
    if isinstance(value, enumerate | zip | map | filter | islice):
        parts = value.__reduce__()[1]
        return isinstance(parts, tuple) and any(is_ours(part) for part in parts)
    return False


class _Prints:
    """Of values, as long as they aren't too much together."""

    def __init__(self, left: int) -> None:
        self._bytes = left

    def of(self, value: Any, depth: int = 6) -> Hashable:  # noqa: PLR0911  # a table
        """What changes when the value does."""
        kind = type(value).__name__
        if type(value) in _SIMPLE or depth == 0:
            return kind, _worth(value)
        if is_tensor(value):
            return self._tensor(value)
        if _is_array(value):
            return kind, value.shape, str(value.dtype), self._array(value)
        if (access := access_to(value)) is not None:
            return kind, self.of(access[0](), depth - 1)
        if is_stateful(value):
            return kind, self.of(value.state_dict(), depth - 1)
        if is_iterator(value):
            return kind, self._iterator(value, depth - 1)
        if isinstance(value, Mapping):
            return kind, len(value), self._row(list(value), depth - 1), self._row(list(value.values()), depth - 1)
        if isinstance(value, list | tuple | deque):
            return kind, len(value), self._row(value, depth - 1)
        if isinstance(value, set | frozenset):
            return kind, len(value), hash(frozenset(_worth(item) for item in value))
        return kind, id(value), self._row([part for _, part in attributes(value)], depth - 1)

    def _iterator(self, value: Any, depth: int) -> Hashable:
        if hasattr(value, "_num_yielded"):  # one of torch's, over a loader
            return int(value._num_yielded)  # noqa: SLF001  # nothing else says where it is
        if isinstance(value, GeneratorType):
            frame = value.gi_frame
            return None if frame is None else (frame.f_lasti, self._row(list(frame.f_locals.values()), min(depth, 2)))
        return self.of(value.__reduce__()[1:], depth)

    def _row(self, items: Any, depth: int) -> Hashable:
        size = len(items)
        if size <= _ITEMS_MAX:
            return tuple(self.of(item, depth) for item in items)
        if size > _WHOLE_MAX:  # both ends, and some of what is between
            items = [items[at] for at in (*range(64), *range(64, size - 64, size // 1_000), *range(size - 64, size))]
        some = (self.of(items[at], depth) for at in (0, len(items) // 2, -1))
        return hash(tuple(_worth(item) for item in items)), *some

    def _tensor(self, tensor: Any) -> Hashable:
        is_dense = is_plain(tensor)
        version = 0 if sys.modules["torch"].is_inference(tensor) else tensor._version  # noqa: SLF001  # the one counter torch has
        size = tensor.numel() * tensor.element_size()
        is_read = is_dense and tensor.device.type == "cpu" and 0 < size <= min(_DIGEST_BYTES, self._bytes)
        self._bytes -= size if is_read else 0
        where = tensor.data_ptr() if is_dense else 0
        return tuple(tensor.shape), str(tensor.dtype), where, version, digest(tensor.detach()) if is_read else None

    def _array(self, array: Any) -> Hashable:
        if array.dtype.hasobject:
            return self._row(list(array.flat) if array.size <= _WHOLE_MAX else [], 1)
        if array.nbytes > self._bytes:
            return None
        self._bytes -= array.nbytes
        return zlib.crc32(sys.modules["numpy"].ascontiguousarray(array).reshape(-1).view("uint8"))


def _is_leaf(value: Any) -> bool:
    """Whether it is looked at as a whole."""
    if type(value) in _SIMPLE or is_tensor(value) or _is_array(value) or is_iterator(value):
        return True
    if isinstance(value, list | tuple | deque | Mapping | set | frozenset):
        return True
    has_parts = hasattr(value, "__dict__") or hasattr(type(value), "__slots__")
    return access_to(value) is not None or is_stateful(value) or not has_parts


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray | numpy.generic)


def _worth(value: Any) -> Hashable:
    """A number or a word by its value, all else by which it is."""
    return repr(value) if type(value) is float else value if type(value) in _SIMPLE else id(value)


def changed(before: Seen, now: Seen) -> list[Place]:
    """The places that hold something else now, the outermost of each."""
    found = [place for place, printed in now.prints.items() if before.prints.get(place, printed) != printed]
    found += [
        place
        for place in now.prints.keys() - before.prints.keys()
        if len(place) > 1 and place[:-1] in before.prints and place[0] not in before.cut
    ]
    return covering(found)


def covering(places: Iterable[Place]) -> list[Place]:
    """Without those that lie in another one."""
    found: dict[Place, None] = {}
    for place in sorted(places, key=len):
        if not any(place[:length] in found for length in range(1, len(place) + 1)):
            found[place] = None
    return list(found)
