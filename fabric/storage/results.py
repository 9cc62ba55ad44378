"""Where a job's result is: in its own record if it is small, else in the archive.

A small result that travels with the news of the job's end is durable with it, and costs the archive no write on the way
to whoever waits and no read afterwards.
"""

import base64
from typing import Final

from fabric.errors import InvalidRequest
from fabric.storage.archive import Archive

RESULT_BYTES_MAX: Final = 512 * 2**20
JOURNALED_BYTES_MAX: Final = 1024
_INLINE: Final = "inline:"


def keep_result(archive: Archive, key: str, data: bytes) -> str:
    """Keep a packed result, and say where it is; durable in the archive on return, or when what is said is.

    Raises:
        InvalidRequest: it is larger than a door can hand on.
    """
    if len(data) > RESULT_BYTES_MAX:
        raise InvalidRequest(
            f"a result may have {RESULT_BYTES_MAX} bytes when packed, this one has {len(data)}: write it to storage, and"
            " return where it lies",
            code="result_too_large",
            limit_bytes=RESULT_BYTES_MAX,
        )
    if len(data) <= JOURNALED_BYTES_MAX:
        return _INLINE + base64.b64encode(data).decode("ascii")
    archive.put(key, data)
    return key


def inline_result(result_ref: str) -> bytes | None:
    """The result itself, if it is said where it is; None if it is in the archive."""
    return base64.b64decode(result_ref.removeprefix(_INLINE)) if result_ref.startswith(_INLINE) else None


def read_result(archive: Archive, result_ref: str) -> bytes:
    """The packed result, wherever it is."""
    found = inline_result(result_ref)
    return archive.get(result_ref) if found is None else found


def shown_ref(result_ref: str) -> str:
    """For people and clients: where the result is, without the result."""
    return _INLINE.rstrip(":") if result_ref.startswith(_INLINE) else result_ref
