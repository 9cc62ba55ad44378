"""Plain values as a tree of tagged arrays with buffers beside it, and back. Reading it runs nothing that the bytes say.

A tree holds None, booleans, 64-bit integers, floats, text and short bytes as they are; everything else is an array that
begins with its tag. Numbers in bulk, arrays and tensors lie in buffers, each of which is read once: nothing in a few
bytes becomes large, and nothing takes time with the square of its size.
"""

import datetime as dt
import re
import sys
import zoneinfo
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from math import prod
from typing import Any, Final
from uuid import UUID

DEPTH_MAX: Final = 64
NODES_MAX: Final = 2_000_000
_SHORT_BYTES: Final = 4_096
_BULK: Final = 16
"""From so many numbers of one type on they lie in a buffer."""
_INT64: Final = range(-(2**63), 2**63)
_DIGITS_MAX: Final = 4_000
_AXES_MAX: Final = 64
"""Of an array or a tensor: as numpy and torch have them."""
_ALIKE_MAX: Final = 256
"""Members of a set, or keys of a mapping, with one and the same hash: to find one of them all are looked at."""
_SEQUENCES: Final[dict[str, Callable[[Iterable[Any]], Any]]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
}
_AS_IT_IS: Final = frozenset({bool, float})
_LEAVES: Final = frozenset({int, str, bytes, bytearray})
_TAG_OF: Final[dict[type, str]] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset", deque: "deque"}
_HASHED: Final = frozenset({"set", "frozenset"})
_MAPPINGS: Final[dict[str, type[dict[Any, Any]]]] = {"dict": dict, "ordered": OrderedDict, "counter": Counter}
_MAPPING_TAG_OF: Final[dict[type, str]] = {kind: tag for tag, kind in _MAPPINGS.items()}
_DTYPE: Final = re.compile(
    r"[<>|](?:[biufc][0-9]{1,2}|[SU][0-9]{1,9}|[mM]8\[[0-9]{0,6}(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])", re.ASCII
)
_TORCH_DTYPES: Final = frozenset(
    [
        "bool",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex64",
        "complex128",
    ]
)


class NotPlain(Exception):
    """It isn't made of plain values, or of too many of them."""


class Damaged(Exception):
    """These bytes are no tree of ours."""


class Writer:
    """Takes a value apart. `buffers` are what lies beside the tree."""

    def __init__(self) -> None:
        self.buffers: list[Any] = []
        self._left = NODES_MAX

    def tree(self, value: Any, depth: int = DEPTH_MAX) -> Any:
        """The tree of a value.

        Raises:
            NotPlain: something in it isn't exactly of a type that is known here.
        """
        kind: type = type(value)
        self._left -= 1
        if depth == 0 or self._left < 0:
            raise NotPlain
        if value is None or kind in _AS_IT_IS:
            tree = value
        elif kind in _LEAVES:
            tree = self._leaf(value, kind)
        elif kind in _TAG_OF:
            tree = self._sequence(_TAG_OF[kind], value, depth - 1)
        elif kind in _MAPPING_TAG_OF:
            tree = self._mapping(_MAPPING_TAG_OF[kind], value, depth - 1)
        elif kind in _SMALL:
            tree = _SMALL[kind](value)
        else:
            tree = self._array(value, kind)
        return tree

    def _leaf(self, value: Any, kind: type) -> Any:
        if kind is int:
            return value if value in _INT64 else ["int", _bytes_of_int(value)]
        if kind is str:
            return value if _has_encoding(value) else ["text", value.encode("utf-8", "surrogatepass")]
        short = kind is bytes and len(value) <= _SHORT_BYTES
        return value if short else [kind.__name__, self._beside(value)]

    def _sequence(self, tag: str, value: Any, depth: int) -> list[Any]:
        if tag in {"list", "tuple"} and len(value) >= _BULK:
            kinds = set(map(type, value))
            if kinds == {float}:
                return ["floats", tag, self._beside(array("d", value).tobytes())]
            if kinds == {int}:
                try:
                    return ["ints", tag, self._beside(array("q", value).tobytes())]
                except OverflowError:
                    pass
        if tag == "deque" and value.maxlen is not None:
            raise NotPlain
        return [tag, *[self.tree(item, depth) for item in value]]

    def _mapping(self, tag: str, value: Any, depth: int) -> list[Any]:
        kept: dict[str, Any] = vars(value) if tag != "dict" else {}
        if kept.keys() - {"_metadata"}:  # which torch hangs on a state_dict
            raise NotPlain
        flat = [self.tree(part, depth) for pair in value.items() for part in pair]
        return [tag, self.tree(dict(kept), depth) if kept else None, *flat]

    def _array(self, value: Any, kind: type) -> list[Any]:
        numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
        if numpy is not None and (
            kind is numpy.ndarray or (isinstance(value, numpy.generic) and kind.__module__ == "numpy")
        ):
            if not _DTYPE.fullmatch(value.dtype.str) or not value.dtype.itemsize:
                raise NotPlain
            whole = numpy.ascontiguousarray(value)
            tag = "array" if kind is numpy.ndarray else "scalar"
            return [tag, value.dtype.str, list(value.shape), self._beside(whole.tobytes())]
        if torch is not None and kind in {torch.Tensor, torch.nn.Parameter}:
            return self._tensor(value, torch)
        raise NotPlain

    def _tensor(self, value: Any, torch: Any) -> list[Any]:
        name = str(value.dtype).removeprefix("torch.")
        if name not in _TORCH_DTYPES or value.layout is not torch.strided or value.is_meta:
            raise NotPlain
        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        data = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        flags = int(value.requires_grad) + 2 * (type(value) is torch.nn.Parameter)
        return ["tensor", name, list(value.shape), flags, self._beside(data)]

    def _beside(self, data: Any) -> int:
        self.buffers.append(data)
        return len(self.buffers) - 1


