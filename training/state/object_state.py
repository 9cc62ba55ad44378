"""The state of any object of a script as plain values, and put back into the object that the script has there again.

Nothing of a checkpoint runs: an object gets its attributes back without a call of its own code, and is made anew only if its
class is one that the script has already. Objects that are one in two places still are. Knows values, and no loop.
"""

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import count
from typing import Any, Final

from training.state.generators import access_to
from training.state.plain import holds_parts, placed, plain, restored

_NODE: Final = "\0node"
_SIMPLE: Final = frozenset({bool, int, float, str, bytes, type(None)})
_DICTS: Final[dict[str, type]] = {each.__name__: each for each in (dict, OrderedDict, Counter, defaultdict)}
_ROWS: Final[dict[str, type]] = {each.__name__: each for each in (list, tuple, set, frozenset, deque)}
_RENEWED: Final = frozenset({"tensor", "array", *_ROWS, *_DICTS})
_FACTORIES: Final = {each.__name__: each for each in (list, dict, set, int, float, deque)}
_DEPTH_MAX: Final = 30
_BYTES_MAX: Final = 256 * 1024 * 1024
MISSING: Final = object()
"""In the place of a value that is not there."""


class Unkept(Exception):
    """What of an object can't be kept, and where it is."""

    def __init__(self, path: str, value: Any, why: str = "") -> None:
        super().__init__(path, value)
        self.path, self.kind = path, f"{type(value).__module__}.{type(value).__qualname__}"
        self.why = why or f"it holds a {self.kind}"


class Taking:
    """One reading of an object, of what it holds and of what that holds."""

    def __init__(self, *, is_left: Callable[[Any], bool], is_known: Callable[[type], bool]) -> None:
        """What `is_left` stays as the script has it; objects are kept of classes that it is `is_known` of."""
        self._is_left, self._is_known = is_left, is_known
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        self.bytes = 0

    def take(self, value: Any, path: str, depth: int = _DEPTH_MAX) -> Any:
        """As plain values.

        Raises:
            Unkept: some part of it can't be.
        """
        if type(value) in _SIMPLE:
            return value
        if (number := self._numbers.get(id(value))) is not None:
            return {_NODE: "same", "at": number}
        if depth == 0:
            raise Unkept(path, value, f"it is nested more than {_DEPTH_MAX} deep")
        if self._is_left(value):
            raise Unkept(path, value)
        number = self._numbers[id(value)] = len(self._alive)
        self._alive.append(value)
        return {"at": number, **(self._numbers_of(value, path) or self._parts_of(value, path, depth - 1))}

    def _numbers_of(self, value: Any, path: str) -> dict[str, Any] | None:  # noqa: PLR0911  # a table
        numpy = sys.modules.get("numpy")
        if is_tensor(value):
            if holds_parts(value):
                raise Unkept(path, value, "other ranks hold parts of it")
            self._count(value.numel() * value.element_size(), path, value)
            return {_NODE: "tensor", "has": placed(value)}
        if numpy is not None and isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
            self._count(value.nbytes, path, value)
            return {_NODE: "array", "has": plain(numpy.asarray(value), path)}
        if numpy is not None and isinstance(value, numpy.generic):
            return {_NODE: "scalar", "has": plain(numpy.asarray(value), path)}
        if isinstance(value, count):
            return {_NODE: "count", "has": list(value.__reduce__()[1])}
        if isinstance(value, Enum) and self._is_known(type(value)):
            return {_NODE: "enum", "of": name_of(type(value)), "has": value.name}
        if (access := access_to(value)) is not None:
            return {_NODE: "draws", "has": plain(access[0](), path)}
        if is_stateful(value):
            return {_NODE: "stateful", "has": plain(value.state_dict(), path)}
        return None

    def _parts_of(self, value: Any, path: str, depth: int) -> dict[str, Any]:
        kind: Any = type(value)
        if kind in _ROWS.values():
            has = [self.take(item, f"{path}[{at}]", depth) for at, item in enumerate(value)]
            return {_NODE: kind.__name__, "of": getattr(value, "maxlen", None), "has": has}
        if kind in _DICTS.values():
            made_by = getattr(value, "default_factory", None)
            if made_by is not None and made_by not in _FACTORIES.values():
                raise Unkept(path, value)
            has = [
                [self.take(key, path, depth), self.take(item, f"{path}[{key!r}]", depth)] for key, item in value.items()
            ]
            return {_NODE: kind.__name__, "of": None if made_by is None else made_by.__name__, "has": has}
        if not self._is_known(kind):
            raise Unkept(path, value)
        if isinstance(value, tuple) and hasattr(kind, "_make"):
            has = [self.take(item, f"{path}.{name}", depth) for name, item in zip(value._fields, value, strict=True)]  # type: ignore[attr-defined]
            return {_NODE: "named", "of": name_of(kind), "has": has}
        if kind.__new__ is not object.__new__ and not hasattr(kind, "__dataclass_fields__"):
            raise Unkept(path, value)
        return {
            _NODE: "object",
            "of": name_of(kind),
            "has": {
                name: {_NODE: "left"} if self._is_left(part) else self.take(part, f"{path}.{name}", depth)
                for name, part in attributes(value)
            },
        }

    def _count(self, size: int, path: str, value: Any) -> None:
        self.bytes += size
        if self.bytes > _BYTES_MAX:
            raise Unkept(path, value, f"it holds more than {_BYTES_MAX >> 20} MiB")


