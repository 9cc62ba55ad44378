"""The meter before an engine that isn't ours to open: OpenAI's chat and completions, passed on to its server over HTTP.

Its server must report usage in every chunk (`continuous_usage_stats`), count a prompt (`/tokenize`) and end a request by its id.
A chunk is handed on when it is paid for; one that isn't ends the stream, and the engine is told to stop. Where nothing
streams, the engine is only asked for what is paid, and whoever leaves pays all of it. What it can't see in time it doesn't
offer: other surfaces, media, answers of a shape, and several choices in one stream.
"""

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, Final

import aiohttp

from fabric.errors import FabricError, InvalidRequest, NotFound, Unavailable
from serving.engines.parts import openai_requests as requests
from serving.engines.parts.admission import Admission, Message, Receive, Send, refuse
from serving.engines.parts.proxied_call import USAGE, Dialect, ProxiedCall, read_json, say, usage_in
from serving.engines.parts.server_process import ServerProcess
from serving.engines.port import Start
from serving.metering.meter import Meter
from serving.metering.metrics import Seen, SeenByRay, Unseen
from serving.metering.payer import TICKET, SignedPayer

_LINE_BYTES_MAX: Final = 1 << 20
_CONNECT_S: Final = 5.0
_HEALTH_S: Final = 5.0
_SILENT_S: Final = 3_600.0
"""A server that says nothing of a request for so long has lost it: an answer in one piece is silent until it is whole."""
_TTFTS_KEPT: Final = 512
_OK: Final = 200
_PROBE: Final = {"prompt": "a", "max_tokens": 2, "stream": True, "stream_options": USAGE}


