"""What a record says, as a digest: the same for the same content in every version.

Left out is what a field says by default, in the record and in all that is in it, and how fields are ordered. So a field
that comes with a default, or goes to another place, changes no digest that somebody has kept. Knows no event. Every request
is taken to a digest, so what can be known of a type is found once.
"""

import hashlib
from collections.abc import Callable
from functools import cache, partial
from operator import attrgetter
from typing import Any, Final

import msgspec

NOTHING: Final[frozenset[str]] = frozenset()
_REQUIRED: Final = object()
"""Stands for the default of a field that has none, and is no value's equal."""
_encode: Final = msgspec.json.Encoder(order="sorted").encode


def digest(record: msgspec.Struct, *, but: frozenset[str] = NOTHING) -> bytes:
    """The sha256 of what it says, `but` for these fields of its own."""
    return hashlib.sha256(_encode(_said(record, plan=_plan(type(record), but)))).digest()


Way = Callable[[Any], Any]
"""How a value of some type is written."""
Plan = tuple[Any, tuple[str, ...], tuple[Any, ...], Way]
"""Of a type of record: its tag, the names that fields are written under, what they say by default, and what gets them all."""


def _said(record: Any, *, plan: Plan) -> list[Any]:
    """Its tag, and the names and values of those fields that say something, in the order of their names."""
    tag, names, defaults, held = plan
    said = [tag]
    for name, default, value in zip(names, defaults, held(record)):  # noqa: B905 - each request comes by here
        if value is default or value == default:
            continue
        said.append(name)
        kind = type(value)
        if kind is str or kind is int:
            said.append(value)
        else:
            way = _WAYS.get(kind, _learn)
            said.append(value if way is None else way(value))
    return said


def _learn(value: Any) -> Any:
    """Write the first value of a type, and know how from then on."""
    kind: Any = type(value)
    way: Way | None = None
    if isinstance(value, msgspec.Struct):
        way = partial(_said, plan=_plan(kind, NOTHING))
    elif isinstance(value, tuple | list):
        way = _sequence
    elif isinstance(value, dict):
        way = _mapping
    _WAYS[kind] = way
    return value if way is None else way(value)


def _sequence(values: Any) -> Any:
    for each in values:
        if _WAYS.get(type(each), _learn) is not None:
            return [_written(each) for each in values]
    return values


def _mapping(values: dict[Any, Any]) -> dict[Any, Any]:
    return {name: _written(each) for name, each in values.items()}


def _written(value: Any) -> Any:
    way = _WAYS.get(type(value), _learn)
    return value if way is None else way(value)


_WAYS: Final[dict[type, Way | None]] = {}
"""None = as it is."""


@cache
def _plan(kind: Any, but: frozenset[str]) -> Plan:
    fields = sorted(msgspec.structs.fields(kind), key=lambda field: field.encode_name)
    fields = [field for field in fields if field.name not in but]
    names, defaults = tuple(field.encode_name for field in fields), tuple(map(_default, fields))
    attributes = [field.name for field in fields]
    held: Way = (
        attrgetter(*attributes) if len(attributes) > 1 else lambda record: [getattr(record, n) for n in attributes]
    )
    return kind.__struct_config__.tag, names, defaults, held


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else _REQUIRED
