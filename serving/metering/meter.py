"""The meter at work: carries the book's messages to the ledger, and waits for answers where a call has to.

It joins the pure book (`serving.metering.book`), the durable outbox and a ledger. A message is repeated until it is answered;
one hold has at most one under way. While the ledger can't be reached, calls go on within what is held. It knows no
engine: an engine opens a call, says what it produced before that leaves, and closes it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

import structlog

from fabric.errors import FabricError, InsufficientTokens, Internal, NotFound, Unavailable
from fabric.units import format_ct
from serving.calls import Call, Ended, Granted, SliceLedger, Usage
from serving.metering.book import Metering
from serving.metering.call_log import CallLog
from serving.metering.payer import SignedPayer
from serving.metering.slices import Ask, OpenCall, Payer, Short

_TICK_S: Final = 0.1
_RETRY_S: Final = (0.05, 2.0)
"""First and longest pause before a message is repeated."""
_FAILURES_MAX: Final = 20
"""A message that the ledger fails over so often in a row is taken apart, like one that it refuses."""
_COMPLAIN_US: Final = 60_000_000
KEY_LIMIT: Final = "key_limit_reached"
RESETTING_LIMIT: Final = "spending_limit_reached"
"""The ledger's words for it, and the client's."""
PATIENCE_S: Final = 5.0
"""How long calls wait for a ledger that can't be reached, from when that began: later ones are told at once."""
_LOOK_S: Final = 0.5
"""How often a call that waits looks whether the ledger is known to be away by now."""

_log = structlog.get_logger()


