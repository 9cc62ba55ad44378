"""A gateway's sockets: the public one, which several processes share, and the operator's own, on loopback.

Around uvicorn: bounds on what may arrive before a request is one, TLS wherever the socket is more than loopback, and an
orderly end, in which no new connection is taken, streams finish, and what doesn't finish in time hears of it.
"""

import asyncio
import contextlib
import ipaddress
import resource
import secrets
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from fabric.api.connections import Connections
from fabric.errors import InvalidConfig, Unavailable
from serving.gateway.app import Gateway
from serving.gateway.behind import Application, Behind
from serving.gateway.exchange import ABORT, TOGETHER, WATCH, Receive, Scope, Send

HEADERS_S: Final = 10.0
"""How long a request's headers may take to arrive."""
HEADER_BYTES_MAX: Final = 65_536
CONNECTIONS_MAX: Final = 16_384
PER_ADDRESS: Final = 4_096
KEYLESS_MAX: Final = 4_096
KEEP_ALIVE_S: Final = 75
LAST_WORDS_S: Final = 2.0
_BACKLOG: Final = 2_048
_JOINED_BYTES_MAX: Final = 64 * 1024
"""What is put together before it is written: beyond, copying costs more than another write."""


class Held:
    """A connection's transport while an answer is written whose head and body leave in one write."""

    __slots__ = ("_pieces", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._pieces.append(data)

    def let_go(self) -> asyncio.Transport:
        """Write what is held; the transport itself."""
        pieces, self._pieces = self._pieces, []
        if sum(map(len, pieces)) <= _JOINED_BYTES_MAX:
            pieces = [b"".join(pieces)]
        for piece in pieces:
            self._transport.write(piece)
        return self._transport

    def close(self) -> None:
        self.let_go().close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


def _hold(cycle: RequestResponseCycle, *, begins: bool) -> None:
    """What is written of an answer from its begin to its end leaves at once."""
    if begins:
        cycle.transport = Held(cycle.transport)  # type: ignore[assignment]
    elif isinstance(cycle.transport, Held):
        cycle.transport = cycle.transport.let_go()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's own, but for what it leaves unbounded: the size of headers, and the time they take. What comes after a body
    in pieces is no header: uvicorn would add it to those that the ingress has looked through.

    It tells of a client that leaves without a task that waits for it, and writes the head and the body of an answer at once.
    """

    _timer: asyncio.TimerHandle | None = None
    _trails = False
    _header_bytes = 0
    _is_lost = False
    _gone: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)
        self._is_lost = True
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()

    def watch(self, gone: Callable[[], None]) -> None:
        """Call back when the client leaves before its answer is whole. The request must have been read."""
        if self._is_lost:
            gone()
        else:
            self._gone = gone
            self.flow.resume_reading()  # what isn't read tells of no end

    def on_response_complete(self) -> None:
        self._gone = None
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._timer is not None:  # headers are still to come
            self._header_bytes += len(data)
            if self._header_bytes > HEADER_BYTES_MAX and not self.transport.is_closing():
                self._refuse(431, "Request Header Fields Too Large", "headers_too_large", "the headers are too large")

    def send_400_response(self, msg: str) -> None:
        """What is no request at all."""
        self._refuse(400, "Bad Request", "invalid_http", msg)

    def _refuse(self, status: int, words: str, code: str, message: str) -> None:
        """Before the application hears of it: with an id all the same, for whoever looks for it."""
        body = msgspec.json.encode(
            {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
        )
        call_id = f"c{secrets.token_hex(12)}"
        head = f"HTTP/1.1 {status} {words}\r\nx-request-id: {call_id}\r\nx-fabric-call: {call_id}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._trails = False
        own: Scope = self.scope  # type: ignore[assignment]
        own[ABORT], own[WATCH] = self.transport.abort, self.watch
        if self._timer is None:
            self._arm()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._trails:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._disarm()
        self._trails = True
        super().on_headers_complete()
        own: Scope = self.scope  # type: ignore[assignment]
        own[TOGETHER] = partial(_hold, self.cycle)

    def _arm(self) -> None:
        self._header_bytes = 0
        self._timer = self.loop.call_later(HEADERS_S, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self.transport.close()


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs it: uvicorn would raise them again at its end, before we are done."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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

        Raises:
            InvalidConfig: plain HTTP beyond loopback, metrics beyond loopback, or files that are no certificate.
        """
        if cert is None and not is_loopback(public.getsockname()[0]):
            raise InvalidConfig("keys would cross the network in the clear: give a certificate", code="no_tls")
        if admin is not None and not is_loopback(admin.getsockname()[0]):
            raise InvalidConfig("metrics are for this machine only: give a loopback address", code="admin_not_loopback")
        self._gateway = gateway
        if not ingress_secret:
            gateway.connections = Connections(public.getsockname()[1], per_address=per_address, keyless_max=KEYLESS_MAX)
        app: Application = Behind(gateway, secret=ingress_secret) if ingress_secret else gateway
        try:
            self._servers = [(_Server(_config(app, cert, key, grace_s=grace_s)), public)]
            if admin is not None:
                self._servers.append((_Server(_config(Admin(gateway), None, None, grace_s=1)), admin))
        except (OSError, ssl.SSLError) as error:
            raise InvalidConfig(f"{cert} and {key} are no certificate and its key: {error}", code="no_tls") from None

    @property
    def started(self) -> bool:
        return all(server.started for server, _ in self._servers)

    async def serve(self) -> None:
        """Until told to stop, and until what was going on then is done."""
        _raise_limit_of_files()
        public, *others = self._servers
        async with self._gateway.running():
            beside = [asyncio.create_task(server.serve(sockets=[opened])) for server, opened in others]
            connections = self._gateway.connections
            watching = None if connections is None else asyncio.create_task(connections.watch())
            await public[0].serve(sockets=[public[1]])
            if left := tuple(public[0].server_state.tasks):
                await asyncio.wait(left, timeout=LAST_WORDS_S)
            if watching is not None:
                watching.cancel()
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


def _config(app: Any, cert: Path | None, key: Path | None, *, grace_s: int) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=grace_s,
        limit_concurrency=CONNECTIONS_MAX,
        ssl_certfile=cert,
        ssl_keyfile=key,
    )
    config.load()
    return config


def _raise_limit_of_files() -> None:
    """Each stream is two sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
