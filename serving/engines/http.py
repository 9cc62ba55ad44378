"""The second meter: for engines that aren't ours to open, over HTTP alone.

It stands where a replica's own application stands (behind `serving.engines.admission`) and passes OpenAI's chat and completions on
to an engine that reports usage in every chunk (`continuous_usage_stats`). A chunk is handed on when it is paid for; one
that isn't ends the stream, and the engine is told to stop by the request's id (`/inference/v1/abort_requests`). Where
nothing streams, the engine is only asked for what is paid. What it can't see in time it doesn't offer: other surfaces,
and several choices in one stream.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from fabric.errors import FabricError, InvalidRequest, NotFound, Unavailable
from serving.calls import Ended
from serving.metering.meter import Meter
from serving.metering.payer import TICKET, SignedPayer

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_PREFIX: Final = {"/v1/chat/completions": "chatcmpl", "/v1/completions": "cmpl"}
_LINE_MAX: Final = 1 << 20


class ForeignEngine:
    """An ASGI application before an engine that is reached by URL. Wrap it in `serving.engines.admission.Admission`.

    Args:
        url: of the engine, without a path.
        max_context: LLM tokens of a prompt and its answer.
    """

    def __init__(self, url: str, meter: Meter, *, max_context: int) -> None:
        self.meter = meter
        self._url, self._max_context = url.rstrip("/"), max_context
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        ticket = TICKET.get()
        if ticket is None or scope["type"] != "http":
            return
        try:
            await self._serve(scope["path"], ticket, receive, send)
        except FabricError as error:
            ticket.refusal = ticket.refusal or error
            await send({"type": "http.response.body", "body": b""})

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _serve(self, path: str, ticket: SignedPayer, receive: Receive, send: Send) -> None:
        if path not in _PREFIX:
            raise NotFound(f"{path[:100]} is not offered for this model", code="not_found")
        body = _document((await receive()).get("body", b""))
        body["cache_salt"] = ticket.salt
        choices, streams = int(body.get("n") or 1), bool(body.get("stream"))
        if streams and choices > 1:
            raise InvalidRequest("several choices are offered without stream only", code="unsupported_parameter")
        prompt = await self._prompt_tokens(path, body)
        wants = min(_wanted(body) or self._max_context - prompt, self._max_context - prompt)
        call_id = ticket.next_call_id()
        await self.meter.open(
            call_id, payer=ticket.payer, key_id=ticket.key_id, prompt_tokens=prompt, wants=max(1, wants) * choices
        )
        ticket.admitted += 1
        ticket.opened += 1
        ticket.left_uhs = self.meter.book.left_uhs(ticket.payer)
        call = _Call(self, path, body, ticket, call_id, wants=max(1, wants), choices=choices)
        await (call.stream(send) if streams else call.whole(send))

    async def _prompt_tokens(self, path: str, body: dict[str, Any]) -> int:
        """Exactly, by the engine's own tokenizer."""
        names = ("model", "messages", "tools", "chat_template_kwargs") if "chat" in path else ("model", "prompt")
        async with self.post("/tokenize", {name: body[name] for name in names if name in body}) as answer:
            said = await answer.json()
        count = said.get("count")
        if not isinstance(count, int):
            raise InvalidRequest(f"the engine can't count this prompt: {str(said)[:300]}", code="invalid_prompt")
        if count >= self._max_context:
            raise InvalidRequest(
                f"the prompt has {count} tokens, the context {self._max_context}: shorten it", code="context_exceeded"
            )
        return count

    @contextlib.asynccontextmanager
    async def post(
        self, path: str, body: dict[str, Any], *, headers: dict[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request to the engine.

        Raises:
            Unavailable: it can't be reached (code `engine_unreachable`).
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5), read_bufsize=_LINE_MAX
            )
        try:
            async with self._session.post(self._url + path, json=body, headers=headers) as answer:
                yield answer
        except aiohttp.ClientError as error:
            raise Unavailable(f"the engine can't be reached: {error}", code="engine_unreachable") from error


