"""Between the gate's records and the wire's messages.

Fields have the same names on both sides, so that one function serves them all. What a request says is checked here as
far as it can be without the gate: the gate never sees a value that isn't of its vocabulary.
"""

import functools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, TypeVar

import msgspec
from google.protobuf.message import Message

from fabric.errors import Fact, InvalidAmount, InvalidRequest
from fabric.gate.events import HoldMode, JobKind, JobSpec
from fabric.gate.instructions import Accepted
from fabric.gate.payments import normal
from fabric.ledger.scopes import Scope, Service
from fabric.placement.locality import Dataset
from fabric.units import INT64_MAX, Fraction
from fabric.wire import fabric_pb2 as pb

M = TypeVar("M", bound=Message)
Word = TypeVar("Word", bound=StrEnum)

NAME_CHARS_MAX: Final = 200
NAMES_MAX: Final = 32
TAGS_MAX: Final = 16
TAG_CHARS_MAX: Final = 64
_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=/@+-]{0,63}", re.ASCII)
GRACE_US: Final = 30_000_000
_ID: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)


def message_of(view: msgspec.Struct, kind: type[M]) -> M:
    """A view as its message: fields of the same name; None is not set."""
    return kind(**_known(msgspec.to_builtins(view, builtin_types=(bytes,)), kind.DESCRIPTOR))


def accepted(outcome: Accepted) -> pb.Accepted:
    return pb.Accepted(
        granted_uhs=outcome.granted_uhs,
        held_uhs=outcome.held_uhs,
        final=outcome.final,
        facts_json=facts_json(outcome.facts),
    )


def facts_json(facts: Mapping[str, Fact]) -> str:
    return json.dumps(facts, separators=(",", ":")) if facts else ""


def spec_of(spec: pb.JobSpec, *, payload: str) -> JobSpec:
    """A job's spec as the gate takes it.

    Raises:
        InvalidRequest: an unknown word, a count below 1, a name that is too long, ...
    """
    return JobSpec(
        name=job_name(spec.name),
        kind=word(JobKind, "kind", spec.kind or JobKind.FUNCTION),
        service=word(Service, "service", spec.service or Service.TRAINING),
        accelerators=several("accelerators", spec.accelerators),
        devices=at_least(1, "devices", spec.devices),
        devices_per_node=(
            at_least(1, "devices_per_node", spec.devices_per_node) if spec.HasField("devices_per_node") else None
        ),
        limit_uhs=amount("limit_uhs", spec.limit_uhs),
        hold=word(HoldMode, "hold", spec.hold or HoldMode.FULL),
        preemptible=spec.preemptible if spec.HasField("preemptible") else True,
        grace_us=at_least(0, "grace_us", spec.grace_us) if spec.HasField("grace_us") else GRACE_US,
        time_limit_us=at_least(1, "time_limit_us", spec.time_limit_us) if spec.HasField("time_limit_us") else None,
        max_retries=at_least(0, "max_retries", spec.max_retries),
        payload=payload,
        devices_least=at_least(1, "devices_least", spec.devices_least) if spec.HasField("devices_least") else None,
        auto_park_us=at_least(1, "auto_park_us", spec.auto_park_us) if spec.HasField("auto_park_us") else None,
        data=tuple(
            Dataset(prefix=given.prefix, bytes=at_least(0, "bytes", given.bytes), region=short("region", given.region))
            for given in spec.data[:NAMES_MAX]
        ),
        estimate_us=at_least(1, "estimate_us", spec.estimate_us) if spec.HasField("estimate_us") else None,
        tags=_tags(spec.tags),
        mix=short("mix", spec.mix) or "never",
        fraction=_fraction(spec.fraction),
        prefer=short("prefer", spec.prefer),
    )


def _fraction(given: Sequence[int]) -> Fraction | None:
    if not given:
        return None
    if len(given) != 2:  # noqa: PLR2004
        raise InvalidRequest(
            f"a part of a device is two numbers, 1 and 4 for a quarter, not {len(given)}", code="invalid_fraction"
        )
    return given[0], given[1]


def _tags(given: Sequence[str]) -> tuple[str, ...]:
    if len(given) > TAGS_MAX or not all(map(_TAG.fullmatch, given)):
        raise InvalidRequest(
            f"tags are at most {TAGS_MAX}, each of 1 to {TAG_CHARS_MAX} letters, digits and ._:=/@+-, the first a letter or a"
            " digit, such as exp7 or owner=li",
            code="invalid_tags",
        )
    return tuple(dict.fromkeys(given))


