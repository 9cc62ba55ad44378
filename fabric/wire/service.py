"""The service's calls as the schema describes them: names, messages, and which side streams."""

from typing import Final, NamedTuple

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fabric.wire import fabric_pb2 as pb

INLINE_BYTES_MAX: Final = 64 * 1024
"""What may ride along in a call (a pickled function) or in an update (a result) instead of going as a blob."""


class Method(NamedTuple):
    """One call."""

    name: str
    path: str
    request: type[Message]
    reply: type[Message]
    client_streams: bool
    server_streams: bool


_SERVICE = pb.DESCRIPTOR.services_by_name["Fabric"]
SERVICE_NAME: Final[str] = _SERVICE.full_name
METHODS: Final[dict[str, Method]] = {
    rpc.name: Method(
        rpc.name,
        f"/{SERVICE_NAME}/{rpc.name}",
        GetMessageClass(rpc.input_type),
        GetMessageClass(rpc.output_type),
        rpc.client_streaming,
        rpc.server_streaming,
    )
    for rpc in _SERVICE.methods
}