class ProxiedEngine:
    """An engine (`serving.engines.port`) whose server is reached by URL.

    Args:
        url: of the server, without a path.
        served: the model's name there.
        max_context: LLM tokens of a prompt and its answer.
        process: the server, where it is ours to end.
        headers: of every request to it.
    """

    abilities: tuple[str, ...] = ("text",)

    def __init__(
        self,
        url: str,
        dialect: Dialect,
        meter: Meter,
        *,
        trust: str,
        served: str,
        max_context: int,
        process: ServerProcess | None = None,
        headers: Mapping[str, str] | None = None,
        seen: Seen | None = None,
    ) -> None:
        self.meter, self.dialect, self.served, self.seen = meter, dialect, served, seen or Unseen()
        self.app = Admission(self._answer, trust=trust, afford=meter.afford)
        self.ttfts_us: deque[int] = deque(maxlen=_TTFTS_KEPT)
        self._url, self._headers, self._max_context, self._process = url.rstrip("/"), headers, max_context, process
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    async def open(
        cls,
        url: str,
        dialect: Dialect,
        start: Start,
        meter: Meter,
        *,
        process: ServerProcess | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "ProxiedEngine":
        """Look at the server, and whether it can be metered at all.

        Raises:
            Unavailable: it can't be reached (code `engine_unreachable`).
            InvalidRequest: it doesn't serve the model, doesn't say how long its context is, or doesn't report usage as it is
                needed (code `engine_unmetered`).
        """
        opened = cls(
            url,
            dialect,
            meter,
            trust=start.trust,
            served=start.model,
            max_context=start.max_context or 0,
            process=process,
            headers=headers,
            seen=SeenByRay() if start.in_ray else None,
        )
        try:
            await opened._find(start.model)
            await opened._probe()
        except BaseException:
            await opened._close_session()
            raise
        return opened

    async def check(self) -> None:
        """As `serving.engines.port` has it."""
        self.meter.check()
        if self._process is not None:
            self._process.check()
        try:
            async with asyncio.timeout(_HEALTH_S), self.ask("GET", "/health") as answer:
                status = answer.status
        except TimeoutError:
            raise Unavailable(
                f"the engine's server didn't answer in {_HEALTH_S:g} s", code="engine_unreachable"
            ) from None
        if status != _OK:
            raise Unavailable(f"the engine's server says it is ill: {status}", code="engine_unreachable")

    def load(self) -> dict[str, int]:
        """As `serving.engines.port` has it."""
        ttfts = sorted(self.ttfts_us.copy())  # at once: another thread asks
        return {
            "running": len(self.meter.book.calls),
            "max_context": self._max_context,
            "ttft_p50_us": ttfts[len(ttfts) // 2] if ttfts else 0,
            "ttft_p99_us": ttfts[len(ttfts) * 99 // 100] if ttfts else 0,
        }

    async def close(self) -> bool:
        """As `serving.engines.port` has it."""
        settled = await self.meter.close(for_good=True)
        await self._close_session()
        if self._process is not None:
            await self._process.close()
        return settled

    @contextlib.asynccontextmanager
    async def ask(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request to the server.

        Raises:
            Unavailable: it can't be reached, or breaks off (code `engine_unreachable`).
        """
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENT_S)
            self._session = aiohttp.ClientSession(
                timeout=limits,
                read_bufsize=_LINE_BYTES_MAX,
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0),  # how many calls there are at a time, gateways bound
            )
        try:
            async with self._session.request(
                method, self._url + path, json=body, headers=headers, allow_redirects=False
            ) as answer:
                yield answer
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unavailable(f"the engine can't be reached: {error!r}"[:500], code="engine_unreachable") from error

    # -- at its start --------------------------------------------------------------------------------------------------

    async def _find(self, model: str) -> None:
        """By which name the server has the model, and how long its context is."""
        async with self.ask("GET", "/v1/models") as answer:
            said = await read_json(answer)
        cards = [card for card in said.get("data", ()) if isinstance(card, dict)]
        ids = [str(card.get("id")) for card in cards]
        found = next((card for card in cards if card.get("id") == model), cards[0] if len(cards) == 1 else None)
        if found is None:
            raise InvalidRequest(
                f"the server at {self._url} has no model {model!r}, and not just one: it has {', '.join(ids)[:300]}",
                code="engine_unmetered",
            )
        length = found.get("max_model_len")
        most = length if isinstance(length, int) and length > 0 else self._max_context
        self.served, self._max_context = str(found["id"]), min(self._max_context or most, most)
        if not self._max_context:
            raise InvalidRequest(
                f"the server at {self._url} doesn't say how long its context is: offer the model with --max-context",
                code="engine_unmetered",
            )

    async def _probe(self) -> None:
        """Ask for two tokens, which nobody pays for, and look whether each chunk says how many there are."""
        await self._prompt_tokens({"prompt": "a"})
        async with self.ask("POST", requests.COMPLETIONS, {**_PROBE, "model": self.served}) as answer:
            lines = [line async for line in answer.content]
        chunks = [json.loads(data) for line in lines if (data := line.removeprefix(b"data: ").strip()).startswith(b"{")]
        counts = [usage_in(chunk) for chunk in chunks if chunk.get("choices")]
        if not counts or None in counts:
            raise InvalidRequest(
                f"the server at {self._url} can't be metered: with stream_options.continuous_usage_stats it must report usage"
                f" in every chunk of a stream; it said {b''.join(lines)[:200]!r}",
                code="engine_unmetered",
            )

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        """The application behind `Admission`."""
        if scope["type"] != "http":
            await _live(receive, send)
        elif scope["path"] == "/health":
            await say(send, _OK, b"{}")
        elif scope["method"] == "GET":
            await self._show_model(scope["path"], send)
        elif (ticket := TICKET.get()) is not None:
            try:
                await self._serve(scope["path"], ticket, receive, send)
            except FabricError as error:
                if ticket.admitted:
                    ticket.broke = ticket.broke or error
                else:
                    ticket.refusal = ticket.refusal or error
                await refuse(send, error, path=scope["path"])

    async def _serve(self, path: str, ticket: SignedPayer, receive: Receive, send: Send) -> None:
        if path not in requests.PATHS:
            raise NotFound(f"{path[:100]} is not offered for this model", code="not_found")
        said = requests.document_of((await receive()).get("body", b""))
        body = requests.passed_on(path, said) | {"model": self.served}
        prompt = await self._prompt_tokens(requests.counted(body))
        each, choices = requests.limit_in(path, said, room=self._max_context - prompt), requests.choices_in(body)
        call_id = ticket.next_call_id()
        await self.meter.open(
            call_id,
            payer=ticket.payer,
            key_id=ticket.key_id,
            prompt_tokens=prompt,
            wants=each * choices,
            tags=ticket.tags,
        )
        ticket.opened += 1
        ticket.admitted += 1
        ticket.left_uhs = self.meter.book.left_uhs(ticket.payer)
        call = ProxiedCall(self, path, body, ticket, call_id, each=each, choices=choices, began_s=time.monotonic())
        if body.get("stream"):
            await _while_there(call.stream(send, requests.wants_usage(said)), receive)
        else:
            await call.whole(send)

    async def _prompt_tokens(self, counted: dict[str, Any]) -> int:
        """Exactly, by the engine's own tokenizer.

        Raises:
            InvalidRequest: it can't count that (code `invalid_prompt`), or it is no shorter than the context.
        """
        async with self.ask("POST", "/tokenize", {**counted, "model": self.served}) as answer:
            said = await read_json(answer)
        count = said.get("count")
        if not isinstance(count, int):
            raise InvalidRequest(f"the engine can't count this prompt: {str(said)[:300]}", code="invalid_prompt")
        if count >= self._max_context:
            raise InvalidRequest(
                f"the prompt has {count} tokens, the context {self._max_context}: shorten it", code="context_exceeded"
            )
        return count

    async def _show_model(self, path: str, send: Send) -> None:
        name = self.meter.book.model
        card = {"id": name, "object": "model", "owned_by": "fabric", "max_model_len": self._max_context}
        if path == "/v1/models":
            await say(send, _OK, json.dumps({"object": "list", "data": [card]}).encode())
        elif path == f"/v1/models/{name}":
            await say(send, _OK, json.dumps(card).encode())
        else:
            await refuse(send, NotFound(f"{path[:100]} is not offered for this model", code="not_found"), path=path)

    async def _close_session(self) -> None:
        if self._session is not None:
            await self._session.close()


async def _while_there(call: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Carry a call out for as long as its client is there; it is over, and settled, when this is."""
    running, leaving = asyncio.ensure_future(call), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((running, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        leaving.cancel()
        if not running.done():
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _live(receive: Receive, send: Send) -> None:
    """The application's start and end, at which nothing is to be done."""
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})
