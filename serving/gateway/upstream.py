"""One request to one replica, over HTTP with the headers that only gateways may send.

A replica that couldn't be reached got nothing of the request: that is `NotReached`, and another may be asked. Anything that
goes wrong later is `ReplicaLost`: the engine may have worked, so that nothing is ever sent twice behind a client's back.
"""

import socket
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Final, Self

import aiohttp
import msgspec

from fabric.errors import Unavailable
from serving.calls import ACCOUNT, CALLS_PATH
from serving.gateway.directory import Replica
from serving.gateway.generations import Generation
from serving.gateway.refusals import ReplicaLost, TooLarge

CONNECT_S: Final = 5.0
KEEP_ALIVE_S: Final = 30.0
"""Less than a replica keeps a connection open (75 s), so that no request is sent on one that is just being closed."""
QUIET_S: Final = 5
"""How long a connection may be silent before the kernel asks whether the other machine is there,"""
PROBE_S: Final = 3
"""how long it waits for an answer,"""
PROBES: Final = 3
"""and how often it asks."""
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of an answer that is no stream: a gateway has it in memory."""
BROKEN: Final = (aiohttp.ClientError, OSError)
"""What a connection that broke raises."""
_TRUST: Final = "x-fabric-trust"
_READ_BYTES: Final = 64 * 1024


class _Charge(msgspec.Struct, frozen=True):
    """As `serving.engines.parts.admission` tells it."""

    charged_uhs: str | None


class NotReached(Exception):
    """No byte of the request got to the replica."""


class Answer:
    """A replica's answer, as it comes. Closing it before its end cancels the work."""

    def __init__(self, response: aiohttp.ClientResponse, replica: Replica) -> None:
        self._response = response
        self._replica = replica
        self.read: Callable[[], Awaitable[bytes]] = response.content.readany
        """What has come since, at least a byte; b"" is the end. Raises `BROKEN`, of which `lost` tells."""
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.is_stream = response.headers.get("content-type", "").startswith("text/event-stream")

    def lost(self, error: Exception) -> ReplicaLost:
        """The connection broke before the end."""
        return _lost(self._replica, error)

    async def whole(self) -> bytes:
        """All of it.

        Raises:
            ReplicaLost: the connection broke before the end.
            TooLarge: it is beyond `ANSWER_BYTES_MAX`.
        """
        pieces, size = [], 0
        try:
            while piece := await self.read():
                size += len(piece)
                if size > ANSWER_BYTES_MAX:
                    raise TooLarge(
                        f"the answer is beyond {ANSWER_BYTES_MAX >> 20} MiB: ask for fewer tokens or logprobs, or for a stream",
                        code="answer_too_large",
                    )
                pieces.append(piece)
        except BROKEN as error:
            raise self.lost(error) from None
        return b"".join(pieces)

    def close(self) -> None:
        """Done, or not wanted any more: what is left unread is cancelled at the replica."""
        self._response.close()

    def release(self) -> None:
        """Read to the end: the connection may be used again."""
        self._response.release()


class Upstream:
    """Connections to all replicas."""

    def __init__(self, *, trust: str) -> None:
        self._trust = trust
        self._session: aiohttp.ClientSession | None = None
        self._pins: dict[str, aiohttp.Fingerprint] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=60, socket_factory=_opened
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=CONNECT_S, sock_read=None),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
            read_bufsize=_READ_BYTES,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(
        self, replica: Replica, *, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        """Send a request; answers as soon as the replica's headers are there.

        Raises:
            NotReached: nothing was sent.
            ReplicaLost: something was, and no answer came.
        """
        assert self._session is not None, "used as a context"
        try:
            response = await self._session.request(
                method,
                replica.address + path,
                headers={**headers, _TRUST: self._trust},
                data=body,
                ssl=self._pin(replica.tls_sha256) if replica.tls_sha256 else True,
                allow_redirects=False,
            )
        except (
            aiohttp.ClientConnectorError,
            aiohttp.ServerFingerprintMismatch,
            aiohttp.ConnectionTimeoutError,
        ) as error:
            raise NotReached(str(error)) from None
        except BROKEN as error:
            raise _lost(replica, error) from None
        return Answer(response, replica)

    async def charge(self, one: Generation) -> int | None:
        """What a call cost whose client left; None: it is not booked yet, or its replica is gone.

        Raises:
            Unavailable: the replica can't be asked now.
        """
        replica = Replica(replica_id=one.replica_id, model=one.model, address=one.address, tls_sha256=one.tls_sha256)
        path = f"{CALLS_PATH}{one.call_id}"
        try:
            answer = await self.send(replica, method="GET", path=path, headers={ACCOUNT: one.account_id}, body=None)
            said = msgspec.json.decode(await answer.whole(), type=_Charge)
            answer.release()
        except (NotReached, ReplicaLost, msgspec.MsgspecError):
            raise Unavailable(
                "what this call cost is known to its replica alone, which does not answer: look into `fabric usage`",
                code="charge_unknown",
            ) from None
        return int(said.charged_uhs) if said.charged_uhs is not None else None

    def _pin(self, sha256: str) -> aiohttp.Fingerprint:
        if sha256 not in self._pins:
            if len(self._pins) > 1_000:  # noqa: PLR2004 - replicas come and go
                self._pins.clear()
            self._pins[sha256] = aiohttp.Fingerprint(bytes.fromhex(sha256))
        return self._pins[sha256]


def _opened(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that is broken when the other machine is gone without a word, while it is waited for its next token."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, QUIET_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, (QUIET_S + PROBES * PROBE_S) * 1_000)
    return made


def _lost(replica: Replica, error: Exception) -> ReplicaLost:
    return ReplicaLost(
        "the replica that worked on this went away before it was done; what it had produced until then is charged. Send"
        " the request again",
        replica=replica.replica_id,
        why=type(error).__name__,
    )
