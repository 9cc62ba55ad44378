"""From a message to a record of ours, by the names of their fields, which are the same on both sides."""

from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

S = TypeVar("S", bound=msgspec.Struct)


def struct_of(message: Message, kind: type[S], **said: Any) -> S:
    """A message as a record: fields of the same name; one that is not set keeps the record's default.

    Args:
        message: whose scalars and lists of scalars are taken.
        kind: the record's class; what it has and the message hasn't keeps its default.
        **said: fields that are not the message's to say, or that it says in another shape.
    """
    for name, has_presence, is_list in _shared(message.DESCRIPTOR, kind):
        if name not in said and (not has_presence or message.HasField(name)):
            value = getattr(message, name)
            said[name] = tuple(value) if is_list else value
    return kind(**said)


@lru_cache(maxsize=64)
def _shared(descriptor: Descriptor, kind: type[msgspec.Struct]) -> tuple[tuple[str, bool, bool], ...]:
    """Fields that both have: name, whether it can be left unset, whether it is a list."""
    ours = {field.name for field in msgspec.structs.fields(kind)}
    fields = [field for field in descriptor.fields if field.name in ours]
    return tuple((field.name, field.has_presence, field.is_repeated) for field in fields)
