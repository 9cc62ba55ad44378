"""What a job may publish: bytes under a name, for whoever may see the job."""

import re
from typing import Final

from fabric.errors import InvalidRequest

NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)
BYTES_MAX: Final = 512 * 2**20


def check(name: str, data: bytes) -> None:
    """Refuse what can't be published.

    Raises:
        InvalidRequest: `bad_artifact`.
    """
    if not NAME.fullmatch(name) or len(data) > BYTES_MAX:
        raise InvalidRequest(
            f"{name[:64]!r} with {len(data)} bytes can't be published: name it with 1 to 64 letters, digits, '-', '_' and"
            f" '.', and keep what has more than {BYTES_MAX} bytes on storage of your own",
            code="bad_artifact",
            limit_bytes=BYTES_MAX,
        )
