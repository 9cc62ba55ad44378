"""What a record says, as a digest: the same for the same content in every version.

Left out is what a field says by default, in the record and in all that is in it, and how fields are ordered. So a field
that comes with a default, or goes to another place, changes no digest that somebody has kept. Knows no event. Every request
is taken to a digest, and most of its fields say nothing: so each type is read by a function that is written for it once, as
that of a dataclass is made, with no loop over its fields.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import msgspec

NOTHING: Final[frozenset[str]] = frozenset()
_REQUIRED: Final = object()
"""Stands for the default of a field that has none, and is no value's equal."""
_encode: Final = msgspec.json.Encoder(order="sorted").encode
_sha256: Final = hashlib.sha256

Way = Callable[[Any], Any]
"""How a value of some type is written."""


def digest(record: msgspec.Struct, *, but: frozenset[str] = NOTHING) -> bytes:
    """The sha256 of what it says, `but` for these fields of its own."""
    return _sha256(_encode(_reader(type(record), but)(record))).digest()


def written(value: Any) -> Any:
    """A value as it is taken to the digest."""
    way = _WAYS.get(type(value), _learn)
    return value if way is None else way(value)


def _learn(value: Any) -> Any:
    """Write the first value of a type, and know how from then on."""
    kind: Any = type(value)
    way: Way | None = None
    if isinstance(value, msgspec.Struct):
        way = _reader(kind, NOTHING)
    elif isinstance(value, tuple | list):
        way = _sequence
    elif isinstance(value, dict):
        way = _mapping
    _WAYS[kind] = way
    if way is None:
        _PLAIN.add(kind)
        return value
    return way(value)


def _sequence(values: Any) -> Any:
    for each in values:
        if type(each) not in _PLAIN and _WAYS.get(type(each), _learn) is not None:
            return [written(each) for each in values]
    return values


def _mapping(values: dict[Any, Any]) -> dict[Any, Any]:
    return {name: written(each) for name, each in values.items()}


_WAYS: Final[dict[type, Way | None]] = {str: None, int: None}
"""None = as it is."""
_PLAIN: Final[set[type]] = {str, int}
"""Those types."""


@cache
def _reader(kind: Any, but: frozenset[str]) -> Way:
    """What lists a record's tag, and the names and values of those fields that say something, in the order of their names."""
    fields = sorted(msgspec.structs.fields(kind), key=lambda field: field.encode_name)
    fields = [field for field in fields if field.name not in but]
    names: dict[str, Any] = {"tag": kind.__struct_config__.tag, "written": written, "plain": _PLAIN}
    lines = ["def read(record):", "    said = [tag]"]
    for at, field in enumerate(fields):
        names[f"name_{at}"], names[f"default_{at}"] = field.encode_name, _default(field)
        lines += [
            f"    value = record.{field.name}",
            f"    if value is not default_{at} and value != default_{at}:",
            f"        said += (name_{at}, value if type(value) in plain else written(value))",
        ]
    exec("\n".join([*lines, "    return said"]), names)  # noqa: S102 - of the names of our own fields, and nothing that anybody says
    read: Way = names["read"]
    return read


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else _REQUIRED
