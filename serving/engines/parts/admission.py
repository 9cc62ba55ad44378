"""What stands before the engine's own application: who pays, and an answer that begins only when that is settled.

Raw ASGI. It holds the beginning of each answer back until the meter has admitted the call, so that a request without
tokens is answered by a real 402, on every surface and for streams too. It knows no engine.
"""

import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import msgspec

from fabric.errors import FabricError, InsufficientTokens, InvalidRequest, NotFound, Unavailable
from serving import calls
from serving.acceptor import KEY_SHOWN
from serving.engines.parts.charges import DATA, USAGE, costed, costed_line, said_in, stated
from serving.gateway.routes import ROUTES
from serving.limits import BODY_BYTES_MAX
from serving.metering.payer import TICKET, SignedPayer, ticket_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Afford = Callable[[SignedPayer], Awaitable[None]]

_OPEN_PATHS: Final = frozenset({"/health"})
_MODELS: Final = "/v1/models"
_SERVED: Final = frozenset(
    {(route.method, route.path) for route in ROUTES} | {("GET", "/metrics"), ("GET", "/metrics/")}
)
"""What is let through to the engine's application: what the gateway serves, and nothing else that vLLM has or will have."""
_OURS: Final = 500
_REFUSED: Final = 400
_START_AND_BODY: Final = 2
_TICKETS_MAX: Final = 8_192
_ERROR: Final = b'"error"'
_STREAM: Final = b"text/event-stream"
_ECHO: Final = b'"echo"'
_COMPLETIONS: Final = "/v1/completions"
_CHUNKED: Final = frozenset({_COMPLETIONS, "/v1/chat/completions"})
_DONE: Final = b"data: [DONE]"
_FINISHED: Final = b'"finish_reason":"'
_EVENT_END: Final = b"\n\n"
_BEAM: Final = b"use_beam_search"


class Admission:
    """An ASGI application around the engine's.

    Args:
        trust: the secret that gateways send.
        afford: raises where an account has nothing to spend; asked before a request makes any work.
        is_dead: whether the engine has ended: it answers nothing any more.
    """

    def __init__(
        self, app: App, *, trust: str, afford: Afford | None = None, is_dead: Callable[[], bool] = lambda: False
    ) -> None:
        assert trust, "a replica without a secret would be open to all"
        self._app, self._trust, self._afford, self._is_dead = app, trust, afford, is_dead
        self._tickets: OrderedDict[str, SignedPayer] = OrderedDict()
        """Of the last requests: what they cost may be asked for by whoever left before it was known."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in _OPEN_PATHS):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope["path"]
        try:
            ticket = ticket_of(scope["headers"], trust=self._trust)
            if KEY_SHOWN in scope:
                scope[KEY_SHOWN]()
            if path.startswith(calls.CALLS_PATH) and scope["method"] == "GET":
                await self._tell_charge(send, ticket, path.removeprefix(calls.CALLS_PATH))
                return
            if not is_served(scope["method"], path):
                raise InvalidRequest(f"nothing is served at {path[:100]}", code="not_found")
            body = await _body(receive)
            if self._afford is not None and makes_work(scope["method"], path):
                await self._afford(ticket)
            _refuse_beams(body)
            ticket.only_prompt = path == _COMPLETIONS and _wants_only_prompt(body)
        except FabricError as error:
            await refuse(send, error, path=path)
            return
        answer = _Answer(send, ticket, path=path, is_dead=self._is_dead)
        TICKET.set(ticket)
        if makes_work(scope["method"], path):
            self._tickets[ticket.call_id] = ticket
            if len(self._tickets) > _TICKETS_MAX:
                self._tickets.popitem(last=False)
        try:
            await self._app(scope, _again(body, receive), answer.send)
        except Exception:
            if not (await answer.refused() or await answer.broken()):
                raise

    async def _tell_charge(self, send: Send, asking: SignedPayer, call_id: str) -> None:
        found = self._tickets.get(call_id)
        if found is None or found.payer.account_id != asking.payer.account_id:
            raise NotFound(f"call {call_id[:100]} is not known here")
        body = msgspec.json.encode({"charged_uhs": str(found.charged_uhs) if found.is_booked else None})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def is_served(method: str, path: str) -> bool:
    """Whether a request gets to the engine's application."""
    return (method, path) in _SERVED or (method == "GET" and path.startswith(f"{_MODELS}/"))