@dataclass(slots=True)
class _Call:
    """One call on its way through a foreign engine."""

    engine: ForeignEngine
    path: str
    body: dict[str, Any]
    ticket: SignedPayer
    call_id: str
    wants: int
    choices: int
    ended: Ended = "error"

    async def whole(self, send: Send) -> None:
        """Ask for no more than is paid, after asking the ledger for all of it."""
        meter = self.engine.meter
        try:
            wanted = self.wants * self.choices
            paid = await meter.extend(self.call_id, completion=wanted, cached=0)
            meter.advance(self.call_id, completion=0, cached=0)
            each = min(self.wants, paid // self.choices)
            if each == 0:
                raise Unavailable("fewer tokens are paid than choices are asked for", code="insufficient_tokens")
            asked = {**self.body, **dict.fromkeys(_limit_names(self.body), each)}
            async with self.engine.post(self.path, asked, headers=self._headers()) as answer:
                said = await answer.json()
                status = answer.status
            usage = said.get("usage") or {}
            meter.advance(self.call_id, completion=usage.get("completion_tokens", 0), cached=_cached(usage))
            reasons = {choice.get("finish_reason") for choice in said.get("choices", ())}
            short = each < self.wants and "length" in reasons
            self.ended = "balance_exhausted" if short else "length" if "length" in reasons else "stop"
            for choice in said.get("choices", ()) if short else ():
                if choice["finish_reason"] == "length":
                    choice["stop_reason"] = "balance_exhausted"
        finally:
            self._end()
        await _begin(send, status, b"application/json")
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})

    async def stream(self, send: Send) -> None:
        """Hand on chunk by chunk, as far as they are paid."""
        options = {"include_usage": True, "continuous_usage_stats": True}
        wished = self.body.get("stream_options") or {}
        asked = {**self.body, "stream_options": {**wished, **options}}
        self.ended = "client_gone"
        try:
            async with self.engine.post(self.path, asked, headers=self._headers()) as answer:
                await _begin(send, answer.status, answer.headers.get("content-type", "text/event-stream").encode())
                async for line in answer.content:
                    if not await self._hand_on(line, send, wished=wished):
                        return
            await send({"type": "http.response.body", "body": b""})
        finally:
            if self.ended in {"client_gone", "balance_exhausted"}:
                with contextlib.suppress(FabricError):
                    await self._abort()
            self._end()

    async def _hand_on(self, line: bytes, send: Send, *, wished: dict[str, Any]) -> bool:
        """One line of the stream; whether it goes on."""
        data = line.removeprefix(b"data: ").strip()
        if not line.startswith(b"data: ") or data == b"[DONE]":
            await send({"type": "http.response.body", "body": line, "more_body": True})
            return True
        chunk = json.loads(data)
        usage, meter = chunk.get("usage") or {}, self.engine.meter
        if self.call_id not in meter.book.calls:
            return True
        total, cached = usage.get("completion_tokens", 0), _cached(usage)
        before = meter.book.calls[self.call_id].usage
        paid = meter.advance(self.call_id, completion=total, cached=max(cached, before.cached_tokens))
        if paid < total:
            paid = await meter.extend(self.call_id, completion=total, cached=max(cached, before.cached_tokens))
        if paid < total:
            meter.advance(self.call_id, completion=before.completion_tokens, cached=before.cached_tokens)
            await self._cut(chunk, before.prompt_tokens, before.completion_tokens, send)
            return False
        reasons = {choice.get("finish_reason") for choice in chunk.get("choices", ())} - {None}
        if reasons:
            self.ended = "length" if "length" in reasons else "stop"
        if not chunk.get("choices"):
            self._end()  # that was all: what it costs is known, and said beside the usage
            if not wished.get("include_usage"):
                return True
        if not wished.get("continuous_usage_stats") and chunk.get("choices"):
            chunk["usage"] = None
        await send(
            {"type": "http.response.body", "body": b"data: " + json.dumps(chunk).encode() + b"\n", "more_body": True}
        )
        return True

    async def _cut(self, chunk: dict[str, Any], prompt: int, completion: int, send: Send) -> None:
        """The end of a stream that is no longer paid for: as the engine itself would end it."""
        self.ticket.cut, self.ended = True, "balance_exhausted"
        self.ticket.within_key = self.engine.meter.book.calls[self.call_id].piece.within_key
        empty: dict[str, Any] = {"delta": {}} if "chat" in self.path else {"text": ""}
        choice = {"index": 0, **empty, "finish_reason": "length", "stop_reason": "balance_exhausted"}
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        last = [{**chunk, "choices": [choice], "usage": None}]
        if (self.body.get("stream_options") or {}).get("include_usage"):
            last.append({**chunk, "choices": [], "usage": usage})
        events = [json.dumps(each).encode() for each in last] + [b"[DONE]"]
        await send({"type": "http.response.body", "body": b"".join(b"data: " + each + b"\n\n" for each in events)})

    async def _abort(self) -> None:
        name = f"{_PREFIX[self.path]}-{self.call_id}"
        async with self.engine.post("/inference/v1/abort_requests", {"request_ids": [name]}) as answer:
            await answer.read()

    def _headers(self) -> dict[str, str]:
        return {"X-Request-Id": self.call_id, "X-Vllm-Priority": str(-self.ticket.tier_rank)}

    def _end(self) -> None:
        if self.call_id not in self.engine.meter.book.calls:
            return
        call, charged_uhs = self.engine.meter.end(self.call_id, self.ended)
        self.ticket.ended.append(call)
        self.ticket.charged_uhs += charged_uhs
        self.ticket.left_uhs = self.engine.meter.book.left_uhs(self.ticket.payer)


async def _begin(send: Send, status: int, kind: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})


def _document(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise InvalidRequest("the body is no JSON object", code="invalid_json")
    return said


def _limit_names(body: dict[str, Any]) -> list[str]:
    named = [name for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
    return named or ["max_tokens"]


def _wanted(body: dict[str, Any]) -> int | None:
    said = next((body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None), None)
    if said is not None and (not isinstance(said, int) or isinstance(said, bool) or said < 1):
        raise InvalidRequest(f"max_tokens is {said!r}: give at least 1", code="invalid_max_tokens")
    return said


def _cached(usage: dict[str, Any]) -> int:
    details = usage.get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)
