"""What a key of the archive may be: a path of plain segments, so that none leaves the place it is kept in."""

import re
from typing import Final

from fabric.errors import InvalidRequest

_SEGMENT: Final = re.compile(r"[A-Za-z0-9_@=+:,-][A-Za-z0-9._@=+:,-]{0,199}", re.ASCII)
_KEY_CHARS_MAX: Final = 900


def checked_key(key: str) -> str:
    """The key itself, if every segment is plain.

    Raises:
        InvalidRequest: an empty, hidden or relative segment, a character outside `A-Za-z0-9._@=+:,-`, or too long.
    """
    if len(key) > _KEY_CHARS_MAX or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise InvalidRequest(
            f"{key[:80]!r} is not a key: use plain segments of letters, digits and ._@=+:,- joined by /",
            code="invalid_key",
            key=key[:_KEY_CHARS_MAX],
        )
    return key