def makes_work(method: str, path: str) -> bool:
    """Whether a request makes the engine's process work before a call is opened, or without one: a body is read, a chat is
    written out by its template, a prompt becomes tokens.
    """
    return method == "POST" and is_served(method, path)


class _Answer:
    """One answer on its way out."""

    def __init__(self, send: Send, ticket: SignedPayer, *, path: str, is_dead: Callable[[], bool]) -> None:
        self._send, self._ticket, self._path, self._is_dead = send, ticket, path, is_dead
        self._kept: list[Message] | None = []
        self._refused = False
        self._is_stream = False
        self._last = b""
        """An event with the end of an answer in it: kept back until what comes next is known."""

    async def send(self, message: Message) -> None:
        if self._refused:
            return
        if self._kept is None:
            await self._send(self._ended(message))
            return
        if await self.refused() or (message.get("status", 0) >= _OURS and await self.broken()):
            return
        self._kept.append(message)
        whole = message["type"] == "http.response.body" and not message.get("more_body", False)
        if whole or (self._ticket.decided and message["type"] == "http.response.body"):
            kept, self._kept = self._kept, None
            if whole and len(kept) == _START_AND_BODY:
                kept = self._whole(*kept)
            for each in kept:
                await self._send(self._begun(each) if each["type"] == "http.response.start" else self._ended(each))

    async def refused(self) -> bool:
        """Answer with the ticket's refusal, once, where the call was not admitted; whether it was not."""
        if self._refused:
            return True
        if self._kept is None or self._ticket.refusal is None or self._ticket.admitted:
            return False
        self._refused = True
        await refuse(self._send, self._ticket.refusal, path=self._path, call_id=self._ticket.call_id)
        return True

    async def broken(self) -> bool:
        """Answer with why the call could not go on, where that is no mistake of anybody's: what was made of it is charged;
        whether it was so, and nothing was said yet.
        """
        error = self._why_broken()
        if self._kept is None or error is None:
            return False
        self._refused = True
        charged_uhs = self._ticket.charged_uhs
        told = "what it had made until then is charged" if charged_uhs else "it is charged nothing"
        error = type(error)(f"{error.message.rstrip('.')}. As to this call, {told}", code=error.code, **error.facts)
        await refuse(self._send, error, path=self._path, call_id=self._ticket.call_id, charged_uhs=charged_uhs)
        return True

    def _why_broken(self) -> FabricError | None:
        return self._ticket.broke or (engine_ended() if self._is_dead() else None)

    @property
    def _is_booked(self) -> bool:
        """Whether all calls of the request have ended, so that what it costs is known."""
        return self._ticket.is_booked

    def _whole(self, start: Message, body: Message) -> list[Message]:
        """An answer in one piece, with what it costs in its usage."""
        if not self._is_booked or start["status"] >= _REFUSED or _is_stream(start):
            return [start, body]
        said = costed(body["body"], self._ticket)
        length = (b"content-length", str(len(said)).encode())
        headers = [each for each in start.get("headers", ()) if each[0].lower() != b"content-length"]
        return [{**start, "headers": [*headers, length]}, {**body, "body": said}]

    def _begun(self, message: Message) -> Message:
        headers = [*message.get("headers", ()), (calls.CALL.encode(), self._ticket.call_id.encode())]
        self._is_stream = _is_stream(message)
        if self._is_booked and not self._is_stream:
            headers.append((calls.CHARGED_UHS.encode(), str(self._ticket.charged_uhs).encode()))
        if self._ticket.left_uhs is not None:
            headers.append((calls.FREE_UHS.encode(), str(self._ticket.left_uhs).encode()))
        return {**message, "headers": headers}

    def _ended(self, message: Message) -> Message:
        """With what was booked beside the usage of a stream, and the error event that strict clients asked for, before the
        end of one that was cut.
        """
        body = message.get("body", b"")
        if self._is_stream and _ERROR in body and (error := self._why_broken()) is not None:
            body = b"\n".join(_retold(line, error, path=self._path) for line in body.split(b"\n"))
            message = {**message, "body": body}
        if self._is_stream and self._path in _CHUNKED:
            body = self._with_charge(body, is_last=not message.get("more_body", False))
            message = {**message, "body": body}
        if self._is_stream and USAGE in body and self._is_booked:
            body = b"\n".join(stated(line, self._ticket) for line in body.split(b"\n"))
            message = {**message, "body": body}
        if not (self._ticket.cut and self._ticket.strict and b"data: [DONE]" in body):
            return message
        error = InsufficientTokens(
            "a limit of this key leaves no more compute tokens: use one with a higher limit to go on, or wait until it resets"
            if self._ticket.within_key
            else "the account has no more compute tokens: top up to go on"
        )
        event = b"data: " + json.dumps(error_document(error, path=self._path)).encode() + b"\n\n"
        return {**message, "body": body.replace(_DONE, event + _DONE)}

    def _with_charge(self, body: bytes, *, is_last: bool) -> bytes:
        """Events of a stream in chunks. One with the end of an answer is kept until the next comes: if that is the stream's
        end, no chunk with the usage was asked for, and it says itself what was booked.
        """
        if not self._last and _FINISHED not in body:
            return body
        out = []
        for event in body.split(_EVENT_END):
            if event.startswith(_DONE) and self._last and self._is_booked:
                out.append(costed_line(self._last.removesuffix(_EVENT_END), self._ticket) + _EVENT_END)
            elif event:
                out.append(self._last)
            self._last = event + _EVENT_END if _FINISHED in event else self._last if not event else b""
            if event and not self._last:
                out.append(event + _EVENT_END)
        if is_last:
            out.append(self._last)
            self._last = b""
        return b"".join(out)


