"""One call of a model: its turn, its replica, its answer's way back, and how it is written down for a repeat.

What can be said of it afterwards: it cost nothing (no byte went to a replica, or the replica refused), it was answered, or
it ended in the middle, when the replica has settled what the engine had produced.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Mapping
from typing import Any, Final, Protocol

from fabric.charging.rates import charge_uhs, rate_for
from fabric.errors import FabricError, PermissionDenied, Unavailable
from fabric.units import CT_DECIMALS, format_ct
from serving import calls
from serving.gateway import bodies, fields, refusals
from serving.gateway.admission import Pools, Seat
from serving.gateway.affinity import Trail, trail_of
from serving.gateway.directory import Board, Entitlement
from serving.gateway.events import Events, Usage, usage_of
from serving.gateway.exchange import Exchange
from serving.gateway.fairness import Ticket
from serving.gateway.keys import Caller
from serving.gateway.metrics import Metrics
from serving.gateway.refusals import JSON, Headers, ReplicaLost
from serving.gateway.repeats import Kept, Repeats
from serving.gateway.upstream import Answer, NotReached, Upstream

TRIES_MAX: Final = 3
"""How many replicas are asked when they can't be reached."""
WAITING: Final = b": waiting for a turn\n\n"
"""A comment, which every reader of events skips."""
SSE: Final[Headers] = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_LOOK_S: Final = 5.0
_OK: Final = 300
_PAYMENT_REQUIRED: Final = 402
_SERVER: Final = 500
_BUSY: Final = 503
_TRUE: Final = frozenset({b"1", b"true"})


class Waits(Protocol):
    """How long a call may wait."""

    @property
    def wait_s(self) -> float: ...
    @property
    def quiet_s(self) -> float: ...
    @property
    def keep_alive_s(self) -> float: ...


class House(Protocol):
    """What a call needs of its gateway."""

    pools: Pools
    metrics: Metrics
    board: Board

    @property
    def limits(self) -> Waits: ...
    @property
    def upstream(self) -> Upstream: ...
    @property
    def repeats(self) -> Repeats: ...
    def one_more_of(self, account_id: str) -> contextlib.AbstractContextManager[None]: ...


