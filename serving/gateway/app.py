"""The gateway as an ASGI application: from a request to whoever answers it.

    route ▸ key ▸ rate ▸ body ▸ model ▸ fields ▸ turn ▸ replica ▸ bytes through ▸ books closed

Everything up to the turn costs the caller nothing. After a byte went to a replica, nothing is sent a second time.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from fabric.api.limits import RateLimit
from fabric.errors import FabricError, Internal, RateLimited, Unavailable
from serving.acceptor import KEY_SHOWN
from serving.gateway import accounts, bodies, bounds, encodings, fields, focus, notices, roles
from serving.gateway.admission import Pools
from serving.gateway.browsers import Origins
from serving.gateway.calling import Calling
from serving.gateway.directory import Board, Directory, QueueLength
from serving.gateway.exchange import ClientGone, Exchange, ReaderStalled, Reading, Receive, Send
from serving.gateway.generations import Generation, Generations
from serving.gateway.keys import Caller, Gatekeeper
from serving.gateway.lookups import look_up
from serving.gateway.metrics import Metrics
from serving.gateway.rates import KeyRates
from serving.gateway.refusals import JSON, Headers, HeadersTooLarge, WrongType
from serving.gateway.repeats import BEAT_S, Repeats
from serving.gateway.request_lines import RequestLines
from serving.gateway.routes import FOCUS, Route, route_of
from serving.gateway.upstream import Upstream
from serving.http_server import Scope
from serving.limits import COUNTED_BYTES_PER_S

STALL_S: Final = 60.0
"""How long a reader may let a piece of its answer wait."""
LOOK_S: Final = 2.0
OPEN_PER_ACCOUNT_MAX: Final = 2_048
"""Requests of one account in hand at one gateway, waiting ones and streams included."""
REPORT_S: Final = 1.0
FRESH_S: Final = 10.0
HEADER_BYTES_MAX: Final = 32 * 1024
_RETRY_S: Final = 0.5
_PARSED_HERE_BYTES: Final = 64 * 1024
"""A larger body is read on another thread: others' streams go on meanwhile."""
_UNPACKED_AT_ONCE: Final = 4
_ID_CHARS_MAX: Final = 512
_log = structlog.get_logger("gateway")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one caller may do."""

    requests_per_s: int = 100
    """For each account, however many keys it makes; twice as many at once."""
    wait_s: float = 600.0
    """How long a request waits for its turn, or for a model to start."""
    quiet_s: float = 5.0
    """How long a stream waits in silence before it begins with keep-alives."""
    keep_alive_s: float = 10.0


class Gateway:
    """One process' application."""

    def __init__(
        self,
        directory: Directory,
        *,
        trust: str,
        repeats_file: Path,
        limits: Limits | None = None,
        gateways: int = 1,
        rate_shares: int = 1,
        origins: Sequence[str] = (),
        name: str = "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire it up.

        Args:
            directory: what the fabric knows.
            trust: the secret that replicas know gateways by.
            repeats_file: where the answers of requests with an `Idempotency-Key` are kept.
            limits: what one caller may do.
            gateways: how many processes share the replicas.
            rate_shares: how many gateways a key's requests are dealt out to.
            origins: whose pages may ask from a browser; `*` = all.
            name: this process, unique among all that ever ran.
            monotonic: seconds.
        """
        self.limits = limits or Limits()
        self.name = name or f"gateway-{secrets.token_hex(8)}"
        self.pools = Pools(gateways=gateways, monotonic=monotonic)
        self.metrics = Metrics()
        self.board = Board()
        self.board_at = -1.0
        self._directory = directory
        self._monotonic = monotonic
        self._keys = Gatekeeper(directory, monotonic=monotonic)
        self._rates = RateLimit(per_s=self.limits.requests_per_s, monotonic=monotonic)
        self._counted = RateLimit(per_s=COUNTED_BYTES_PER_S, monotonic=monotonic)
        self._notices = RateLimit(per_s=notices.PER_S, monotonic=monotonic)
        self._origins = Origins(origins)
        self._key_rates = KeyRates(shares=rate_shares, monotonic=monotonic)
        self.generations = Generations(repeats_file.with_name("generations.sqlite"))
        self._upstream = Upstream(trust=trust)
        self._repeats = Repeats(repeats_file, gateway=self.name)
        self._reading = Reading()
        self._lines = RequestLines(monotonic=monotonic)
        self._unpacking = asyncio.Semaphore(_UNPACKED_AT_ONCE)
        self._open: set[Exchange] = set()
        self._open_by_account: dict[str, int] = {}

    def is_ready(self) -> bool:
        """Whether the fabric told of its replicas lately."""
        return self.board_at >= 0 and self._monotonic() - self.board_at < FRESH_S

    def exposition(self) -> bytes:
        """The metrics, as text."""
        age_s = self._monotonic() - self.board_at if self.board_at >= 0 else -1.0
        return self.metrics.exposition(self.pools, open_requests=len(self._open), board_age_s=age_s)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Gateway"]:
        """Everything that goes on beside the requests, for as long as the context lasts."""
        async with self._upstream, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(work()) for work in (self._follow, self._report, self._sweep, self._beat, self._keep)
            ]
            try:
                yield self
            finally:
                for task in tasks:
                    task.cancel()
        self._repeats.close()
        self.generations.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, call_id=f"c{secrets.token_hex(12)}")
        exchange.answer_headers += [*self._origins.headers(exchange.headers), *_echoed(exchange.headers)]
        self._open.add(exchange)
        model, rank = "", 2
        try:
            calling = await self._admit(exchange)
            if calling is not None:
                model, rank = calling.model, calling.caller.rank
                await calling.carry_out()
        except ClientGone as gone:
            exchange.leave(gone)
        except FabricError as error:
            await self._refuse(exchange, error)
        except asyncio.CancelledError:
            reason = exchange.reason()
            if isinstance(reason, ClientGone | ReaderStalled):
                exchange.leave(reason)
            elif isinstance(reason, FabricError):
                await self._refuse(exchange, reason)
            else:
                await self._refuse(exchange, Unavailable("this gateway is going down: try again", code="going_down"))
                raise
        except Exception:  # noqa: BLE001 - whatever it is, the client hears of it, and the log tells the rest
            _log.exception("failed", call=exchange.call_id)
            await self._refuse(exchange, Internal("the gateway failed: this is our mistake", call=exchange.call_id))
        finally:
            exchange.close()
            self._open.discard(exchange)
            self.metrics.ended(model=model, rank=rank, status=exchange.status)
            self._lines.say(exchange, model)

    # -- who may -----------------------------------------------------------------------------------------------------------

    async def _admit(self, exchange: Exchange) -> Calling | None:
        """Everything before the turn; None: it is answered already."""
        scope = exchange.scope
        _check_headers(scope["headers"])
        if scope["method"] == "OPTIONS" and await self._told_browser(exchange):
            return None
        exchange.route, named = route = route_of(scope["method"], scope["path"])
        if exchange.route.surface == "payments":
            await notices.hand_on(exchange, named, self._directory, self._notices, self._reading)
            return None
        client = scope.get("client")
        caller = await self._keys.caller(exchange.headers, host=client[0] if client else "")
        exchange.showed_key = True
        if KEY_SHOWN in scope and not scope[KEY_SHOWN](caller.account_id):
            raise RateLimited(
                "your account has as many connections open here as it may: close some, or use those that you have",
                code="too_many_connections",
                retry_after_s=1,
            )
        roles.check(exchange.route, caller.key)
        exchange.answer_headers += self._may_ask(caller)
        if exchange.route is FOCUS:
            await focus.hand_on(exchange, named, self._directory)
            return None
        if exchange.route.surface in {"models", "account"}:
            said = await look_up(
                exchange, caller, named, board=self.board, generations=self.generations, upstream=self._upstream
            )
            await exchange.answer(200, [JSON], msgspec.json.encode(said))
            return None
        own = [*self._key_rates.spend(caller.key), *accounts.limit_headers(caller.key)]
        if own:
            told = {name for name, _ in own}
            exchange.answer_headers = [*(each for each in exchange.answer_headers if each[0] not in told), *own]
        body, body_bytes, digest = await self._read(exchange, route[0])
        exchange.watch()
        size = bounds.check(body, exchange.route, body_bytes=body_bytes)
        if not exchange.route.metered:
            self._spend_counted(caller.account_id, body_bytes)
        model = fields.model_of(body)
        has = caller.entitlement(model)
        facts = self.board.models.get(model)
        if exchange.route.metered:
            bounds.check_tools(body, exchange.route, calls_tools=facts is None or facts.calls_tools)
            max_context = facts.max_context if facts is not None else None
            bounds.check_text(body, size, max_context=max_context, body_bytes=body_bytes)
        stream = fields.wants_stream(body, exchange.route)
        fields.rewrite(body, exchange.route)
        return Calling(
            self,
            exchange,
            caller,
            model=model,
            has=has,
            body=body,
            body_bytes=body_bytes,
            size=size,
            digest=digest,
            stream=stream,
        )

    def _spend_counted(self, account_id: str, body_bytes: int) -> None:
        """What is done for nothing is bounded in bytes, not only in requests."""
        try:
            self._counted.spend(account_id, as_many=body_bytes)
        except RateLimited:
            raise RateLimited(
                f"you may have {COUNTED_BYTES_PER_S} bytes a second counted or converted here: try again in 1 s",
                code="too_much_counted", limit=COUNTED_BYTES_PER_S, retry_after_s=1,
            ) from None  # fmt: skip

    async def _read(self, exchange: Exchange, route: Route) -> tuple[bodies.Body, int, bytes]:
        kind = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise WrongType(f"send JSON: `content-type: application/json`, not {kind.decode('latin-1')[:60]!r}")
        encoding = encodings.named(exchange.headers.get(b"content-encoding", b""))
        raw = await exchange.body(self._reading)
        if encoding:
            async with self._unpacking:
                raw = await asyncio.to_thread(encodings.unpacked, raw, encoding)
        body = bodies.parse(raw) if len(raw) <= _PARSED_HERE_BYTES else await asyncio.to_thread(bodies.parse, raw)
        return body, len(raw), route.path.encode() + b"\n" + raw

    def noted(self, caller: Caller, one: Generation) -> None:
        """A call is over: keep what it cost, and count its tokens."""
        self.generations.note(one)
        self._key_rates.used(caller.key, one.prompt_tokens + one.completion_tokens)

    async def _keep(self) -> None:
        while True:
            with _only_said("generations"):
                await self.generations.flush()
            await asyncio.sleep(REPORT_S)

    async def _told_browser(self, exchange: Exchange) -> bool:
        """Answer a browser that asks whether a page of its may; whether it was answered."""
        method = exchange.headers.get(b"access-control-request-method", b"").decode("latin-1")
        exchange.route, _ = route_of(method, exchange.scope["path"])
        told = self._origins.preflight(exchange.headers, method=exchange.route.method)
        if told is None:
            return False
        exchange.answer_headers = [each for each in exchange.answer_headers if each not in told]
        await exchange.begin(204, told)
        await exchange.more(b"", last=True)
        return True

    def _may_ask(self, caller: Caller) -> Headers:
        """Count a request; what its answer says of those that may still come, in OpenAI's headers.

        Raises:
            RateLimited: there were too many.
        """
        self._rates.spend(caller.account_id)
        most, left, full_s = self._rates.left(caller.account_id)
        return [
            (b"x-ratelimit-limit-requests", b"%d" % most),
            (b"x-ratelimit-remaining-requests", b"%d" % left),
            (b"x-ratelimit-reset-requests", b"%.3fs" % full_s),
        ]

    @contextlib.contextmanager
    def one_more_of(self, account_id: str) -> Iterator[None]:
        """Count a request of an account while it is in hand.

        Raises:
            RateLimited: `too_many_open`.
        """
        count = self._open_by_account.get(account_id, 0)
        if count >= OPEN_PER_ACCOUNT_MAX:
            raise RateLimited(
                f"you have {count} requests open here, which is all you may: wait for some to end",
                code="too_many_open",
                limit=OPEN_PER_ACCOUNT_MAX,
            )
        self._open_by_account[account_id] = count + 1
        try:
            yield
        finally:
            self._open_by_account[account_id] -= 1
            if not self._open_by_account[account_id]:
                del self._open_by_account[account_id]

    @property
    def upstream(self) -> Upstream:
        return self._upstream

    @property
    def repeats(self) -> Repeats:
        return self._repeats

    async def _refuse(self, exchange: Exchange, error: FabricError) -> None:
        self.metrics.refused(error.code)
        exchange.ended = error.code
        await exchange.refuse(error)

    # -- beside the requests ---------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Keep the board up to date; while the fabric is away, what was known last goes on."""
        while True:
            with _only_said("board"):
                async for board in self._directory.boards():
                    self.board, self.board_at = board, self._monotonic()
                    self.pools.update(board.replicas)
            await asyncio.sleep(_RETRY_S)

    async def _report(self) -> None:
        while True:
            with _only_said("report"):
                await self._directory.report(self.lines())
            await asyncio.sleep(REPORT_S)

    def lines(self) -> list[QueueLength]:
        """How long the lines are."""
        sums: dict[str, QueueLength] = {}
        for model, _, pool in self.pools.items():
            was = sums.get(model, QueueLength(model, 0, 0, 0))
            oldest_us = max(was.oldest_us, pool.oldest_us())
            sums[model] = QueueLength(model, was.waiting + pool.waiting, was.running + pool.seated, oldest_us)
        return list(sums.values())

    async def _sweep(self) -> None:
        """Let go of readers that stall: they hold a seat that others wait for."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._lines.catch_up()
            stalled = time.monotonic() - STALL_S
            for exchange in tuple(self._open):
                if 0 < exchange.sending_since < stalled:
                    exchange.cut()

    async def _beat(self) -> None:
        while True:
            with _only_said("beat"):
                await self._repeats.beat()
            await asyncio.sleep(BEAT_S)


@contextlib.contextmanager
def _only_said(what: str) -> Iterator[None]:
    """What goes wrong beside the requests must not end them: it is tried again."""
    try:
        yield
    except FabricError as error:
        _log.warning("away", what=what, code=error.code, error=error.message)
    except Exception:  # noqa: BLE001
        _log.exception("failed", what=what)


def _check_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    size = sum([len(name) + len(value) for name, value in headers])
    if size > HEADER_BYTES_MAX:
        raise HeadersTooLarge(f"the headers have {size} bytes, at most {HEADER_BYTES_MAX} may come", bytes=size)


def _echoed(headers: dict[bytes, bytes]) -> Headers:
    """A client's own id for its request, which it finds again in its log."""
    given = headers.get(b"x-client-request-id", b"")
    return [(b"x-client-request-id", given)] if given.isascii() and 0 < len(given) <= _ID_CHARS_MAX else []