def scope_of(scope: pb.Scope) -> Scope:
    return Scope(
        services=tuple(word(Service, "service", service) for service in scope.services),
        accelerators=several("accelerators", scope.accelerators),
        models=several("models", scope.models),
        operators=several("operators", scope.operators),
    )


def word(kind: type[Word], field: str, given: str) -> Word:
    """One word of a vocabulary."""
    try:
        return kind(given)
    except ValueError:
        allowed = ", ".join(member.value for member in kind)
        raise InvalidRequest(f"{field} {given!r}: choose of {allowed}", code=f"invalid_{field}", given=given) from None


def amount(field: str, uhs: int) -> int:
    """An amount of tokens that is more than nothing."""
    if not 0 < uhs <= INT64_MAX:
        raise InvalidAmount(given=f"{field}={uhs}", why="the amount must be more than zero")
    return uhs


def short(field: str, given: str) -> str:
    """A name or a reference: the gate keeps it for ever."""
    if len(given) > NAME_CHARS_MAX:
        raise InvalidRequest(
            f"{field} may have {NAME_CHARS_MAX} characters, this one has {len(given)}: shorten it",
            code=f"invalid_{field}",
        )
    return given


def reference(field: str, given: str) -> str:
    """What somebody else calls a payment, in one form however it was pasted: without what nobody sees, spaces and dashes of
    one kind, letters that differ in nothing but their form as one.
    """
    seen = (char for char in unicodedata.normalize("NFKC", short(field, given)) if unicodedata.category(char) != "Cf")
    return normal("".join("-" if unicodedata.category(char) == "Pd" else char for char in seen))


def several(field: str, given: Sequence[str]) -> tuple[str, ...]:
    """A few names."""
    if len(given) > NAMES_MAX:
        raise InvalidRequest(
            f"{field} may name {NAMES_MAX}, this names {len(given)}: name none for any", code=f"invalid_{field}"
        )
    return tuple(short(field, each) for each in given)


def at_least(least: int, field: str, given: int) -> int:
    if given < least:
        raise InvalidRequest(
            f"{field} is {given}: it must be at least {least}", code="invalid_count", field=field, given=given
        )
    return given


def request_id(given: str) -> str:
    """What makes a call safe to repeat: required wherever something changes."""
    if not _REQUEST_ID.fullmatch(given):
        raise InvalidRequest(
            "give a request_id of 1 to 128 printable characters, the same one when the call is repeated",
            code="invalid_request_id",
        )
    return given


def identifier(field: str, given: str) -> str:
    """An id that a caller chose: also good as a label, a path segment and a Ray resource."""
    if not _ID.fullmatch(given):
        raise InvalidRequest(
            f"{field} {given!r}: use 1 to 63 letters, digits, '.', '_' and '-', beginning and ending with a letter or digit",
            code=f"invalid_{field}",
            given=given[:NAME_CHARS_MAX],
        )
    return given


def listed(field: str, given: Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    unknown = [each for each in given if each not in allowed]
    if unknown:
        raise InvalidRequest(f"{field} {unknown[0]!r}: choose of {', '.join(allowed)}", code=f"invalid_{field}")
    return tuple(given)


def job_name(given: str) -> str:
    """A name that can be shown."""
    if not given or len(given) > NAME_CHARS_MAX or not given.isprintable():
        raise InvalidRequest(
            f"a job's name has 1 to {NAME_CHARS_MAX} characters, each printable and in one line: this one has {len(given)},"
            f" and {sum(not letter.isprintable() for letter in given)} that can't be printed. Choose another name",
            code="invalid_name",
        )
    return given


def _known(values: Mapping[str, Any], descriptor: Any) -> dict[str, Any]:
    """Without what the message doesn't show (a key's hash) and what isn't set."""
    fields = _fields(descriptor)
    return {name: _inner(value, fields[name]) for name, value in values.items() if name in fields and value is not None}


def _inner(value: Any, nested: Any) -> Any:
    if nested is None or nested.GetOptions().map_entry:
        return value
    return [_entry(each, nested) for each in value] if isinstance(value, list | tuple) else _known(value, nested)


def _entry(value: Any, nested: Any) -> dict[str, Any]:
    """One of a list; a plain tuple has its values in the order of the message's fields."""
    return _known(value, nested) if isinstance(value, Mapping) else dict(zip(_fields(nested), value, strict=True))


@functools.cache
def _fields(descriptor: Any) -> dict[str, Any]:
    """The message's fields, each with the descriptor of the message it holds, if it holds one."""
    return {field.name: field.message_type for field in descriptor.fields}
