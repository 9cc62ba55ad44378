"""One call of a model: its turn, its replica, its answer's way back, and how it is written down for a repeat.

What can be said of it afterwards: it cost nothing (no byte went to a replica, or the replica refused), it was answered, or
it ended in the middle, when the replica has settled what the engine had produced.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable
from hashlib import sha256
from typing import Final, Protocol

import msgspec

from fabric.errors import FabricError, InvalidRequest, Unavailable
from serving import calls
from serving.gateway import accounts, bodies, fields, marks
from serving.gateway.admission import Pools, Seat
from serving.gateway.affinity import Trail, trail_of
from serving.gateway.bounds import Size
from serving.gateway.directory import Board, Entitlement
from serving.gateway.events import keep_alive
from serving.gateway.exchange import Exchange
from serving.gateway.fairness import QueueTicket
from serving.gateway.generations import Generation
from serving.gateway.keys import Caller
from serving.gateway.metrics import Metrics
from serving.gateway.passing import SSE, Passage
from serving.gateway.refusals import ReplicaLost
from serving.gateway.repeats import Kept, Repeats
from serving.gateway.upstream import Answer, NotReached, Upstream

TRIES_MAX: Final = 3
"""How many replicas are asked when they can't be reached."""
HOPE_S: Final = 15.0
"""How long it is waited for somebody to serve at all: so long may the fabric's own processes take to come back."""
_LOOK_S: Final = 5.0
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
    def noted(self, caller: Caller, one: Generation) -> None: ...
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
        size: Size,
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
        self._cost = fields.cost_of(body, body_bytes=body_bytes, sequences=size.sequences)
        self._size = size
        self._digest = digest
        self._stream = stream
        self._tags: tuple[str, ...] = ()
        if self._route.metered:
            self._tags = marks.tags_of(exchange.headers, body, self._route, given=caller.key.tags)
        self._key = exchange.headers.get(b"idempotency-key", b"").decode("latin-1") if self._route.metered else ""
        self._passage = Passage(
            exchange,
            exchange.route,
            caller,
            model=model,
            metrics=house.metrics,
            keep=bool(self._key),
            note=self._note,
        )
        self._noted = False
        self._asked = False
        """Whether a byte may have gone to a replica that answered nothing certain yet."""

    async def carry_out(self) -> None:
        """Answer the call.

        Raises:
            FabricError: it is refused, or it broke; nothing, or the beginning of a stream, was said.
        """
        self._exchange.tell_free(self._has.free_uhs)
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
                await asyncio.shield(self._note(None, worked=self._asked))
            raise

    async def _note(self, kept: Kept | None, *, worked: bool) -> None:
        """Write down how it ended, before the client hears of it: what it heard is what it would hear again."""
        if self._key:
            self._noted = True
            account_id, repeats = self.caller.account_id, self._house.repeats
            if kept is not None:
                await repeats.finish(account_id, self._key, kept)
            elif worked:
                await repeats.fail(account_id, self._key)
            else:
                await repeats.forget(account_id, self._key)

    async def _run(self) -> None:
        body = bodies.write(self._body)
        for _ in range(TRIES_MAX):
            seat = await self._turn()
            self._passage.served = None
            began_us = accounts.now_us()
            try:
                if seat.is_lost:
                    continue
                answer = await self._ask(seat, body)
                try:
                    await self._passage.pass_on(answer)
                finally:
                    answer.close()
            except NotReached:
                self._passage.served = 0
                seat.avoid()
            else:
                return
            finally:
                seat.leave(tokens=self._passage.served)
                if self._asked and self._route.metered:
                    self._note_generation(seat, began_us)
        raise Unavailable(
            f"none of {TRIES_MAX} replicas of {self.model} could be reached: try again in 1 s",
            code="replicas_unreachable",
        )

    def _note_generation(self, seat: Seat, began_us: int) -> None:
        """What it cost, as far as that is known; who leaves early, and what breaks, asks for it later."""
        booked, refused, cost = self._passage.booked, self._passage.refused, self._passage.charged_uhs
        replica = seat.replica
        one = Generation(
            call_id=self._exchange.call_id,
            account_id=self.caller.account_id,
            key_id=self.caller.key.key_id,
            model=self.model,
            at_us=began_us,
            took_us=accounts.now_us() - began_us,
            streamed=self._stream,
            status=self._exchange.status,
            ended="whole" if booked is not None else "refused" if refused else "broken_off" if cost else "client_gone",
            charged_uhs=int(booked.charged_uhs) if booked is not None else 0 if refused else cost,
            replica_id=replica.replica_id,
            address=replica.address,
            tls_sha256=replica.tls_sha256,
            tags=self._tags,
        )
        if booked is not None:
            one = msgspec.structs.replace(
                one,
                prompt_tokens=booked.prompt_tokens,
                cached_tokens=booked.cached_tokens,
                completion_tokens=booked.completion_tokens,
                reasoning_tokens=booked.reasoning_tokens,
            )
        self._house.noted(self.caller, one)

    # -- the turn ----------------------------------------------------------------------------------------------------------

    async def _turn(self) -> Seat:
        home = self._house.board.home_of(self.model)
        pool, covered = self._house.pools.of(home, self.caller.account_id)
        self._passage.covered = covered
        adapter = self.model if home != self.model else ""
        size = self._size
        if pool.widest and size.choices > pool.widest:
            raise InvalidRequest(
                f"`n` is {size.choices}, a replica of {self.model} writes {pool.widest} answers at once: ask for at most as many",
                code="limit_exceeded", param="n", number=size.choices, limit=pool.widest,
            )  # fmt: skip
        ticket = QueueTicket(
            self.caller.account_id, rank=self.caller.rank, cost=self._cost, sequences=size.sequences, apart=size.choices,
            adapter=adapter,
        )  # fmt: skip
        trail: Trail = ()
        if self._route.metered:
            prompt = fields.prompt_of(self._body, self._route)
            hint = self._body.get("prompt_cache_key")
            apart = f"{self.caller.account_id}/{adapter}/{hint if isinstance(hint, str) else ''}"
            trail = trail_of(prompt, root=sha256(apart.encode("utf-8", "replace")).digest())
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
                self._may_wait(left_s, waited_s=limits.wait_s - left_s)
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

    def _may_wait(self, left_s: float, *, waited_s: float) -> None:
        """Don't wait for what won't come."""
        if left_s <= 0:
            raise Unavailable(
                f"no replica of {self.model} had room within {self._house.limits.wait_s:.0f} s: try again in 10 s",
                code="no_room",
                retry_after_s=10,
            )
        board = self._house.board
        model = board.models.get(self.model)
        for each in (model, board.models.get(board.home_of(self.model))):
            if each is not None and each.state == "failed":
                raise Unavailable(
                    f"{self.model} could not be started, its operator has to mend it: {each.why[:300]}",
                    code="model_failed",
                    retry_after_s=60,
                )
        if waited_s > HOPE_S and (model is None or model.state == "waiting"):
            raise Unavailable(
                f"nobody serves {self.model} now: try again in 10 s, or ask its operator",
                code="nobody_serves",
                retry_after_s=10,
            )

    async def _keep_alive(self) -> None:
        if not self._exchange.begun:
            await self._exchange.begin(200, SSE)
        await self._exchange.more(keep_alive(self._route, self._exchange.headers, self._exchange.call_id, self.model))

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
                seat.replica, method=self._route.method, path=self._route.path, headers=self._headers(seat), body=body
            )
        except NotReached:
            self._asked = False
            raise

    def _headers(self, seat: Seat) -> dict[str, str]:
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
            calls.MODEL: self.model,
            calls.KEY_LIMITED: "1" if self.caller.key.limited else "0",
            calls.TIER_RANK: str(self.caller.key.tier_rank),
            calls.CALL: self._exchange.call_id,
            calls.AT_ONCE: str(max(1, seat.width // self._size.choices)),
            calls.STRICT: "1" if strict else "0",
            calls.COVERED: "1" if self._passage.covered else "0",
            **({calls.TAGS: json.dumps(self._tags)} if self._tags else {}),
        }
