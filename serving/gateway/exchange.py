"""One request and its answer, between the ASGI server and the gateway: bounded reading, orderly refusing, leaving early.

A request in hand can be *interrupted* from outside, when its client leaves, its replica dies or its reader stalls: whatever
it waits for then ends at once, with the reason.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from fabric.errors import FabricError, Unavailable
from serving.calls import FREE_UHS
from serving.gateway import refusals
from serving.gateway.refusals import JSON, Headers, TooLarge, TooSlow
from serving.gateway.routes import Route
from serving.http_server import ABORT, TOGETHER, WATCH, Scope
from serving.limits import BODY_BYTES_MAX

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODIES_BYTES_MAX: Final = 256 * 1024 * 1024
"""Of all bodies that are being read at one gateway."""
BODY_IDLE_S: Final = 10.0
"""How long the next piece of a body may take."""
BODY_S: Final = 60.0
"""How long all of it may take."""
_UNREAD_BYTES_MAX: Final = 65_536
_THROWN_AWAY_BYTES_MAX: Final = 32 * 1024 * 1024
_THROW_AWAY_S: Final = 5.0
_FREE: Final = FREE_UHS.encode()
CLIENT_GONE: Final = 499
"""What nginx calls it; nobody is there to hear it."""


class ClientGone(Exception):
    """The client closed the connection."""


class ReaderStalled(Exception):
    """The client is there, but reads nothing."""


class Reading:
    """How much of bodies is in memory, over all requests of a gateway."""

    def __init__(self) -> None:
        self.bytes = 0


class Exchange:
    """One request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, call_id: str) -> None:
        self.scope = scope
        self.call_id = call_id
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.route: Route | None = None
        self.started_at = time.monotonic()
        self.status = 0
        self.ended = "whole"
        """How, in a word: for the log."""
        self.begun = False
        """Whether the answer's status is out: a refusal now is an event, or a broken connection."""
        self.done = False
        self.showed_key = False
        self.stays = False
        """Whether it goes on without its client."""
        self.sending_since = 0.0
        """Since when a piece of the answer waits for its reader; 0 = none does."""
        self.answer_headers: Headers = [(b"x-fabric-call", call_id.encode()), (b"x-request-id", call_id.encode())]
        self.work: asyncio.Task[Any] | None = asyncio.current_task()
        self._receive = receive
        self._send = send
        self._read = False
        self._reason: Exception | None = None

    @property
    def anthropic(self) -> bool:
        """Whose protocol a no is said in."""
        return self.route is not None and self.route.surface == "anthropic"

    # -- in --------------------------------------------------------------------------------------------------------------

    async def body(self, reading: Reading, *, most: int = BODY_BYTES_MAX) -> bytes:
        """All of the request's body.

        Raises:
            TooLarge: it is beyond so many bytes.
            TooSlow: it doesn't come in time.
            Unavailable: too many others are being read.
            ClientGone: it won't come.
        """
        length = self.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise _too_large(int(length))
        message = await self._next(BODY_IDLE_S)
        self._read = not message.get("more_body")
        if not message.get("more_body"):
            body: bytes = message.get("body", b"")
            return body if len(body) <= most else _raise(_too_large(len(body)))
        pieces, size = [message.get("body", b"")], len(message.get("body", b""))
        reading.bytes += size
        deadline = self.started_at + BODY_S
        try:
            while message.get("more_body"):
                if reading.bytes > BODIES_BYTES_MAX:
                    raise Unavailable("too many large requests at once: try again in 1 s", code="busy", retry_after_s=1)
                message = await self._next(min(BODY_IDLE_S, deadline - time.monotonic()))
                piece = message.get("body", b"")
                pieces.append(piece)
                size += len(piece)
                reading.bytes += len(piece)
                if size > most:
                    raise _too_large(size)
            self._read = True
            return b"".join(pieces)
        finally:
            reading.bytes -= size

    async def _next(self, within_s: float) -> Message:
        late = asyncio.get_running_loop().call_later(within_s, self._body_is_late)
        try:
            message = await self._receive()
        finally:
            late.cancel()
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    def _body_is_late(self) -> None:
        self.interrupt(
            TooSlow(f"the body did not come: each piece may take {BODY_IDLE_S:.0f} s, all of it {BODY_S:.0f} s")
        )

    # -- out -------------------------------------------------------------------------------------------------------------

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer in one piece."""
        together = self.scope[TOGETHER]
        together(begins=True)
        try:
            await self.begin(status, [*headers, (b"content-length", b"%d" % len(body))])
            await self.more(body, last=True)
        finally:
            together(begins=False)

    async def begin(self, status: int, headers: Headers) -> None:
        """Say the status and the headers."""
        self.begun, self.status = True, status
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self.answer_headers]})

    async def more(self, piece: bytes, *, last: bool = False) -> None:
        """Send a piece; waits while the reader is slow, so that no more than a buffer piles up."""
        self.sending_since = time.monotonic()
        await self._send({"type": "http.response.body", "body": piece, "more_body": not last})
        self.sending_since = 0.0
        self.done = last

    def tell_free(self, free_uhs: int) -> None:
        """Say in the answer's headers what the account can still spend; the last word counts."""
        told = [header for header in self.answer_headers if header[0] != _FREE]
        self.answer_headers = [*told, (_FREE, str(free_uhs).encode())]

    async def refuse(self, error: FabricError) -> None:
        """Say no: as a body where nothing was said yet, else as an event, and the end."""
        if self.done:
            return
        if not self.begun:
            headers = [JSON, *refusals.headers_of(error)]
            late = isinstance(error, TooSlow)
            if late or not self._short():
                if not late:
                    await self._let_it_finish()
                headers.append((b"connection", b"close"))
            await self.answer(error.http_status, headers, refusals.encode(error, anthropic=self.anthropic))
        else:
            surface = self.route.surface if self.route is not None else "chat"
            await self.more(refusals.as_event(error, surface), last=True)

    def _short(self) -> bool:
        """Whether the server can be left to throw away what wasn't read of the body."""
        length = self.headers.get(b"content-length", b"0" if self.scope["method"] == "GET" else b"")
        return self._read or (length.isdigit() and int(length) <= _UNREAD_BYTES_MAX)

    async def _let_it_finish(self) -> None:
        """Throw away some more of a long body: many clients read no answer before they have sent all."""
        left = _THROWN_AWAY_BYTES_MAX
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_THROW_AWAY_S):
                while left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body"):
                        return

    # -- leaving early ---------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """From here on, a client that leaves interrupts the work. The body must have been read."""
        self.scope[WATCH](self._client_left)

    def _client_left(self) -> None:
        if not self.stays:
            self.interrupt(ClientGone())

    def interrupt(self, reason: Exception) -> None:
        """End what the request waits for, with a reason."""
        if self._reason is None and not self.done and self.work is not None:
            self._reason = reason
            self.work.cancel()

    def reason(self) -> Exception | None:
        """Why the work was interrupted; None if it was the gateway itself that ended it. Asked once, on cancellation."""
        if self._reason is not None and self.work is not None:
            self.work.uncancel()
        return self._reason

    def leave(self, reason: Exception) -> None:
        """The client did, or was made to."""
        self.status, self.ended = CLIENT_GONE, "reader_stalled" if isinstance(reason, ReaderStalled) else "client_gone"

    def cut(self) -> None:
        """Cut the connection of a client that reads nothing: it can't be told anything either."""
        self.interrupt(ReaderStalled())
        if ABORT in self.scope:
            self.scope[ABORT]()

    def close(self) -> None:
        """No more of this."""
        self.work = None


def _too_large(size: int) -> TooLarge:
    return TooLarge(
        f"the body has {size} bytes or more, at most {BODY_BYTES_MAX} may come: shorten the prompt",
        bytes=size,
        limit=BODY_BYTES_MAX,
    )


def _raise(error: Exception) -> bytes:
    raise error