_SMALL: Final[dict[type, Callable[[Any], list[Any]]]] = {
    dt.datetime: lambda value: ["datetime", value.replace(tzinfo=None).isoformat(), value.fold, *_zone(value.tzinfo)],
    dt.date: lambda value: ["date", value.isoformat()],
    dt.time: lambda value: ["time", value.replace(tzinfo=None).isoformat(), value.fold, *_zone(value.tzinfo)],
    dt.timedelta: lambda value: ["timedelta", value.days, value.seconds, value.microseconds],
    Decimal: lambda value: ["decimal", _short(str(value))],
    Fraction: lambda value: ["fraction", _bytes_of_int(value.numerator), _bytes_of_int(value.denominator)],
    complex: lambda value: ["complex", value.real, value.imag],
    UUID: lambda value: ["uuid", value.bytes],
    range: lambda value: ["range", *map(_int64, (value.start, value.stop, value.step))],
}


def _short(text: str) -> str:
    if len(text) > _DIGITS_MAX:
        raise NotPlain
    return text


def _int64(value: int) -> int:
    if value not in _INT64:
        raise NotPlain
    return value


def _zone(zone: dt.tzinfo | None) -> tuple[Any, ...]:
    if zone is None:
        return (None,)
    if type(zone) is dt.timezone:
        offset = zone.utcoffset(None)
        if zone == dt.timezone(offset):
            return (offset // dt.timedelta(microseconds=1),)
    if type(zone) is zoneinfo.ZoneInfo and zone.key:
        return (zone.key,)
    raise NotPlain


class Reader:
    """Puts a value together again. Every buffer is taken once."""

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._buffers: list[memoryview | None] = list(buffers)

    def value(self, tree: Any) -> Any:
        """The value of a tree.

        Raises:
            Damaged: it isn't one that `Writer` makes.
        """
        try:
            return self._value(tree, DEPTH_MAX + 2)
        except Damaged:
            raise
        except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, OSError) as error:
            raise Damaged(f"{type(error).__name__}: {error}") from None

    def _value(self, tree: Any, depth: int) -> Any:
        if type(tree) is not list:
            if type(tree) is dict:
                raise Damaged("a map without its tag")
            return tree
        if depth == 0 or not tree or type(tree[0]) is not str:
            raise Damaged("an array without its tag, or too deep")
        tag, *parts = tree
        if tag in _SEQUENCES:
            members = [self._value(part, depth - 1) for part in parts]
            return _SEQUENCES[tag](_apart(members) if tag in _HASHED else members)
        if tag in _MAPPINGS:
            return self._mapping(tag, parts, depth - 1)
        read = _READERS.get(tag)
        if read is None:
            raise Damaged(f"the tag {tag!r:.40} is not known")
        return read(self, *parts)

    def _mapping(self, tag: str, parts: list[Any], depth: int) -> Any:
        made: Any = _MAPPINGS[tag]()
        keys = _apart([self._value(part, depth) for part in parts[1::2]])
        for key, part in zip(keys, parts[2::2], strict=True):
            made[key] = self._value(part, depth)
        if parts[0] is not None and tag != "dict":
            made._metadata = self._value(parts[0], depth).get("_metadata")  # noqa: SLF001  # torch's own name
        return made

    def _taken(self, at: Any) -> memoryview:
        taken = self._buffers[at] if type(at) is int and at >= 0 else None
        if taken is None:
            raise Damaged("a buffer is missing, or named twice")
        self._buffers[at] = None
        return taken

    def _numbers(self, code: str, tag: str, at: int) -> Any:
        numbers = array(code)
        numbers.frombytes(self._taken(at))
        return {"list": list, "tuple": tuple}[tag](numbers)

    def _array(self, name: str, shape: list[int], at: int) -> Any:
        import numpy as np  # noqa: PLC0415  # only where there are arrays

        if not _DTYPE.fullmatch(name):
            raise Damaged(f"an array of {name!r:.40}")
        dtype = np.dtype(name)
        data = self._taken(at)
        if not dtype.itemsize or len(data) != prod(_shape(shape)) * dtype.itemsize:
            raise Damaged("an array of another size")
        return np.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if data else np.empty(shape, dtype=dtype)

    def _tensor(self, name: str, shape: list[int], flags: int, at: int) -> Any:
        import torch  # noqa: PLC0415  # only where there are tensors

        if name not in _TORCH_DTYPES:
            raise Damaged(f"a tensor of {name!r:.40}")
        dtype = getattr(torch, name)
        data = self._taken(at)
        if len(data) != prod(_shape(shape)) * dtype.itemsize:
            raise Damaged("a tensor of another size")
        plain = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        plain = plain.reshape(shape)
        if flags & 2:
            return torch.nn.Parameter(plain, requires_grad=bool(flags & 1))
        return plain.requires_grad_(bool(flags & 1))