class Meter:
    """One replica's meter, within one event loop. `start` it, and `close` it when its calls have ended.

    Args:
        retry_s: first and longest pause before a message is repeated.
        patience_s: how long calls wait for a ledger that can't be reached, from when that began.
    """

    def __init__(
        self,
        book: Metering,
        outbox: CallLog,
        ledger: SliceLedger,
        *,
        clock: Callable[[], int] | None = None,
        retry_s: tuple[float, float] = _RETRY_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.book, self.outbox = book, outbox
        self.produced = Usage(0)
        """All that calls were recorded with since the start, for reconciling with the engine's counters."""
        self.calls_ended = 0
        self._ledger = ledger
        self._clock = clock or steady_clock()
        self._retry_s, self._patience_s = retry_s, patience_s
        self._away_at: float | None = None
        """Since when no message has reached the ledger; None while they do."""
        self._sending: dict[tuple[str, int], asyncio.Task[FabricError | None]] = {}
        self._known_holds: set[str] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._complain_at_us = 0

    async def start(self) -> None:
        """Begin: first of all what an earlier process left unsettled."""
        for ask in self.outbox.unsettled:
            self._known_holds.add(ask.hold_id)
            self.book.recover(ask)
        self._send_due()
        self._ticking = asyncio.create_task(self._tick())

    def check(self) -> None:
        """Raises `Internal` where the meter's own work has ended: the replica must be started anew, from its outbox."""
        if self._ticking is not None and self._ticking.done() and not self._ticking.cancelled():
            raise Internal(f"the meter stopped: {self._ticking.exception()!r}", code="meter_stopped")

    async def close(self, *, timeout_s: float = 10.0, for_good: bool = False) -> bool:
        """Give every slice back; whether the ledger knows all of it. What it doesn't stays in the outbox.

        `for_good`: the outbox is removed where nothing stays in it; nobody comes back to it.
        """
        deadline = time.monotonic() + timeout_s
        for ask in self.book.leave(self._clock()):
            self._send(ask)
        while (self.book.unsettled() or self._sending) and time.monotonic() < deadline:
            self._send_due()
            await asyncio.sleep(0.01)
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking
        settled = not self.book.unsettled() and not self._sending
        for task in self._sending.values():
            task.cancel()
        await asyncio.gather(*self._sending.values(), return_exceptions=True)
        await asyncio.to_thread(self.outbox.sync)
        self.outbox.close(remove=settled and for_good)
        return settled

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def open(
        self, call_id: str, *, payer: Payer, key_id: str, prompt_tokens: int, wants: int, tags: tuple[str, ...] = ()
    ) -> OpenCall:
        """Admit a call, asking the ledger where the slice is too small.

        Raises:
            InsufficientTokens: the account, or the key's limit, doesn't cover the prompt and one token.
            Unavailable: the ledger can't be reached, or calls can't be recorded.
        """
        call = await self._covered(call_id, payer=payer, key_id=key_id, prompt_tokens=prompt_tokens, wants=wants)
        call.tags = tags
        self._record(call)
        return call

    async def afford(self, ticket: SignedPayer) -> None:
        """Let pass who could pay for a prompt of one token: nothing is read, rendered or counted for anybody else.

        Raises:
            InsufficientTokens: as `open`.
            Unavailable: as `open`.
        """
        call_id = f"{ticket.call_id}/afford"
        await self._covered(call_id, payer=ticket.payer, key_id=ticket.key_id, prompt_tokens=1, wants=0)
        self.book.abandon(call_id)

    async def _covered(self, call_id: str, *, payer: Payer, key_id: str, prompt_tokens: int, wants: int) -> OpenCall:
        deadline = time.monotonic() + self._patience_s
        while True:
            now = self._clock()
            got = self.book.open(
                call_id, payer=payer, key_id=key_id, prompt_tokens=prompt_tokens, wants=wants, now_us=now
            )
            if isinstance(got, OpenCall):
                return got
            asked = set(self._sending)
            ask = self.book.need(payer, got, now)
            error = await self._answer_to(ask, deadline)
            if error is not None and not isinstance(error, InsufficientTokens | NotFound):
                raise error
            if _name(ask) not in asked and (error is not None or self.book.is_final(ask)):
                again = self.book.open(
                    call_id, payer=payer, key_id=key_id, prompt_tokens=prompt_tokens, wants=wants, now_us=self._clock()
                )
                if isinstance(again, OpenCall):
                    return again
                raise insufficient(again, prompt_tokens=prompt_tokens, said=error)

    def advance(self, call_id: str, *, completion: int, cached: int, reasoning: int = 0) -> int:
        """What the engine has produced in all; how many of its tokens are paid, and recorded so."""
        call = self.book.calls[call_id]
        paid = self.book.advance(
            call_id, completion=completion, cached=cached, reasoning=reasoning, now_us=self._clock()
        )
        self.outbox.moved(call_id, call.usage, packages=call.limits)
        return paid

    async def extend(self, call_id: str, *, completion: int, cached: int, reasoning: int = 0) -> int:
        """As `advance`, but asks the ledger for what is missing: fewer than `completion` is its last word.

        Raises:
            Unavailable: the ledger can't be reached, and what was held is used up.
        """
        deadline = time.monotonic() + self._patience_s
        while True:
            paid = self.advance(call_id, completion=completion, cached=cached, reasoning=reasoning)
            if paid >= completion:
                return paid
            asked = set(self._sending)
            ask = self.book.need_more(call_id, completion=completion, now_us=self._clock())
            if ask is None:
                return paid
            error = await self._answer_to(ask, deadline)
            if isinstance(error, Unavailable):
                raise error
            if _name(ask) not in asked and (error is not None or self.book.is_final(ask)):
                return self.advance(call_id, completion=completion, cached=cached, reasoning=reasoning)

    def end(self, call_id: str, ended: Ended) -> tuple[Call, int]:
        """Close a call; the call as it will be settled, and its charge in µHs."""
        call = self.book.close(call_id, ended=ended, now_us=self._clock())
        self.outbox.closed(call)
        self.calls_ended += 1
        one, all_of_them = call.usage, self.produced
        self.produced = Usage(
            all_of_them.prompt_tokens + one.prompt_tokens,
            all_of_them.cached_tokens + one.cached_tokens,
            all_of_them.completion_tokens + one.completion_tokens,
            all_of_them.reasoning_tokens + one.reasoning_tokens,
        )
        return call, self.book.charge_of(call)

    def _record(self, call: OpenCall) -> None:
        hold_id = call.piece.hold_id
        if hold_id not in self._known_holds:  # a covered account's, of which the ledger was not asked
            self._known_holds.add(hold_id)
            self.outbox.held(Ask("record", hold_id, call.payer, 0))
        book = self.book
        begun = book.told(call, "error", at_us=call.started_at_us)
        try:
            self.outbox.began(hold_id, begun)
        except Unavailable:
            book.abandon(call.call_id)
            raise

    # -- messages ------------------------------------------------------------------------------------------------------

    async def _answer_to(self, ask: Ask, deadline: float) -> FabricError | None:
        """Send, or wait for the answer to what is under way. The error that the ledger answered with, if it did."""
        sending = self._sending.get(_name(ask)) or self._send(ask)
        while True:
            until = deadline if self._away_at is None else min(deadline, self._away_at + self._patience_s)
            left_s = max(0.0, until - time.monotonic())
            if (await asyncio.wait((sending,), timeout=min(left_s, _LOOK_S)))[0]:
                return sending.result()
            if left_s <= 0:
                raise Unavailable(
                    "the ledger can't be reached (the fabric's gate is away, hangs, or is beyond a network that is), and what"
                    " is held for this account is used up: try again in a moment",
                    code="ledger_unreachable",
                )

    def unreported(self) -> int:
        """Ended calls that the ledger should have heard of long since."""
        return self.book.unreported(self._clock())

    def _send_due(self) -> None:
        for ask in self.book.due(self._clock()):
            self._send(ask)

    def _send(self, ask: Ask) -> asyncio.Task[FabricError | None]:
        if ask.kind != "keep":
            self._known_holds.add(ask.hold_id)
            self.outbox.held(ask)
        task = asyncio.create_task(self._deliver(ask))
        self._sending[_name(ask)] = task
        task.add_done_callback(lambda _: self._sending.pop(_name(ask), None))
        return task

    async def _deliver(self, ask: Ask) -> FabricError | None:
        pause_s, longest_s = self._retry_s
        failures = 0
        while True:
            try:
                granted = await self._tell(ask)
            except FabricError as error:
                failures += type(error) is Internal
                self._away_at = (self._away_at or time.monotonic()) if isinstance(error, Unavailable) else None
                if not _is_final_word(error, ask) and failures < _FAILURES_MAX:
                    self._complain(ask, error)
                    await asyncio.sleep(pause_s)
                    pause_s = min(longest_s, 2 * pause_s)
                    continue
                self._refused(ask, error)
                return error
            except Exception as error:  # noqa: BLE001 - the ledger may have heard: no message is dropped, whatever it was
                _log.warning("a message to the ledger failed", kind=ask.kind, hold=ask.hold_id, why=repr(error))
                await asyncio.sleep(self._retry_s[1])
                continue
            self._away_at = None
            self.book.granted(ask, granted, now_us=self._clock())
            over = ask.kind == "settle" or (ask.kind == "record" and not self.book.knows(ask.hold_id))
            self.outbox.acknowledged(ask, over=over)
            if over:
                self._known_holds.discard(ask.hold_id)
            return None

    async def _tell(self, ask: Ask) -> Granted:
        ledger, account_id, terms = self._ledger, ask.payer.account_id, self.book.terms
        match ask.kind:
            case "authorize":
                return await ledger.authorize(
                    hold_id=ask.hold_id,
                    account_id=account_id,
                    key_id=ask.payer.key_id or None,
                    model=self.book.model,
                    accelerator=self.book.accelerator,
                    amount_uhs=ask.amount_uhs,
                    minimum_uhs=ask.minimum_uhs,
                    ttl_us=terms.ttl_us,
                    wanted=ask.wanted,
                )
            case "update":
                return await ledger.update(
                    hold_id=ask.hold_id,
                    account_id=account_id,
                    seq=ask.seq,
                    calls=ask.calls,
                    more_uhs=ask.amount_uhs,
                    minimum_uhs=ask.minimum_uhs,
                    ttl_us=terms.ttl_us,
                    wanted=ask.wanted,
                )
            case "settle":
                await ledger.settle(hold_id=ask.hold_id, account_id=account_id, seq=ask.seq, calls=ask.calls)
            case "record":
                await ledger.record(account_id=account_id, calls=ask.calls)
            case "keep":
                (call,) = ask.calls
                await ledger.keep(
                    hold_id=ask.hold_id, account_id=account_id, call=call, code=ask.code, reason=ask.reason
                )
        return Granted(0, final=False)

    def _refused(self, ask: Ask, error: FabricError) -> None:
        nothing_to_say = ask.kind == "settle" and not ask.calls
        if nothing_to_say:  # a hold that the ledger doesn't know: it was never granted
            self.book.granted(ask, Granted(0, final=False), now_us=self._clock())
            self.outbox.acknowledged(ask, over=True)
            return
        gone = not isinstance(error, InsufficientTokens)
        self.book.refused(ask, gone=gone, now_us=self._clock(), code=error.code, reason=str(error))
        if ask.kind == "authorize":
            self.outbox.forget(ask.hold_id)
            self._known_holds.discard(ask.hold_id)
        if gone:
            _log.warning(
                "the ledger refused",
                kind=ask.kind,
                hold=ask.hold_id,
                calls=[call.call_id for call in ask.calls[:1]] if len(ask.calls) == 1 else len(ask.calls),
                code=error.code,
                why=str(error),
            )

    def _complain(self, ask: Ask, error: FabricError) -> None:
        """Use that can't be reported is told of, now and then: what holds it up may be for an operator to mend."""
        if ask.calls and self._clock() >= self._complain_at_us:
            self._complain_at_us = self._clock() + _COMPLAIN_US
            _log.warning(
                "use is not reported yet", kind=ask.kind, hold=ask.hold_id, calls=len(ask.calls), why=str(error)
            )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._send_due()
            try:
                await asyncio.to_thread(self.outbox.sync)
            except OSError as error:
                _log.warning("the outbox could not be put on the disk", why=str(error))


def _name(ask: Ask) -> tuple[str, int]:
    return (ask.calls[0].call_id if ask.kind == "keep" else ask.hold_id), ask.seq


def insufficient(short: Short, *, prompt_tokens: int, said: FabricError | None) -> InsufficientTokens:
    """What the client is told before anything was produced: number, limit, remedy."""
    needs, free, within_key = short.need_uhs + short.free_uhs, short.free_uhs, short.within_key
    if said is not None and said.code == RESETTING_LIMIT:
        return InsufficientTokens(said.message, code=said.code, **said.facts)
    if said is not None:
        within_key = said.code == KEY_LIMIT
        told = said.facts.get("left_uhs" if within_key else "free_uhs")
        free += told if isinstance(told, int) else 0
    missing = format_ct(max(1, needs - free), decimals=8, round_up=True)
    remedy = (
        "left of this key's limit: use one with a higher limit" if within_key else f"free: top up {missing} or more"
    )
    return InsufficientTokens(
        f"this request needs {format_ct(needs, decimals=8, round_up=True)} compute tokens for its {prompt_tokens} prompt"
        f" tokens and a first answer token, {format_ct(free, decimals=8)} are {remedy}, or shorten the prompt",
        code=KEY_LIMIT if within_key else None,
        needed_uhs=needs,
        free_uhs=free,
        prompt_tokens=prompt_tokens,
    )


def _is_final_word(error: FabricError, ask: Ask) -> bool:
    """Whether saying the same again can't change the answer. Then a report is taken apart, and never given up. A key that
    counts no more is for the operator to renew: what is used is reported as soon as it is.
    """
    if error.http_status in {401, 403, 429, 500, 503}:
        return error.http_status in {401, 403} and not ask.calls and ask.kind in {"authorize", "update"}
    return True


def steady_clock() -> Callable[[], int]:
    """Microseconds since the epoch that never go back nor leap: the wall clock at the start, and what went by since."""
    ahead = time.time_ns() - time.monotonic_ns()
    return lambda: (time.monotonic_ns() + ahead) // 1_000