def engine_ended() -> Unavailable:
    """What is told of calls that an engine's end cuts off, or comes before."""
    return Unavailable(
        "the engine that worked on this has ended, and another takes its place: send the request again",
        code="engine_ended",
    )


def _retold(line: bytes, error: FabricError, *, path: str) -> bytes:
    """A line of a stream; the engine's word that it can't go on is put as what it is."""
    if not line.startswith(DATA) or not isinstance(said_in(line).get("error"), dict):
        return line
    return DATA + json.dumps(error_document(error, path=path)).encode()


def _is_stream(start: Message) -> bool:
    return any(name == b"content-type" and _STREAM in value for name, value in start.get("headers", ()))


async def _body(receive: Receive) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise InvalidRequest(f"the body is larger than {BODY_BYTES_MAX} bytes: send less", code="body_too_large")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body that was read, and then what the client does next."""
    given = False

    async def once_more() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once_more


def _refuse_beams(body: bytes) -> None:
    """One beam search is many calls of the engine, most of which its user never sees: they could not be billed fairly."""
    if _BEAM not in body:
        return
    try:
        document = json.loads(body)
    except ValueError:
        return  # the application says what is wrong with it
    if isinstance(document, dict) and document.get("use_beam_search"):
        raise InvalidRequest(
            "beam search is not offered: set use_beam_search to false, or ask for several answers with n",
            code="unsupported_parameter",
            param="use_beam_search",
        )


def _wants_only_prompt(body: bytes) -> bool:
    """Whether nothing is to be written: the engine makes a token all the same, which nobody gets."""
    if _ECHO not in body:
        return False
    try:
        document = json.loads(body)
    except ValueError:
        return False
    return isinstance(document, dict) and bool(document.get("echo")) and document.get("max_tokens") == 0


async def refuse(send: Send, error: FabricError, *, path: str, call_id: str = "", charged_uhs: int = 0) -> None:
    """The whole answer that an error is, on the surface that was asked."""
    body = json.dumps(error_document(error, path=path)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if call_id:
        headers += [(calls.CALL.encode(), call_id.encode()), (calls.CHARGED_UHS.encode(), b"%d" % charged_uhs)]
    if isinstance(error, Unavailable):
        headers.append((b"retry-after", b"1"))
    else:
        headers.append((b"x-should-retry", b"false"))
    await send({"type": "http.response.start", "status": _status(error), "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _status(error: FabricError) -> int:
    return {"not_found": 404, "body_too_large": 413}.get(error.code, error.http_status)


def error_document(error: FabricError, *, path: str) -> dict[str, Any]:
    """The error as OpenAI's clients expect it, or Anthropic's on their surface; our facts beside it."""
    short = isinstance(error, InsufficientTokens)
    if path.startswith("/v1/messages"):
        kind = "billing_error" if short else "api_error" if error.http_status >= _OURS else "invalid_request_error"
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    kind = "insufficient_quota" if short else "server_error" if error.http_status >= _OURS else "invalid_request_error"
    code = "insufficient_quota" if short else error.code
    param = error.facts.get("param")
    return {"error": {"message": error.message, "type": kind, "param": param, "code": code, "fabric": error.facts}}