def _apart(members: list[Any]) -> list[Any]:
    """The same, unless too many of them have one hash: of integers, and what is made of them, anybody can find such."""
    alike = max(Counter(map(hash, members)).values(), default=0)
    if alike > _ALIKE_MAX:
        raise Damaged(f"{alike} members or keys with one hash, {_ALIKE_MAX} are the most")
    return members


def _shape(shape: list[int]) -> list[int]:
    if len(shape) > _AXES_MAX:
        raise Damaged(f"an array with {len(shape)} axes, {_AXES_MAX} are the most")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise Damaged("a size below nothing")
    return shape


def _zone_named(key: Any) -> dt.tzinfo:
    """A zone by its name, where the system knows zones: Windows does not, and the package tzdata does."""
    try:
        return zoneinfo.ZoneInfo(key)
    except zoneinfo.ZoneInfoNotFoundError:
        if zoneinfo.available_timezones():
            raise Damaged(f"there is no time zone {key!r:.80}") from None
        raise ModuleNotFoundError("no time zones here", name="tzdata") from None


def _zoned(kind: Any, text: str, fold: int, zone: Any) -> Any:
    tz: dt.tzinfo | None = None
    if type(zone) is int:
        tz = dt.timezone(dt.timedelta(microseconds=zone))
    elif zone is not None:
        tz = _zone_named(zone)
    return kind.fromisoformat(text).replace(tzinfo=tz, fold=fold)


_READERS: Final[dict[str, Callable[..., Any]]] = {
    "int": lambda _, data: _int_of(data),
    "text": lambda _, data: data.decode("utf-8", "surrogatepass"),
    "bytes": lambda reader, at: bytes(reader._taken(at)),  # noqa: SLF001
    "bytearray": lambda reader, at: bytearray(reader._taken(at)),  # noqa: SLF001
    "floats": lambda reader, tag, at: reader._numbers("d", tag, at),  # noqa: SLF001
    "ints": lambda reader, tag, at: reader._numbers("q", tag, at),  # noqa: SLF001
    "datetime": lambda _, *parts: _zoned(dt.datetime, *parts),
    "date": lambda _, text: dt.date.fromisoformat(text),
    "time": lambda _, *parts: _zoned(dt.time, *parts),
    "timedelta": lambda _, days, seconds, us: dt.timedelta(days=days, seconds=seconds, microseconds=us),
    "decimal": lambda _, text: Decimal(text[: _DIGITS_MAX + 1]),
    "fraction": lambda _, above, below: Fraction(_int_of(above), _int_of(below)),
    "complex": lambda _, real, imaginary: complex(float(real), float(imaginary)),
    "uuid": lambda _, data: UUID(bytes=data),
    "range": lambda _, start, stop, step: range(start, stop, step),
    "array": Reader._array,  # noqa: SLF001
    "scalar": lambda reader, name, shape, at: reader._array(name, shape, at)[()],  # noqa: SLF001
    "tensor": Reader._tensor,  # noqa: SLF001
}


def _int_of(data: bytes) -> int:
    """As long as `Writer` makes them: what is done with one takes time with the square of that."""
    if len(data) > _DIGITS_MAX + 1:
        raise Damaged(f"an integer of {len(data)} bytes, {_DIGITS_MAX} are the most")
    return int.from_bytes(data, "little", signed=True)


def _bytes_of_int(value: int) -> bytes:
    if value.bit_length() > 8 * _DIGITS_MAX:
        raise NotPlain
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)


def _has_encoding(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
