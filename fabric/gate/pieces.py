"""A large state as MessagePack, a piece at a time: together the very bytes that encoding it at once gives.

Whoever encodes hundreds of megabytes beside other work does so in pieces, and sees to that work between them. Taken apart
are records, which msgspec writes as maps of their fields, and in them dictionaries with many entries.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any, Final

import msgspec

ENTRIES: Final = 500
"""Of a dictionary in one piece."""
_FIX_MAP_MAX: Final = 15
_MAP_16_MAX: Final = 2**16 - 1

_encode: Final = msgspec.msgpack.Encoder().encode


def pieces(value: Any, *, entries: int = ENTRIES) -> Iterator[bytes]:
    """The encoding of a record or a dictionary. It must not change before the last piece was taken."""
    if (names := _fields_of(value)) is not None:
        yield _map_header(len(names))
        for name in names:
            yield _encode(name)
            yield from pieces(getattr(value, name), entries=entries)
    elif isinstance(value, dict) and (len(value) > entries or any(_is_large(each, entries) for each in value.values())):
        yield _map_header(len(value))
        left = iter(value.items())
        while some := dict(islice(left, entries)):
            if any(_is_large(each, entries) for each in some.values()):
                for name, each in some.items():
                    yield _encode(name)
                    yield from pieces(each, entries=entries)
            else:
                yield _encode(some)[len(_map_header(len(some))) :]
    else:
        yield _encode(value)


def _is_large(value: Any, entries: int) -> bool:
    """Whether a record has a dictionary of many entries itself."""
    if not is_dataclass(value):
        return False
    return any(isinstance(each := getattr(value, name.name), dict) and len(each) > entries for name in fields(value))


def _fields_of(value: Any) -> tuple[str, ...] | None:
    """The fields of a record that is written as a plain map of all of them."""
    if isinstance(value, msgspec.Struct):
        how = value.__struct_config__
        plain = how.tag is None and not (how.omit_defaults or how.array_like)
        plain = plain and value.__struct_encode_fields__ == value.__struct_fields__
        return value.__struct_fields__ if plain else None
    if is_dataclass(value) and not isinstance(value, type):
        return tuple(field.name for field in fields(value))
    return None


def _map_header(size: int) -> bytes:
    if size <= _FIX_MAP_MAX:
        return bytes((0x80 | size,))
    if size <= _MAP_16_MAX:
        return b"\xde" + size.to_bytes(2, "big")
    return b"\xdf" + size.to_bytes(4, "big")
