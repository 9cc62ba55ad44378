"""How an error crosses the network: its code, status, message and facts as JSON in trailing metadata."""

import json
from typing import Final

from fabric.errors import FabricError, error_of
from fabric.visible import visible_lines

ERROR_METADATA: Final = "fabric-error-bin"


def encode_error(error: FabricError) -> bytes:
    """The error as JSON."""
    parts = {
        "code": error.code,
        "http_status": error.http_status,
        "message": error.message,
        "facts": error.facts,
    }
    return json.dumps(parts, separators=(",", ":")).encode()


def decode_error(data: bytes) -> FabricError:
    """The error as its own class again; its text may tell of what others chose, and is fit for a terminal."""
    parts = json.loads(data)
    return error_of(parts["code"], parts["http_status"], visible_lines(parts["message"]), parts["facts"])
