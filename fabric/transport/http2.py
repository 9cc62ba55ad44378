"""gRPC calls over HTTP/2 in plain Python, on h2: for clients on machines without grpcio.

A thread of its own runs an event loop for all channels of the process; callers' threads hand it calls and read what comes
back from a queue each. A channel keeps one connection, made when it is needed, and anew after it was lost. What a call's
failure means is told as gRPC's library tells it; nothing is tried again here. The protocol: grpc/doc/PROTOCOL-HTTP2.md.
"""

import asyncio
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from fabric.transport.choice import MESSAGE_BYTES_MAX, written
from fabric.transport.connection import Connection
from fabric.transport.exchange import Exchange, Headers, encoded
from fabric.transport.failure import CallFailed, Metadata, Status
from fabric.transport.target import Proxy, Target
from fabric.transport.tunnel import tunnel
from fabric.wire import keepalive

Serialize = Callable[[Any], bytes]
Deserialize = Callable[[bytes], Any]

CONNECT_S: Final = keepalive.CONNECT_MS / 1_000
_CLOSE_S: Final = 2.0
_USER_AGENT: Final = "token-fabric-python"


class Channel:
    """A way to one door. Threads may share it."""

    def __init__(self, target: Target, *, pem: bytes | None, proxy: Proxy | None) -> None:
        """Nothing is connected yet."""
        self._target = target
        self._proxy = proxy
        self._trust = _trusting(pem)
        self._loop = _loop()
        self._pid = os.getpid()
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None

    def unary_unary(
        self, path: str, request_serializer: Serialize, response_deserializer: Deserialize
    ) -> Callable[..., Any]:
        """A function that asks once and answers once."""

        def call(request: Any, *, metadata: Metadata = (), timeout: float | None = None) -> Any:
            return self._only(path, [request_serializer(request)], metadata, timeout, response_deserializer)

        return call

    def stream_unary(
        self, path: str, request_serializer: Serialize, response_deserializer: Deserialize
    ) -> Callable[..., Any]:
        """A function that takes an iterator of requests, and answers once."""

        def call(requests: Iterable[Any], *, metadata: Metadata = (), timeout: float | None = None) -> Any:
            return self._only(path, map(request_serializer, requests), metadata, timeout, response_deserializer)

        return call

    def unary_stream(
        self, path: str, request_serializer: Serialize, response_deserializer: Deserialize
    ) -> Callable[..., "Answers"]:
        """A function that asks once, and answers an iterator."""

        def call(request: Any, *, metadata: Metadata = (), timeout: float | None = None) -> "Answers":
            return Answers(self._begin(path, [request_serializer(request)], metadata, timeout), response_deserializer)

        return call

    def close(self) -> None:
        """End it, with all its calls."""
        if self._pid == os.getpid() and not self._loop.is_closed():
            closed = threading.Event()
            self._loop.call_soon_threadsafe(self._closed, closed)
            closed.wait(_CLOSE_S)

    def _closed(self, closed: threading.Event) -> None:
        if self._connection is not None:
            self._connection.lose("the channel was closed", Status.CANCELLED)
        closed.set()

    def _only(
        self,
        path: str,
        messages: Iterable[bytes],
        metadata: Metadata,
        timeout_s: float | None,
        deserialize: Deserialize,
    ) -> Any:
        answers = Answers(self._begin(path, messages, metadata, timeout_s), deserialize)
        try:
            found = list(answers)
        except BaseException:
            answers.cancel()
            raise
        if len(found) != 1:
            raise CallFailed(Status.INTERNAL, f"one answer was due, and there were {len(found)}")
        return found[0]

    def _begin(self, path: str, messages: Iterable[bytes], metadata: Metadata, timeout_s: float | None) -> "_Running":
        if self._pid != os.getpid():  # forked: the thread and the connection stayed behind
            self._loop, self._pid, self._connection, self._connecting = _loop(), os.getpid(), None, None
        running = _Running(self, Exchange(messages, most_bytes=MESSAGE_BYTES_MAX), timeout_s)
        headers = [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":path", path.encode()),
            (b":authority", written(self._target).encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", _USER_AGENT.encode()),
            *([(b"grpc-timeout", f"{max(1, int(timeout_s * 1000))}m".encode())] if timeout_s is not None else []),
            *encoded(metadata),
        ]
        self._loop.call_soon_threadsafe(running.begin, headers)
        return running

    async def connected(self) -> Connection:
        """The connection, made where there is none that is good; several that want it share the making."""
        if self._connection is not None and self._connection.is_good:
            return self._connection
        if self._connecting is None or self._connecting.done():
            self._connecting = self._loop.create_task(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> Connection:
        def made() -> Connection:
            return Connection(self._loop, keepalive_s=keepalive.PING_MS / 1_000)

        try:
            self._connection = await asyncio.wait_for(self._connect_by(made), CONNECT_S)
        except (asyncio.TimeoutError, TimeoutError):  # two things before Python 3.11
            raise CallFailed(
                Status.UNAVAILABLE, f"no connection: handshake timed out after {CONNECT_S:.0f} s"
            ) from None
        except ssl.SSLCertVerificationError as error:
            raise CallFailed(Status.UNAVAILABLE, f"certificate verify failed: {error.verify_message}") from None
        except OSError as error:
            raise CallFailed(Status.UNAVAILABLE, f"failed to connect: {error}") from None
        return self._connection

    async def _connect_by(self, made: Callable[[], Connection]) -> Connection:
        host, port = self._target
        if self._proxy is None:
            _, connection = await self._loop.create_connection(made, host, port, ssl=self._trust, server_hostname=host)
            return connection
        way = await asyncio.to_thread(tunnel, self._proxy, self._target, timeout_s=CONNECT_S)
        _, connection = await self._loop.create_connection(made, sock=way, ssl=self._trust, server_hostname=host)
        return connection


class _Running:
    """A call between the caller's thread and the loop's."""

    def __init__(self, channel: Channel, exchange: Exchange, timeout_s: float | None) -> None:
        self._channel = channel
        self._loop = channel._loop  # noqa: SLF001  # the two are one thing in two classes
        self.exchange = exchange
        self._until = None if timeout_s is None else time.monotonic() + timeout_s
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, headers: Headers) -> None:
        """On the loop's thread."""
        if self._until is not None:
            self._timer = self._loop.call_later(max(0.0, self._until - time.monotonic()), self._expire)
        self._task = self._loop.create_task(self._perform(headers))

    async def _perform(self, headers: Headers) -> None:
        try:
            self._connection = await self._channel.connected()
            await self._connection.perform(self.exchange, headers)
        except CallFailed as failure:
            self.exchange.end(failure)
        except Exception as error:  # noqa: BLE001  # whoever waits is told, whatever it was
            self.exchange.end(CallFailed(Status.INTERNAL, f"{type(error).__name__}: {error}"))

    def _expire(self) -> None:
        self._give_up(CallFailed(Status.DEADLINE_EXCEEDED, "no answer in time"))

    def cancel(self) -> None:
        """From any thread."""
        if not (self.exchange.ended or self._loop.is_closed()):
            self._loop.call_soon_threadsafe(self._give_up, CallFailed(Status.CANCELLED, "the call was cancelled"))

    def was_read(self, length: int) -> None:
        self._loop.call_soon_threadsafe(self._read, length)

    def _read(self, length: int) -> None:
        if self._connection is not None:
            self._connection.was_read(self.exchange, length)

    def done(self) -> None:
        """The caller knows its end: no deadline is waited for."""
        if self._timer is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._timer.cancel)

    def _give_up(self, failure: CallFailed) -> None:
        if self.exchange.ended:
            return
        self.exchange.end(failure)
        if self._connection is not None:
            self._connection.give_up(self.exchange)
        if self._task is not None:
            self._task.cancel()


