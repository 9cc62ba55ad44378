"""A gateway's sockets: the public one, which several processes share, and the operator's own, on loopback.

Around `serving.http_server`: how many may be connected, TLS wherever the socket is more than loopback, and an orderly end, in which no new connection is taken, streams finish, and what doesn't finish in time hears of it.
"""

import asyncio
import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Any, Final

import msgspec

from fabric.errors import InvalidConfig, Unavailable
from serving.acceptor import Bounds, raise_limit_of_files
from serving.gateway.app import Gateway
from serving.gateway.behind import Application, Behind
from serving.gateway.exchange import Receive, Send
from serving.http_server import HttpServer, Scope

CONNECTIONS_MAX: Final = 16_384
PER_ADDRESS: Final = 4_096
KEYLESS_MAX: Final = 2_048
"""Connections that have shown no key: each takes up to 100 kB."""
KEYLESS_PART: Final = 4
"""Of those from one address, one part in this many may be without a key."""
ADDRESS_PART: Final = 4
"""Of all connections, one address may have one part in this many at most: also where few files may be open."""
ACCOUNT_PART: Final = 4
"""Of all connections, those of one account may be one part in this many."""
LAST_WORDS_S: Final = 2.0
_BACKLOG: Final = 2_048
_ADMIN: Final = Bounds(most=256, per_address=256, keyless=64, keyless_per_address=64)
_BEHIND: Final = Bounds(
    most=CONNECTIONS_MAX, per_address=CONNECTIONS_MAX, keyless=KEYLESS_MAX, keyless_per_address=KEYLESS_MAX
)
"""Of the ingress, which has one address and shows its secret at once; its own clients it counts itself."""


def bind(listen: str, *, shared: bool) -> socket.socket:
    """A socket on `host:port`; with `shared`, other processes may open the same.

    Raises:
        Unavailable: `address_taken`.
    """
    host, port = split(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, or asyncio doesn't switch Nagle's algorithm off for what it accepts, and small writes wait 40 ms.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        opened.bind((host, port))
    except OSError as error:
        opened.close()
        raise Unavailable(f"can't listen at {listen}: {error.strerror}", code="address_taken", listen=listen) from None
    opened.listen(_BACKLOG)
    opened.settimeout(0)
    return opened


def split(listen: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8000` or `[::1]:8000`.

    Raises:
        InvalidConfig: it is neither.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidConfig(f"{listen!r} is no address such as 127.0.0.1:8000 or [::1]:8000", code="invalid_address")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether nothing outside this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class GatewayServer:
    """One process' sockets and application."""

    def __init__(
        self,
        gateway: Gateway,
        public: socket.socket,
        *,
        admin: socket.socket | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        grace_s: int = 120,
        ingress_secret: str = "",
        per_address: int = PER_ADDRESS,
        keyless_max: int = KEYLESS_MAX,
    ) -> None:
        """Wire it up.

        Args:
            gateway: the application.
            public: where clients come in.
            admin: where metrics are read; on loopback.
            cert: PEM file of the certificate clients see; None = plain HTTP, on loopback only.
            key: its key's file.
            grace_s: how long streams may take to finish once it goes down.
            ingress_secret: hear only an ingress that shows it; "" = hear clients.
            per_address: connections from one client's address at once, where clients are heard: an ingress counts its own.
            keyless_max: connections that have shown no key, of all addresses together.

        Raises:
            InvalidConfig: plain HTTP beyond loopback, metrics beyond loopback, or files that are no certificate.
        """
        if cert is None and not is_loopback(public.getsockname()[0]):
            raise InvalidConfig("keys would cross the network in the clear: give a certificate", code="no_tls")
        if admin is not None and not is_loopback(admin.getsockname()[0]):
            raise InvalidConfig("metrics are for this machine only: give a loopback address", code="admin_not_loopback")
        self._gateway = gateway
        app: Application = Behind(gateway, secret=ingress_secret) if ingress_secret else gateway
        keyless = max(1, per_address // KEYLESS_PART)
        bounds = Bounds(
            most=CONNECTIONS_MAX,
            per_address=per_address,
            keyless=keyless_max,
            keyless_per_address=keyless,
            address_part=ADDRESS_PART,
            account_part=ACCOUNT_PART,
        )
        try:
            tls = None if cert is None else (str(cert), None if key is None else str(key))
            inner = HttpServer(app, bounds=_BEHIND if ingress_secret else bounds, tls=tls, grace_s=grace_s)
            self._servers = [(inner, public)]
            if admin is not None:
                self._servers.append((HttpServer(Admin(gateway), bounds=_ADMIN, grace_s=1), admin))
        except (OSError, ssl.SSLError) as error:
            raise InvalidConfig(f"{cert} and {key} are no certificate and its key: {error}", code="no_tls") from None

    @property
    def started(self) -> bool:
        return all(server.started for server, _ in self._servers)

    async def serve(self) -> None:
        """Until told to stop, and until what was going on then is done."""
        raise_limit_of_files()
        public, *others = self._servers
        async with self._gateway.running():
            beside = [asyncio.create_task(server.serve(sockets=[opened])) for server, opened in others]
            await public[0].serve(sockets=[public[1]])
            if left := tuple(public[0].server_state.tasks):
                await asyncio.wait(left, timeout=LAST_WORDS_S)
            for server, _ in others:
                server.should_exit = True
            await asyncio.gather(*beside)

    def stop(self) -> None:
        """Take no more connections, let streams finish, end."""
        self._servers[0][0].should_exit = True


class Admin:
    """What the operator sees of one gateway: metrics, whether it is alive and ready, and its lines."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, kind, body = self._answer(scope["path"])
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, path: str) -> tuple[int, bytes, bytes]:
        match path:
            case "/metrics":
                return 200, b"text/plain; version=0.0.4; charset=utf-8", self._gateway.exposition()
            case "/health":
                return 200, b"text/plain", b"alive\n"
            case "/ready":
                ready = self._gateway.is_ready()
                return (200, b"text/plain", b"ready\n") if ready else (503, b"text/plain", b"the fabric is away\n")
            case "/lines":
                said: list[dict[str, Any]] = [line._asdict() for line in self._gateway.lines()]
                return 200, b"application/json", msgspec.json.encode(said)
            case _:
                return 404, b"text/plain", b"/metrics, /health, /ready or /lines\n"
