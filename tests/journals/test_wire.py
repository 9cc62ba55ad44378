"""What crosses the network: clients of the last release go on talking with this version, and the other way round."""

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

from fabric.wire import fabric_pb2
from tests.journals.golden import releases

NOW = FileDescriptorProto.FromString(fabric_pb2.DESCRIPTOR.serialized_pb)
TYPES = FieldDescriptorProto
RELEASES = releases()


def messages_of(made, prefix=""):
    """Every message, those within others too, by its full name; and every enum's values."""
    found = {}
    for message in made.message_type if isinstance(made, FileDescriptorProto) else made.nested_type:
        name = f"{prefix}{message.name}"
        found[name] = message
        found |= messages_of(message, f"{name}.")
    return found


def enums_of(made):
    found = {enum.name: enum for enum in made.enum_type}
    for name, message in messages_of(made).items():
        found |= {f"{name}.{enum.name}": enum for enum in message.enum_type}
    return found


def shape(field, message):
    """All of a field that whoever reads it relies on."""
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    return field.name, field.type, field.type_name, field.label, field.proto3_optional, oneof


def breaks(before, now):
    """What of `before` is gone, or means something else."""
    found = []
    there = messages_of(now)
    for name, message in messages_of(before).items():
        if name not in there:
            found.append(f"message {name} is gone")
            continue
        fields = {field.number: shape(field, there[name]) for field in there[name].field}
        found += [
            f"field {field.number} of {name} was {shape(field, message)} and is {fields.get(field.number, 'gone')}"
            for field in message.field
            if fields.get(field.number) != shape(field, message)
        ]
    values = {name: {each.number: each.name for each in enum.value} for name, enum in enums_of(now).items()}
    for name, enum in enums_of(before).items():
        found += [
            f"value {each.number} of {name} is not {each.name}"
            for each in enum.value
            if values.get(name, {}).get(each.number) != each.name
        ]
    calls = {f"{service.name}.{method.name}": method for service in now.service for method in service.method}
    for service in before.service:
        for method in service.method:
            name = f"{service.name}.{method.name}"
            if calls.get(name) != method:
                found.append(f"call {name} is gone, or takes or answers something else")
    return found if before.package == now.package else [*found, "the package has another name"]


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_clients_of_every_release_are_understood(release):
    before = FileDescriptorProto.FromString((release / "wire").read_bytes())
    assert breaks(before, NOW) == [], "take a new number for what is new, and leave what is there as it is"


def field_of(made, message, name):
    return next(field for field in messages_of(made)[message].field if field.name == name)


def without_a_field(made):
    message = messages_of(made)["SubmitRequest"]
    message.field.remove(field_of(made, "SubmitRequest", "request_id"))


def with_another_number(made):
    field_of(made, "SubmitRequest", "request_id").number = 99


def with_another_type(made):
    field_of(made, "SubmitReply", "held_uhs").type = TYPES.TYPE_STRING


def with_another_name(made):
    field_of(made, "SubmitReply", "held_uhs").name = "kept_uhs"


def with_many_instead_of_one(made):
    field_of(made, "SubmitReply", "held_uhs").label = TYPES.LABEL_REPEATED


def without_a_message(made):
    made.message_type.remove(messages_of(made)["SubmitReply"])


def without_a_call(made):
    made.service[0].method.pop()


def with_a_stream_instead_of_an_answer(made):
    made.service[0].method[0].server_streaming = True


def in_another_package(made):
    made.package = "fabric.v2"


@pytest.mark.parametrize(
    "change",
    [
        without_a_field,
        with_another_number,
        with_another_type,
        with_another_name,
        with_many_instead_of_one,
        without_a_message,
        without_a_call,
        with_a_stream_instead_of_an_answer,
        in_another_package,
    ],
)
def test_what_an_older_client_would_not_understand_is_found(change):
    changed = FileDescriptorProto()
    changed.CopyFrom(NOW)
    change(changed)
    assert breaks(NOW, changed)


def test_what_is_new_breaks_nothing():
    changed = FileDescriptorProto()
    changed.CopyFrom(NOW)
    changed.message_type.append(DescriptorProto(name="New"))
    message = messages_of(changed)["SubmitRequest"]
    message.field.append(TYPES(name="new", number=999, type=TYPES.TYPE_INT64, label=TYPES.LABEL_OPTIONAL))
    changed.service[0].method.add(name="New", input_type=".fabric.v1.New", output_type=".fabric.v1.New")
    assert breaks(NOW, changed) == []
    assert breaks(changed, NOW), "and an older server lacks it"
