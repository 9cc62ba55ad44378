"""What a browser must be told before a page of another origin may ask, and read the answer (CORS). Off unless configured."""

import re
from collections.abc import Sequence
from typing import Final

from serving.gateway.refusals import Headers

ANY: Final = "*"
_MAX_AGE_S: Final = b"600"
_HEADERS_MAX: Final = 1_024
_NAMES: Final = re.compile(rb"[A-Za-z0-9, _-]*")
_EXPOSED: Final = (
    b"x-request-id, x-client-request-id, x-fabric-call, x-fabric-charged-uhs, x-fabric-charged-ct, x-fabric-free-uhs,"
    b" x-fabric-replayed, x-fabric-limit, x-fabric-limit-remaining, x-fabric-limit-reset, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests,"
    b" x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, x-should-retry, retry-after"
)


class Origins:
    """Whose pages may ask: `https://host[:port]` each, or `*` for all."""

    def __init__(self, origins: Sequence[str] = ()) -> None:
        self._named = frozenset(origin.rstrip("/").encode() for origin in origins)

    def headers(self, asked: dict[bytes, bytes]) -> Headers:
        """Of any answer to a request."""
        if not self._named:
            return []
        origin = asked.get(b"origin", b"")
        vary: Headers = [(b"vary", b"Origin")]
        if not origin or not (origin in self._named or ANY.encode() in self._named):
            return vary
        return [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", _EXPOSED), *vary]

    def preflight(self, asked: dict[bytes, bytes], *, method: str) -> Headers | None:
        """What a browser is told that asks whether it may; None: it isn't told anything.

        Args:
            asked: its headers.
            method: what the route answers.
        """
        wanted = asked.get(b"access-control-request-method")
        allowed = self.headers(asked)
        if wanted is None or len(allowed) < 2:  # noqa: PLR2004 - `vary` alone says no
            return None
        names = asked.get(b"access-control-request-headers", b"")
        if len(names) > _HEADERS_MAX or not _NAMES.fullmatch(names):
            names = b"authorization, content-type"
        return [
            *allowed,
            (b"access-control-allow-methods", f"{method}, HEAD, OPTIONS".encode() if method == "GET" else b"POST, OPTIONS"),
            (b"access-control-allow-headers", names),
            (b"access-control-max-age", _MAX_AGE_S),
        ]  # fmt: skip