class Calling:
    """A call that may be made: the key is good, the model is the caller's, the body is rewritten."""

    def __init__(
        self,
        house: House,
        exchange: Exchange,
        caller: Caller,
        *,
        model: str,
        has: Entitlement,
        body: bodies.Body,
        body_bytes: int,
        digest: bytes,
        stream: bool,
    ) -> None:
        assert exchange.route is not None
        self.caller = caller
        self.model = model
        self._house = house
        self._exchange = exchange
        self._route = exchange.route
        self._has = has
        self._body = body
        self._cost = fields.cost_of(body, body_bytes=body_bytes)
        self._digest = digest
        self._stream = stream
        self._covered = False
        self._key = exchange.headers.get(b"idempotency-key", b"").decode("latin-1") if self._route.metered else ""
        self._served: int | None = None
        """LLM tokens so far, where they can be told."""
        self._noted = False
        self._asked = False
        """Whether a byte may have gone to a replica that answered nothing certain yet."""

    async def carry_out(self) -> None:
        """Answer the call.

        Raises:
            FabricError: it is refused, or it broke; nothing, or the beginning of a stream, was said.
        """
        self._exchange.answer_headers.append((b"x-fabric-free-uhs", str(self._has.free_uhs).encode()))
        with self._house.one_more_of(self.caller.account_id):
            if not self._key:
                await self._run()
                return
            kept = await self._house.repeats.begin(
                self.caller.account_id, self._key, request=self._digest, call_id=self._exchange.call_id
            )
            if kept is not None:
                await self._replay(kept)
            else:
                # Whoever asked for one run comes back for its answer: it is made whether or not they stay.
                self._exchange.stays = not self._stream
                await self._run_once()

    async def _replay(self, kept: Kept) -> None:
        self._exchange.answer_headers = [(b"x-fabric-replayed", b"1")]
        await self._exchange.answer(kept.status, kept.headers, kept.body)

    async def _run_once(self) -> None:
        """Run it; if it ends without having been written down, write down whether it may have cost something."""
        try:
            await self._run()
        except BaseException:
            if not self._noted:
                await asyncio.shield(self._note(None))
            raise

    async def _note(self, kept: Kept | None) -> None:
        """Write down how it ended, before the client hears of it: what it heard is what it would hear again."""
        if self._key:
            self._noted = True
            account_id, repeats = self.caller.account_id, self._house.repeats
            if kept is not None:
                await repeats.finish(account_id, self._key, kept)
            elif self._asked:
                await repeats.fail(account_id, self._key)
            else:
                await repeats.forget(account_id, self._key)

    async def _run(self) -> None:
        body = bodies.write(self._body)
        for _ in range(TRIES_MAX):
            seat = await self._turn()
            served: int | None = None
            try:
                answer = await self._ask(seat, body)
                try:
                    served = await self._pass_on(answer, seat)
                finally:
                    answer.close()
            except NotReached:
                served = 0
                seat.avoid()
            else:
                return
            finally:
                seat.leave(tokens=self._served if served is None else served)
        raise Unavailable(
            f"none of {TRIES_MAX} replicas of {self.model} could be reached: try again in 1 s",
            code="replicas_unreachable",
        )

    # -- the turn ----------------------------------------------------------------------------------------------------------

    async def _turn(self) -> Seat:
        pool, covered = self._house.pools.of(self.model, self.caller.account_id)
        self._covered = covered
        ticket = Ticket(self.caller.account_id, rank=self.caller.rank, cost=self._cost)
        trail: Trail = ()
        if self._route.metered:
            prompt = fields.prompt_of(self._body, self._route)
            hint = self._body.get("prompt_cache_key")
            root = f"{self.caller.account_id}/{hint if isinstance(hint, str) else ''}"
            trail = trail_of(prompt, root=root.encode("utf-8", "replace")[:64])
        began = time.monotonic()
        seat = pool.seat_now(ticket, trail) if self._route.metered else pool.visit(ticket)
        if seat is None:
            seat = await self._in_line(pool.wait(ticket, trail))
        self._house.metrics.seated(model=self.model, rank=self.caller.rank, seconds=time.monotonic() - began)
        seat.lost = self._replica_lost
        return seat

    async def _in_line(self, turn: Awaitable[Seat]) -> Seat:
        """Wait; a stream says every now and then that it still does."""
        limits = self._house.limits
        waiting = asyncio.ensure_future(turn)
        deadline = time.monotonic() + limits.wait_s
        pause_s = limits.quiet_s
        try:
            while not waiting.done():
                left_s = deadline - time.monotonic()
                self._may_wait(left_s)
                await asyncio.wait({waiting}, timeout=min(pause_s, left_s) if self._stream else min(_LOOK_S, left_s))
                if self._stream and not waiting.done():
                    await self._keep_alive()
                    pause_s = limits.keep_alive_s
            return waiting.result()
        except BaseException:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, FabricError):
                (await waiting).leave(tokens=0)
            raise

    def _may_wait(self, left_s: float) -> None:
        """Don't wait for what won't come."""
        if left_s <= 0:
            raise Unavailable(
                f"no replica of {self.model} had room within {self._house.limits.wait_s:.0f} s: try again in 10 s",
                code="no_room",
                retry_after_s=10,
            )
        model = self._house.board.models.get(self.model)
        if model is not None and model.state == "failed":
            raise Unavailable(
                f"{self.model} could not be started, its operator has to mend it: {model.why[:300]}",
                code="model_failed",
                retry_after_s=60,
            )

    async def _keep_alive(self) -> None:
        if not self._exchange.begun:
            await self._exchange.begin(200, SSE)
        await self._exchange.more(WAITING)

    def _replica_lost(self) -> None:
        self._house.metrics.lost(self.model)
        self._exchange.interrupt(
            ReplicaLost("the replica that worked on this is gone; what it had produced is charged. Send it again")
        )

    # -- there and back ----------------------------------------------------------------------------------------------------

    async def _ask(self, seat: Seat, body: bytes) -> Answer:
        self._asked = True
        try:
            return await self._house.upstream.send(
                seat.replica, method=self._route.method, path=self._route.path, headers=self._headers(), body=body
            )
        except NotReached:
            self._asked = False
            raise

    def _headers(self) -> dict[str, str]:
        """What goes on: a few of the client's headers, and those that only gateways may send."""
        given = self._exchange.headers
        headers = {name.decode(): given[name].decode("latin-1") for name in fields.HEADERS_PASSED_ON if name in given}
        strict = given.get(calls.STRICT.encode(), b"").lower() in _TRUE
        return {
            **headers,
            "content-type": "application/json",
            "x-request-id": self._exchange.call_id,
            calls.ACCOUNT: self.caller.account_id,
            calls.KEY: self.caller.key.key_id,
            calls.KEY_LIMITED: "1" if self.caller.key.limited else "0",
            calls.TIER_RANK: str(self.caller.key.tier_rank),
            calls.CALL: self._exchange.call_id,
            calls.STRICT: "1" if strict else "0",
            calls.COVERED: "1" if self._covered else "0",
        }

    async def _pass_on(self, answer: Answer, seat: Seat) -> int | None:
        """The answer on its way to the client; the LLM tokens it took, where that can be told."""
        if answer.is_stream and answer.status < _OK:
            return await self._pass_stream(answer, seat)
        said = await answer.whole()
        answer.release()
        if answer.status >= _OK:
            await self._pass_refusal(answer, said)
            return 0
        headers: Headers = [JSON]
        charged = answer.headers.get(calls.CHARGED_UHS)
        if charged is not None and charged.isdecimal():
            headers += [
                (b"x-fabric-charged-uhs", charged.encode()),
                (b"x-fabric-charged-ct", format_ct(int(charged), decimals=CT_DECIMALS).encode()),
            ]
        usage = usage_of(said)
        self._count(usage)
        if self._exchange.begun:  # keep-alives went out, yet the engine answers in one piece
            raise ReplicaLost("the engine did not stream", code="no_stream")
        await self._note(Kept(answer.status, [*headers, *self._exchange.answer_headers], said))
        await self._exchange.answer(answer.status, headers, said)
        return _tokens(usage)

    async def _pass_stream(self, answer: Answer, seat: Seat) -> int:
        exchange = self._exchange
        events = Events(self._route, remark=lambda usage: self._remark(usage, seat.replica.accelerator))
        if not exchange.begun:
            await exchange.begin(answer.status, SSE)
        pieces: list[bytes] = []
        first = True
        while data := await answer.piece():
            whole = events.feed(data)
            if whole:
                self._served = events.count
                await exchange.more(whole)
                if first:
                    first = False
                    self._began()
                if self._key:
                    pieces.append(whole)
        self._count(events.usage)
        if not events.ended:
            raise ReplicaLost(
                "the replica ended this stream before it was done: send the request again", code="cut_off"
            )
        answer.release()
        await self._note(Kept(answer.status, [*SSE, *exchange.answer_headers], b"".join(pieces)))
        await exchange.more(b"", last=True)
        return _tokens(events.usage) or events.count

    async def _pass_refusal(self, answer: Answer, said: bytes) -> None:
        """The engine's or the meter's own no, in OpenAI's form."""
        self._asked = answer.status >= _SERVER and answer.status != _BUSY
        await self._note(None)
        status = answer.status
        if status == _PAYMENT_REQUIRED and self.caller.bound_elsewhere(self.model):
            raise PermissionDenied(
                f"your {format_ct(self.caller.key.free_uhs)} free tokens are not good for {self.model}: they are bound to"
                " other models or uses. Top up tokens that are not bound, or call a model of theirs",
                code="tokens_bound_elsewhere",
                free_uhs=self.caller.key.free_uhs,
                param="model",
            )
        headers: Headers = [JSON]
        if status == _PAYMENT_REQUIRED:
            headers.append((b"x-should-retry", b"false"))
        if status in {_BUSY, 429}:
            headers.append((b"retry-after", (answer.headers.get("retry-after") or "1").encode("latin-1")))
        body = refusals.retold(status, said, anthropic=self._exchange.anthropic)
        if self._exchange.begun:
            mark = b"event: error\n" if self._route.surface in {"anthropic", "responses"} else b""
            await self._exchange.more(mark + b"data: " + body + b"\n\n", last=True)
        else:
            await self._exchange.answer(status, headers, body)

    # -- what it took ------------------------------------------------------------------------------------------------------

    def _remark(self, usage: Usage, accelerator: str) -> Mapping[str, Any]:
        """What the usage chunk of a stream says beside the usage: the same as the headers of an answer in one piece."""
        said: dict[str, Any] = {"call": self._exchange.call_id}
        model = self._house.board.models.get(self.model)
        rate = rate_for(model.rates, accelerator=accelerator) if model is not None else None
        if self._covered or rate is not None:
            charged = 0 if self._covered or rate is None else charge_uhs(rate, usage)
            said |= {"charged_uhs": str(charged), "charged_ct": format_ct(charged, decimals=CT_DECIMALS)}
        return said

    def _began(self) -> None:
        seconds = time.monotonic() - self._exchange.started_at
        self._house.metrics.began(model=self.model, rank=self.caller.rank, seconds=seconds)

    def _count(self, usage: Usage | None) -> None:
        if usage is not None:
            self._house.metrics.used(model=self.model, rank=self.caller.rank, usage=usage)


def _tokens(usage: Usage | None) -> int | None:
    return None if usage is None else usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens
