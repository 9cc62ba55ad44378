"""What a job runs, as the door hands it to the runner: `JobSpec.payload` is this, as JSON.

Keys are the archive's, and always lie below the account's own prefix: the door writes them, never the client.
"""

from typing import Any, Final

import msgspec

INLINE_BYTES_MAX: Final = 64 * 1024
"""What may ride along in a call (a pickled function) or in an update (a result) instead of going as a blob."""


class Payload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Either `function` or `command`; neither for a bare lease."""

    function: str = ""
    """Key of a cloudpickled `(function, args, kwargs)`."""
    command: tuple[str, ...] = ()
    """Program and arguments, run in the working directory."""
    working_dir: str = ""
    """Key of a zip that is unpacked into the working directory."""
    env: dict[str, str] = {}
    runtime_env: dict[str, Any] = {}
    """Ray's, without what would reach outside the archive."""


def encode_payload(payload: Payload) -> str:
    """As the gate keeps it."""
    return msgspec.json.encode(payload).decode()


def decode_payload(text: str) -> Payload:
    """As the runner reads it."""
    return msgspec.json.decode(text, type=Payload)
