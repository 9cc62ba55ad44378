"""HTTP at a socket: around uvicorn, bounds on what may arrive before a request is one, and on who may be connected.

What uvicorn leaves unbounded: connections (`serving.acceptor`), the size of headers and the time they take, and requests that
are sent before earlier ones are answered. It knows no application.
"""

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any, Final

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.acceptor import KEY_SHOWN, Acceptor, Bounds, Served, files_for

Scope = MutableMapping[str, Any]

ABORT: Final = "fabric.abort"
"""In the scope: cuts the connection at once, whatever is still to be written."""
WATCH: Final = "fabric.watch"
"""In the scope: calls back when the client leaves before its answer is whole."""
TOGETHER: Final = "fabric.together"
"""In the scope: holds what is written of an answer, until all of it is there."""

HEADERS_S: Final = 10.0
"""How long a request's headers may take to arrive."""
HEADER_BYTES_MAX: Final = 65_536
PIPELINED_MAX: Final = 32
"""Requests of one connection that wait until an earlier one is answered."""
KEEP_ALIVE_S: Final = 75
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


class BoundedProtocol(HttpToolsProtocol, Served):
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
        if self.guest is not None:
            self.guest.transport = transport
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)
        self.pipeline.clear()
        if self.guest is not None:
            self.guest.gone()
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
        """What is no request at all, or one too many."""
        if len(self.pipeline) >= PIPELINED_MAX:
            self.transport.abort()  # a no would stand in the midst of an answer
            return
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
        if len(self.pipeline) >= PIPELINED_MAX:
            raise OverflowError  # the parser ends, and says that it did
        super().on_message_begin()
        self._trails = False
        own: Scope = self.scope  # type: ignore[assignment]
        own[ABORT], own[WATCH] = self.transport.abort, self.watch
        if self.guest is not None:
            own[KEY_SHOWN] = self.guest.showed_key
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


class HttpServer(uvicorn.Server):
    """An application at a socket. It leaves signals to whoever runs it: uvicorn would raise them again at its end, before we
    are done.
    """

    def __init__(
        self, app: Any, *, bounds: Bounds, tls: tuple[str, str | None] | None = None, grace_s: int, **more: Any
    ) -> None:
        """It isn't started yet: `serve(sockets=[...])` does.

        Args:
            app: the ASGI application.
            bounds: how many may be connected to one socket.
            tls: PEM files of the certificate and its key; None = plain.
            grace_s: how long answers may take to finish once it goes down.
            more: of uvicorn's configuration.

        Raises:
            OSError: the files are no certificate and its key.
        """
        certificate, key = tls or (None, None)
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            **{"lifespan": "off", "log_config": None, "loop": "uvloop", **more},
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=grace_s,
            limit_concurrency=bounds.most,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        config.load()
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a line for whatever a stranger sends
        super().__init__(config)
        self._bounds = bounds
        self._acceptors: list[Acceptor] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections, as many as there may be."""
        await super().startup(sockets=[])
        bounds = self._bounds.within(files_for(self._bounds.most))
        for listening in sockets or ():
            acceptor = Acceptor(listening, self._protocol, tls=self.config.ssl, bounds=bounds)
            acceptor.open()
            self._acceptors.append(acceptor)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more of them, and let answers finish."""
        for acceptor in self._acceptors:
            acceptor.close()
        await super().shutdown(sockets=sockets)

    def _protocol(self) -> BoundedProtocol:
        return BoundedProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
