"""Sending webhooks: one request, signed, to an address that was looked at, with a bound on all that comes back."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp

from fabric.errors import PermissionDenied
from fabric.notifications.addresses import CheckedResolver, Lookup, Network, is_allowed, is_named, not_allowed
from fabric.notifications.endpoints import Endpoint, signed
from fabric.notifications.notice import Notice

ANSWERS_S: Final = 15.0
"""How long a receiver may take."""
ANSWER_BYTES: Final = 4_096
"""What is read of what it says; nothing of it is kept."""
GONE: Final = 410
_SAID_CHARS: Final = 120
_RETRY_AFTER_S_MAX: Final = 3_600


class Answer(NamedTuple):
    """What came of a try."""

    arrived: bool
    said: str
    """In a few words."""
    is_gone: bool = False
    """It wants nothing any more."""
    retry_after_s: int = 0

    @classmethod
    def failed(cls, said: str) -> "Answer":
        return cls(arrived=False, said=said)


class Sender:
    """Sends to whatever endpoints there are."""

    def __init__(
        self, private: Sequence[Network] = (), *, lookup: Lookup | None = None, answers_s: float = ANSWERS_S
    ) -> None:
        """Name the rules.

        Args:
            private: networks that the operator has named, to which customers' webhooks may lead, also without TLS.
            lookup: the addresses of a host; None = as this machine resolves them.
            answers_s: how long a receiver may take.
        """
        self._private = private
        self._lookup = lookup or _looked_up
        self._answers_s = answers_s

    async def send(self, endpoint: Endpoint, notice: Notice, *, now_us: int) -> Answer:
        """One try. Whatever happens, it ends soon, and says what came of it."""
        body = notice.body()
        timestamp = now_us // 1_000_000
        secrets = endpoint.good_secrets(now_us)
        headers = {
            "content-type": "application/json",
            "user-agent": "token-fabric",
            "webhook-id": notice.notice_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signed(secrets, notice_id=notice.notice_id, timestamp=timestamp, body=body),
        }
        try:
            async with asyncio.timeout(self._answers_s):
                return await self._post(endpoint.url, body, headers)
        except TimeoutError:
            return Answer.failed(f"no answer within {self._answers_s:g} s")
        except PermissionDenied as error:
            return Answer.failed(error.message)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer.failed(f"{type(error).__name__}: {error}"[:_SAID_CHARS])

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        parts = urlsplit(url)
        plain, host = parts.scheme != "https", parts.hostname or ""
        self._check_literal(host, plain=plain)
        resolver = CheckedResolver(self._lookup, self._private, public_only=not plain)
        connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True, limit=1)
        async with (
            aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=False) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            await response.content.read(ANSWER_BYTES)
            arrived = 200 <= response.status < 300  # noqa: PLR2004
            return Answer(
                arrived,
                f"HTTP {response.status}",
                is_gone=response.status == GONE,
                retry_after_s=_retry_after_s(response.headers.get("retry-after", "")),
            )

    def _check_literal(self, host: str, *, plain: bool) -> None:
        """An address in the place of a name is not resolved by whoever connects."""
        if ":" in host or host.replace(".", "").isdigit():
            allowed = is_named if plain else is_allowed
            if not allowed(host, self._private):
                raise not_allowed(host, plain=plain)


def _retry_after_s(said: str) -> int:
    return min(int(said), _RETRY_AFTER_S_MAX) if said.isascii() and said.isdigit() and len(said) < 10 else 0  # noqa: PLR2004


async def _looked_up(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(address[0]) for *_, address in found]