class Answers(Iterator[Any]):
    """What a call answers, as it comes."""

    def __init__(self, running: _Running, deserialize: Deserialize) -> None:
        self._running = running
        self._deserialize = deserialize

    def __next__(self) -> Any:
        try:
            message = self._running.exchange.take(self._running.was_read)
        except CallFailed:
            self._running.done()
            raise
        if message is None:
            self._running.done()
            raise StopIteration
        return self._deserialize(message)

    def cancel(self) -> None:
        """End it. From any thread."""
        self._running.cancel()

    def __del__(self) -> None:
        self._running.cancel()


def _trusting(pem: bytes | None) -> ssl.SSLContext:
    trust = ssl.create_default_context() if pem is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if pem is not None:
        trust.load_verify_locations(cadata=pem.decode("ascii", errors="replace"))
    trust.minimum_version = ssl.TLSVersion.TLSv1_2
    trust.set_alpn_protocols(["h2"])
    return trust


class _Loops:
    """The loop of this process, which a fork has to make anew."""

    lock = threading.Lock()
    pid = 0
    loop: asyncio.AbstractEventLoop


def _loop() -> asyncio.AbstractEventLoop:
    with _Loops.lock:
        if _Loops.pid != os.getpid():
            _Loops.loop = asyncio.SelectorEventLoop()
            _Loops.pid = os.getpid()
            threading.Thread(target=_Loops.loop.run_forever, name="fabric-http2", daemon=True).start()
        return _Loops.loop
