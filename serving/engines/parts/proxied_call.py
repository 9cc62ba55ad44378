"""One call on its way through an engine's server: asked for, handed on as far as it is paid, and settled."""

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import aiohttp

from fabric.errors import FabricError, InsufficientTokens, Unavailable
from serving.calls import Ended, Usage
from serving.engines.parts.admission import Send, error_document
from serving.metering.meter import Meter
from serving.metering.metrics import Seen
from serving.metering.payer import SignedPayer

_ANSWER_BYTES_MAX: Final = 64 << 20
_PART_BYTES: Final = 1 << 20
_REFUSED: Final = 400
_DATA: Final = b"data: "
_DONE: Final = b"[DONE]"
_JSON: Final = b"application/json"
_EVENTS: Final = b"text/event-stream"
_CUT: Final = "balance_exhausted"


USAGE: Final = {"include_usage": True, "continuous_usage_stats": True}
"""What a stream is asked for: vLLM tells the usage in every chunk only where it is to be told at the end too."""


class Dialect(Protocol):
    """What one kind of server wants to be told beside OpenAI's words."""

    def marked(self, body: dict[str, Any], ticket: SignedPayer, call_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The body and headers of a request: with its id, its rank among others, and the salt that keeps what is cached of it
        for its account alone.
        """
        ...

    def stopped(self, path: str, call_id: str) -> tuple[str, dict[str, Any]]:
        """Where, and with what, the server is told to end a request."""
        ...


class Server(Protocol):
    """An engine's server, and the meter before it."""

    meter: Meter
    dialect: Dialect
    seen: Seen
    ttfts_us: deque[int]

    def ask(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]: ...


@dataclass(slots=True)
class ProxiedCall:
    """One call that the meter has opened. What carries it out settles it, whatever happens.

    Args:
        each: completion tokens that each of its choices may have.
    """

    server: Server
    path: str
    body: dict[str, Any]
    ticket: SignedPayer
    call_id: str
    each: int
    choices: int
    began_s: float
    ended: Ended = "error"
    made: int = 0
    """Completion tokens, as the server said."""

    async def whole(self, send: Send) -> None:
        """Ask for no more than is paid, after asking the ledger for all of it; answer when it is settled.

        Raises:
            InsufficientTokens: not one token is paid for each choice.
            Unavailable: the server breaks off, or doesn't say what it made.
        """
        try:
            limit = await self._paid_each()
            status, said = await self._asked(limit)
            if status < _REFUSED:
                self._count_whole(said, limit)
        finally:
            self._end()
        await say(send, status, json.dumps(said).encode())

    async def stream(self, send: Send, wished: tuple[bool, bool]) -> None:
        """Hand on chunk by chunk, as far as they are paid.

        Args:
            send: where to.
            wished: whether the client asked for the usage at the end, and for that in every chunk.

        Raises:
            FabricError: nothing was answered yet; later errors are events of the stream.
        """
        begun = False
        try:
            async with self._ask({**self.body, "max_tokens": self.each, "stream_options": USAGE}) as answer:
                if answer.status >= _REFUSED:
                    said = await read_json(answer)
                    self._end()
                    await say(send, answer.status, json.dumps(said).encode())
                    return
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", _EVENTS)]})
                begun = True
                async for line in answer.content:
                    if not await self._hand_on(line, send, wished):
                        break
        except asyncio.CancelledError:
            self.ended = "client_gone"
            raise
        except FabricError as error:
            if not begun:
                raise
            self.ticket.broke = self.ticket.broke or error
            await self._say(send, _DATA + json.dumps(error_document(error, path=self.path)).encode())
        finally:
            if self.ended in {"client_gone", "error", _CUT}:
                with contextlib.suppress(FabricError):
                    await self._stop()
            self._end()
        await send({"type": "http.response.body", "body": b""})

    # -- in one piece --------------------------------------------------------------------------------------------------

    async def _paid_each(self) -> int:
        """How many tokens are paid for each choice, as many as are wanted if the account has them."""
        meter = self.server.meter
        paid = await meter.extend(self.call_id, completion=self.each * self.choices, cached=0)
        meter.advance(self.call_id, completion=0, cached=0)
        if paid < self.choices:
            raise InsufficientTokens(
                f"the account has tokens for {paid} of {self.choices} choices: ask for fewer, or top up",
                needed=self.choices,
            )
        return min(self.each, paid // self.choices)

    async def _asked(self, limit: int) -> tuple[int, dict[str, Any]]:
        async with self._ask({**self.body, "max_tokens": limit}) as answer:
            return answer.status, await read_json(answer)

    def _count_whole(self, said: dict[str, Any], limit: int) -> None:
        """Charge an answer for what it says it used, and say in it where the tokens have ended."""
        usage, choices = usage_in(said), [each for each in said.get("choices", ()) if isinstance(each, dict)]
        if usage is None:
            raise _unmetered("an answer without usage")
        if usage.completion_tokens > limit * self.choices:
            raise _unmetered(
                f"{usage.completion_tokens} tokens, and not the {limit * self.choices} that were asked for"
            )
        self._advance(usage)
        said["model"] = self.server.meter.book.model
        at_limit = [each for each in choices if each.get("finish_reason") == "length"]
        if at_limit and limit < self.each:
            self.ended = _CUT
            for each in at_limit:
                each["stop_reason"] = _CUT
        else:
            self.ended = "length" if at_limit else "stop"

    # -- as a stream ---------------------------------------------------------------------------------------------------

    async def _hand_on(self, line: bytes, send: Send, wished: tuple[bool, bool]) -> bool:
        """One line of the stream; whether it goes on."""
        data = line.removeprefix(_DATA).strip()
        if data == _DONE:
            await self._say(send, _DATA + _DONE)
        if not line.startswith(_DATA) or data == _DONE:
            return True
        chunk = json.loads(data)
        if "error" in chunk:
            await self._say(send, _DATA + data)
            return False
        return not self._is_open or await self._hand_on_chunk(chunk, send, wished)

    async def _hand_on_chunk(self, chunk: dict[str, Any], send: Send, wished: tuple[bool, bool]) -> bool:
        usage, choices = usage_in(chunk), chunk.get("choices")
        if usage is None:
            raise _unmetered("a chunk without usage")
        if usage.completion_tokens > self.each:
            raise _unmetered(f"{usage.completion_tokens} tokens, and not the {self.each} that were asked for")
        if not await self._is_paid(usage):
            await self._cut(chunk, send, wished)
            return False
        reasons = {choice.get("finish_reason") for choice in choices or ()} - {None}
        if reasons:
            self.ended = "length" if "length" in reasons else "stop"
        if not choices:
            self._end()  # that was all: what it costs is known, and said beside the usage
            if not wished[0]:
                return True
        elif not wished[1]:
            chunk["usage"] = None
        chunk["model"] = self.server.meter.book.model
        await self._say(send, _DATA + json.dumps(chunk).encode())
        return True

    async def _is_paid(self, usage: Usage) -> bool:
        """Whether all that there is by now is paid for; what isn't is not counted either."""
        meter, before = self.server.meter, self.server.meter.book.calls[self.call_id].usage
        total, is_first = usage.completion_tokens, not self.made
        self._advance(usage)
        if self._paid() < total:
            await meter.extend(self.call_id, completion=total, cached=self._cached)
        if self._paid() < total:
            self.made = before.completion_tokens
            meter.advance(self.call_id, completion=self.made, cached=before.cached_tokens)
            return False
        if is_first and total:
            took_s = time.monotonic() - self.began_s
            self.server.ttfts_us.append(round(took_s * 1e6))
            self.server.seen.began(model=meter.book.model, tier_rank=self.ticket.tier_rank, seconds=took_s)
        return True

    async def _cut(self, chunk: dict[str, Any], send: Send, wished: tuple[bool, bool]) -> None:
        """The end of a stream that is no longer paid for: as the engine itself would end it."""
        call = self.server.meter.book.calls[self.call_id]
        self.ticket.cut, self.ended, self.ticket.within_key = True, _CUT, call.piece.within_key
        used = call.usage
        empty: dict[str, Any] = {"delta": {}} if "chat" in self.path else {"text": ""}
        choice = {"index": 0, **empty, "finish_reason": "length", "stop_reason": _CUT}
        same = {**chunk, "model": self.server.meter.book.model}
        last = [{**same, "choices": [choice], "usage": None}]
        self._end()
        if wished[0]:
            total = used.prompt_tokens + used.completion_tokens
            counts = {
                "prompt_tokens": used.prompt_tokens,
                "completion_tokens": used.completion_tokens,
                "total_tokens": total,
            }
            last.append({**same, "choices": [], "usage": counts})
        for each in [*(json.dumps(each).encode() for each in last), _DONE]:
            await self._say(send, _DATA + each)

    @staticmethod
    async def _say(send: Send, event: bytes) -> None:
        await send({"type": "http.response.body", "body": event + b"\n\n", "more_body": True})

    # -- with the server and the meter ---------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _ask(self, body: dict[str, Any]) -> AsyncIterator[aiohttp.ClientResponse]:
        marked, headers = self.server.dialect.marked(body, self.ticket, self.call_id)
        async with self.server.ask("POST", self.path, marked, headers=headers) as answer:
            yield answer

    async def _stop(self) -> None:
        path, body = self.server.dialect.stopped(self.path, self.call_id)
        async with self.server.ask("POST", path, body) as answer:
            await answer.read()

    @property
    def _is_open(self) -> bool:
        return self.call_id in self.server.meter.book.calls

    @property
    def _cached(self) -> int:
        return self.server.meter.book.calls[self.call_id].usage.cached_tokens

    def _paid(self) -> int:
        return self.server.meter.book.calls[self.call_id].paid

    def _advance(self, usage: Usage) -> None:
        """Have the meter know what there is: cached tokens are of the prompt, and no fewer than before."""
        known = self.server.meter.book.calls[self.call_id].usage
        cached = min(known.prompt_tokens, max(usage.cached_tokens, known.cached_tokens))
        self.made = max(self.made, usage.completion_tokens)
        self.server.meter.advance(
            self.call_id, completion=usage.completion_tokens, cached=cached, reasoning=usage.reasoning_tokens
        )

    def _end(self) -> None:
        if not self._is_open:
            return
        meter = self.server.meter
        if self.ended == "error" and not self.made:  # the engine would not have it, or failed before it gave a token
            meter.book.void(self.call_id)
        call, charged_uhs = meter.end(self.call_id, self.ended)
        self.ticket.ended.append(call)
        self.ticket.charged_uhs += charged_uhs
        self.ticket.left_uhs = meter.book.left_uhs(self.ticket.payer)
        self.server.seen.ended(call, tier_rank=self.ticket.tier_rank, charged_uhs=charged_uhs)


def usage_in(said: Mapping[str, Any]) -> Usage | None:
    """What a chunk, or an answer, says that there is by now; None = it doesn't."""
    usage = said.get("usage")
    if not isinstance(usage, dict) or not isinstance(usage.get("completion_tokens"), int):
        return None
    details = usage.get("completion_tokens_details") or {}
    reasoning = details.get("reasoning_tokens") or usage.get("reasoning_tokens")
    return Usage(
        int(usage.get("prompt_tokens") or 0),
        int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        usage["completion_tokens"],
        int(reasoning or 0),
    )


async def say(send: Send, status: int, body: bytes) -> None:
    """A whole answer."""
    headers = [(b"content-type", _JSON), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read_json(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """A server's answer as an object.

    Raises:
        Unavailable: it is none, or too large (code `engine_unreachable`).
    """
    body = bytearray()
    async for part in answer.content.iter_chunked(_PART_BYTES):
        body += part
        if len(body) > _ANSWER_BYTES_MAX:
            raise Unavailable(
                f"the engine's answer is larger than {_ANSWER_BYTES_MAX} bytes", code="engine_unreachable"
            )
    try:
        said = json.loads(bytes(body))
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise Unavailable(f"the engine answered {answer.status} {bytes(body[:200])!r}", code="engine_unreachable")
    return said


def _unmetered(what: str) -> Unavailable:
    return Unavailable(
        f"the engine gave {what}: nothing can be handed on that can't be counted", code="engine_unmetered"
    )
