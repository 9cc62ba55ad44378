"""An answer on its way from a replica to its client: in one piece, as a stream, or as a refusal.

Bytes pass as the engine gave them. Before the last of them, how it ended is written down for whoever repeats the request.
"""

import time
from collections.abc import Awaitable
from typing import Final, Protocol

from fabric.errors import InvalidRequest, PermissionDenied
from fabric.units import CT_DECIMALS, format_ct
from serving import calls
from serving.gateway import phrases, refusals
from serving.gateway.events import Booked, Events, Usage, booked_of, usage_of
from serving.gateway.exchange import Exchange
from serving.gateway.keys import Caller
from serving.gateway.metrics import Metrics
from serving.gateway.refusals import JSON, Headers, ReplicaLost
from serving.gateway.repeats import KEPT_BYTES_MAX, Kept
from serving.gateway.routes import Route
from serving.gateway.upstream import BROKEN, Answer

SSE: Final[Headers] = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_OK: Final = 300
_NOT_FOUND: Final = 404
_NO_ROUTE: Final = b'{"detail":"Not Found"}'
"""What the engine's application says of a path that it hasn't: by what its model can do it has some and not others."""
_PAYMENT_REQUIRED: Final = 402
_RATE: Final = 429
_SERVER: Final = 500
_BUSY: Final = 503


class Note(Protocol):
    """Writes down how a call ended, for whoever repeats it."""

    def __call__(self, kept: Kept | None, *, worked: bool) -> Awaitable[None]:
        """The answer to keep; or that there is none, and whether the engine may have worked."""
        ...


class Passage:
    """One answer's way."""

    def __init__(
        self,
        exchange: Exchange,
        route: Route,
        caller: Caller,
        *,
        model: str,
        metrics: Metrics,
        keep: bool,
        note: Note,
    ) -> None:
        self._exchange = exchange
        self._route = route
        self._caller = caller
        self._model = model
        self._metrics = metrics
        self._keep = keep
        self._note = note
        self.covered = False
        """Whether the account's own lease covers the call."""
        self.served: int | None = None
        """LLM tokens so far, where they can be told."""
        self.refused = False
        self.charged_uhs: int | None = None
        """What the replica says that a call has cost which could not go on."""
        self.booked: Booked | None = None
        """What the replica says that it has booked."""

    async def pass_on(self, answer: Answer) -> None:
        """Send it on, all of it, with what the replica says is still free.

        Raises:
            ReplicaLost: the replica went away before it was done.
            PermissionDenied: `tokens_bound_elsewhere`.
        """
        free = answer.headers.get(calls.FREE_UHS)
        if free is not None and free.isdecimal():
            self._exchange.tell_free(int(free))
        if answer.status >= _OK:
            await self._refusal(answer)
        elif answer.is_stream:
            await self._stream(answer)
        else:
            await self._whole(answer)

    async def _whole(self, answer: Answer) -> None:
        said = await answer.whole()
        answer.release()
        headers: Headers = [JSON, *_charged(answer)]
        self.booked = booked_of(said)
        self._count(usage_of(said) or (self.booked.usage if self.booked is not None else None))
        if self._exchange.begun:  # keep-alives went out, yet the engine answers in one piece
            raise ReplicaLost("the engine did not stream", code="no_stream")
        await self._note(Kept(answer.status, [*headers, *self._exchange.answer_headers], said), worked=True)
        self._began()
        await self._exchange.answer(answer.status, headers, said)

    async def _stream(self, answer: Answer) -> None:
        exchange = self._exchange
        events = Events(self._route)
        if not exchange.begun:
            await exchange.begin(answer.status, SSE)
        pieces: list[bytes] = []
        kept_bytes = 0
        while True:
            try:
                data = await answer.read()
            except BROKEN as error:
                raise answer.lost(error) from None
            if not data:
                break
            whole = events.feed(data)
            if not whole:
                continue
            if self.served is None:
                self._began()
            self.served = events.count
            await exchange.more(whole)
            if (
                self._keep and kept_bytes <= KEPT_BYTES_MAX
            ):  # the piece that is beyond says that it is too large to keep
                pieces.append(whole)
                kept_bytes += len(whole)
        self._count(events.usage)
        self.booked = events.booked
        if not events.ended:
            raise ReplicaLost(
                "the replica ended this stream before it was done: send the request again", code="cut_off"
            )
        answer.release()
        kept = Kept(answer.status, [*SSE, *exchange.answer_headers], b"".join(pieces))
        await self._note(kept, worked=True)
        await exchange.more(b"", last=True)

    async def _refusal(self, answer: Answer) -> None:
        """The engine's or the meter's own no, in OpenAI's form."""
        said, status = await answer.whole(), answer.status
        answer.release()
        told = answer.headers.get(calls.CHARGED_UHS, "")
        self.charged_uhs = int(told) if told.isdecimal() else None
        self.served, self.refused = 0, not self.charged_uhs
        await self._note(None, worked=bool(self.charged_uhs) or (status >= _SERVER and status != _BUSY))
        if status == _PAYMENT_REQUIRED and self._caller.bound_elsewhere(self._model):
            raise PermissionDenied(
                f"your {format_ct(self._caller.key.free_uhs)} free tokens are not good for {self._model}: they are bound to"
                " other models or uses. Top up tokens that are not bound, or call a model of theirs",
                code="tokens_bound_elsewhere",
                free_uhs=self._caller.key.free_uhs,
                param="model",
            )
        if status == _NOT_FOUND and said == _NO_ROUTE:
            raise InvalidRequest(
                phrases.unable(self._model, self._route.surface), code="not_offered_by_model", param="model"
            )
        headers: Headers = [JSON, *_charged(answer)]
        if status == _PAYMENT_REQUIRED:
            headers.append((b"x-should-retry", b"false"))
        if status in {_BUSY, _RATE}:
            headers.append((b"retry-after", (answer.headers.get("retry-after") or "1").encode("latin-1")))
        body = refusals.retold(status, said, anthropic=self._exchange.anthropic, is_charged=bool(self.charged_uhs))
        if self._exchange.begun:
            mark = b"event: error\n" if self._route.surface in {"anthropic", "responses"} else b""
            await self._exchange.more(mark + b"data: " + body + b"\n\n", last=True)
        else:
            await self._exchange.answer(status, headers, body)

    def _began(self) -> None:
        seconds = time.monotonic() - self._exchange.started_at
        self._metrics.began(model=self._model, rank=self._caller.rank, seconds=seconds)

    def _count(self, usage: Usage | None) -> None:
        if usage is not None:
            self.served = usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens
            self._metrics.used(model=self._model, rank=self._caller.rank, usage=usage)


def _charged(answer: Answer) -> Headers:
    """What a call has cost, where the replica knows it."""
    charged = answer.headers.get(calls.CHARGED_UHS)
    if charged is None or not charged.isdecimal():
        return []
    return [
        (b"x-fabric-charged-uhs", charged.encode()),
        (b"x-fabric-charged-ct", format_ct(int(charged), decimals=CT_DECIMALS).encode()),
    ]