class Putting:
    """One writing of what a `Taking` gave."""

    def __init__(self, find: Callable[[str], type | None]) -> None:
        """`find` gives the script's class of a name."""
        self._find = find
        self._made: dict[int, Any] = {}

    def put(self, kept: Any, own: Any, *, is_renewed: bool = False) -> Any:  # noqa: PLR0911  # a table
        """What is in the place of `own` now: itself, with other contents, where that is possible.

        `is_renewed`: the script had put another object there, so that who else has the one that is there does not see it.

        Raises:
            LookupError, TypeError, ValueError: the script has something else there than it had.
        """
        if not isinstance(kept, dict):
            return kept
        kind, number = kept[_NODE], kept.get("at", -1)
        if is_renewed and kind in _RENEWED:
            own = MISSING
        if kind == "same":
            return self._made[number]
        if kind == "left":
            if own is MISSING:
                raise LookupError("it holds what no checkpoint does")
            return own
        made: Any
        if kind == "object":
            return self._object(kept, own, number)
        if kind in _ROWS:
            return self._row(kept, own, number)
        if kind in _DICTS:
            return self._dict(kept, own, number)
        made = self._made[number] = self._whole(kind, kept, own)
        return made

    def _whole(self, kind: str, kept: dict[str, Any], own: Any) -> Any:  # noqa: C901, PLR0911  # a table
        has = kept["has"]
        if kind == "tensor":
            return _tensor(restored(has), own)
        if kind in {"array", "scalar"}:
            found = restored(has)
            if kind == "scalar":
                return found[()]
            if (
                isinstance(own, type(found))
                and own.flags.writeable
                and (own.shape, own.dtype) == (found.shape, found.dtype)
            ):
                own[...] = found
                return own
            return found
        if kind == "count":
            return count(*has)
        if kind == "enum":
            return self._class(kept["of"])[has]  # type: ignore[index]
        if kind == "named":
            owns = own if isinstance(own, tuple) else ()
            return self._class(kept["of"])._make(self._items(has, owns))  # type: ignore[attr-defined]
        if kind == "draws":
            access = access_to(own)
            if access is None:
                raise LookupError("it draws random numbers")
            access[1](restored(has))
            return own
        if kind != "stateful" or not is_stateful(own):
            raise LookupError("it has a state_dict of its own")
        own.load_state_dict(restored(has))
        return own

    def _row(self, kept: dict[str, Any], own: Any, number: int) -> Any:
        kind = _ROWS[kept[_NODE]]
        owns = own if isinstance(own, list | tuple | deque) else ()
        if kind not in {list, deque}:
            self._made[number] = made = kind(self._items(kept["has"], owns))
            return self._filled_set(own, made) if isinstance(made, set) else made
        is_own = type(own) is kind and getattr(own, "maxlen", None) == kept["of"]
        row: Any = own if is_own else list() if kind is list else deque(maxlen=kept["of"])  # noqa: C408  # beside deque()
        self._made[number] = row
        items = self._items(kept["has"], list(owns))
        row.clear()
        row.extend(items)
        return row

    def _filled_set(self, own: Any, made: set[Any]) -> set[Any]:
        if type(own) is not set:
            return made
        own.clear()
        own.update(made)
        return own

    def _items(self, kept: list[Any], owns: Any) -> list[Any]:
        return [self.put(item, owns[at] if at < len(owns) else MISSING) for at, item in enumerate(kept)]

    def _dict(self, kept: dict[str, Any], own: Any, number: int) -> Any:
        kind, factory = _DICTS[kept[_NODE]], kept["of"]
        made: Any = (
            own
            if type(own) is kind
            else defaultdict(_FACTORIES[factory] if factory else None)
            if kind is defaultdict
            else kind()
        )
        self._made[number] = made
        owns = dict(own) if isinstance(own, dict) else {}
        items = [(key := self.put(name, MISSING), self.put(item, owns.get(key, MISSING))) for name, item in kept["has"]]
        made.clear()
        for key, item in items:
            made[key] = item
        return made

    def _object(self, kept: dict[str, Any], own: Any, number: int) -> Any:
        kind = self._class(kept["of"])
        made = own if type(own) is kind else object.__new__(kind)
        self._made[number] = made
        before = dict(attributes(made))
        for name, part in kept["has"].items():
            set_attribute(made, name, self.put(part, before.get(name, MISSING)))
        for name in before.keys() - kept["has"].keys() & getattr(made, "__dict__", {}).keys():
            del made.__dict__[name]
        return made

    def _class(self, name: str) -> type:
        found = self._find(name)
        if found is None:
            raise LookupError(f"the script has no class {name}")
        return found


