"""What a record says, as a digest: the same for the same content in every version.

Left out is what a field says by default, in the record and in all that is in it, and how fields are ordered. So a field
that comes with a default, or goes to another place, changes no digest that somebody has kept. Knows no event.
"""

import hashlib
from functools import cache
from typing import Any, Final

import msgspec

NOTHING: Final[frozenset[str]] = frozenset()
_PLAIN: Final = frozenset((str, int, bool, type(None)))
_NO_DEFAULT: Final = object()
_encode: Final = msgspec.json.Encoder(order="sorted").encode


def digest(record: msgspec.Struct, *, but: frozenset[str] = NOTHING) -> bytes:
    """The sha256 of what it says, `but` for these fields of its own."""
    return hashlib.sha256(_encode(_said(record, but))).digest()


def _said(value: Any, but: frozenset[str] = NOTHING) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, msgspec.Struct):
        tag, fields = _fields(type(value))
        said: dict[str, Any] = {} if tag is None else {"": tag}
        for name, written, default in fields:
            held = getattr(value, name)
            if held is not default and held != default and name not in but:
                said[written] = _said(held)
        return said
    if isinstance(value, tuple | list):
        return [_said(each) for each in value]
    if isinstance(value, dict):
        return {name: _said(each) for name, each in value.items()}
    return value


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[Any, tuple[tuple[str, str, Any], ...]]:
    """Its tag, and of each field its name, the name it is written under, and what it says by default."""
    return kind.__struct_config__.tag, tuple(
        (field.name, field.encode_name, _default(field)) for field in msgspec.structs.fields(kind)
    )


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else _NO_DEFAULT
