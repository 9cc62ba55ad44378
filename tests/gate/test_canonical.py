"""What makes two requests the same: the digest of what they say, in this version and the next."""

from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect

from fabric.gate.canonical import digest
from fabric.gate.events import AnyEvent
from fabric.gate.idempotency import _ANYWAY, _WHO_ASKS, digest_of
from tests.gate.test_idempotency import least

ASKED = [kind for kind in get_args(AnyEvent) if "request_id" in kind.__struct_fields__]
every_kind = pytest.mark.parametrize("kind", ASKED, ids=lambda kind: kind.__name__)
PLAIN = {inspect.IntType: 3, inspect.BoolType: True, inspect.StrType: "y", inspect.CustomType: "y"}
_made: dict[type, type] = {}


def full(info: Any) -> Any:
    """Something that is said of a type, where it need not be."""
    said: Any
    match info:
        case inspect.StructType(cls=cls) if cls.__name__ == "BurnCurve":
            said = {"points": [[0, 300_000], [800_000, 1_000_000], [1_000_000, 1_100_000]]}
        case inspect.StructType():
            said = {field.encode_name: full(field.type) for field in info.fields}
            said |= {info.tag_field: info.tag} if info.tag_field else {}
        case inspect.UnionType(types=types):
            said = full(next(each for each in types if not isinstance(each, inspect.NoneType)))
        case inspect.EnumType(cls=cls):
            said = list(cls)[-1].value
        case inspect.TupleType(item_types=items):
            said = [full(item) for item in items]
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            said = [full(item)]
        case inspect.DictType():
            said = {"y": 3}
        case _:
            said = PLAIN[type(info)]
    return said


def event_of(kind, say=full):
    return msgspec.convert(say(inspect.type_info(kind)), kind)


def next_version(kind: type) -> type:
    """The record as a later version has it: with one more field that has a default, and in another order."""
    if kind not in _made:
        fields: list[Any] = [("newer", int, 7)]
        for field in reversed(msgspec.structs.fields(kind)):
            options: dict[str, Any] = {"name": field.encode_name}
            if field.default is not msgspec.NODEFAULT:
                options["default"] = grown(field.default)
            if field.default_factory is not msgspec.NODEFAULT:
                options["default_factory"] = field.default_factory
            fields.append((field.name, Any, msgspec.field(**options)))
        how = kind.__struct_config__
        _made[kind] = msgspec.defstruct(
            f"Next{kind.__name__}", fields, kw_only=True, frozen=True, tag=how.tag, tag_field=how.tag_field
        )
    return _made[kind]


def grown(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        said = {name: grown(getattr(value, name)) for name in value.__struct_fields__}
        return next_version(type(value))(**said)
    if isinstance(value, tuple):
        return tuple(grown(each) for each in value)
    return value


def asked(event, kind):
    return digest(event, but=_WHO_ASKS.get(kind, _ANYWAY))


@pytest.mark.parametrize("say", [least, full], ids=["least", "full"])
@every_kind
def test_a_field_that_comes_with_a_default_changes_no_request(kind, say):
    event = event_of(kind, say)
    later = grown(event)
    assert asked(later, kind) == digest_of(event)
    assert asked(msgspec.structs.replace(later, newer=8), kind) != digest_of(event), "what is said in it counts"


@every_kind
def test_everything_that_is_asked_makes_another_request(kind):
    """But for the request's own name, and with which key of the account it is asked."""
    event, other = event_of(kind, least), event_of(kind)
    left_out = _WHO_ASKS.get(kind, _ANYWAY)
    for name in kind.__struct_fields__:
        said, otherwise = getattr(event, name), getattr(other, name)
        changed = msgspec.structs.replace(event, **{name: (not said) if isinstance(said, bool) else otherwise})
        same = digest_of(changed) == digest_of(event)
        assert same == (name in left_out), name


def test_who_asks_is_a_key_and_nothing_else():
    for kind, left_out in _WHO_ASKS.items():
        assert left_out - _ANYWAY <= {"key_id", "made_with"}
        assert left_out <= set(kind.__struct_fields__)


def test_another_kind_of_request_is_never_the_same():
    found = [digest_of(event_of(kind, least)) for kind in ASKED]
    assert len(set(found)) == len(found)