def _tensor(value: Any, own: Any) -> Any:
    if (
        not is_tensor(own)
        or not own.is_leaf
        or (own.shape, own.dtype, own.device) != (value.shape, value.dtype, value.device)
    ):
        return value
    with sys.modules["torch"].no_grad():
        own.copy_(value)
    return own


def is_tensor(value: Any) -> bool:
    """Whether it is one of torch's."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_module(value: Any) -> bool:
    """Whether it is one of torch's modules."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def is_stateful(value: Any) -> bool:
    """Whether it says itself what its state is, and takes it back. Modules are looked into: theirs leaves out what is no tensor."""
    kind = type(value)
    return (
        callable(getattr(kind, "state_dict", None))
        and callable(getattr(kind, "load_state_dict", None))
        and not is_module(value)
    )


def attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Those that an object has, without a call of its own code: of torch's own modules, those that hold their state."""
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict):
        is_torchs = is_module(value) and type(value).__module__.startswith("torch.")
        yield from [
            (name, part)
            for name, part in list(held.items())
            if isinstance(name, str) and (not is_torchs or name in {"_parameters", "_buffers", "_modules"})
        ]
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            is_private = name.startswith("__") and not name.endswith("__")
            mangled = f"_{kind.__name__.lstrip('_')}{name}" if is_private else name
            if name not in {"__dict__", "__weakref__"} and (part := _slot(value, kind, mangled)) is not MISSING:
                yield mangled, part


def _slot(value: Any, kind: type, name: str) -> Any:
    try:
        return kind.__dict__[name].__get__(value, type(value)) if name in kind.__dict__ else MISSING
    except AttributeError:
        return MISSING


def set_attribute(value: Any, name: str, part: Any) -> None:
    """As it was, whatever the object's own code would do about it."""
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict) and (name in held or not hasattr(type(value), name)):
        held[name] = part
    else:
        object.__setattr__(value, name, part)


def name_of(kind: type) -> str:
    """By which `class_of` finds it."""
    return f"{kind.__module__}:{kind.__qualname__}"
