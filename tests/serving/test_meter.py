"""The meter at work on an engine that is a counter: many accounts and streams, a ledger that fails, restarts."""

import asyncio
import contextlib
import random
from collections import Counter

import msgspec
import pytest

from fabric.errors import Conflict, InsufficientTokens, Internal, Unavailable
from serving.metering.book import Metering
from serving.metering.call_log import CallLog
from serving.metering.meter import Meter
from serving.metering.slices import Payer, Terms
from serving.replica.recovery import settle_left

from .ledger_standin import LedgerStandIn

S = 1_000_000


def charge(usage):
    return usage.prompt_tokens - usage.cached_tokens + 10 * usage.completion_tokens


class Replica:
    """A meter that can be killed: what it had in memory is gone, its outbox stays."""

    def __init__(self, path, ledger, clock):
        self.path, self.ledger, self.clock, self.starts = path, ledger, clock, 0
        self.meter = None

    async def start(self):
        self.starts += 1
        terms = Terms(grant_tokens=8, idle_us=20_000, report_us=30_000)
        book = Metering(
            name=f"{self.path.name}.{self.starts}", model="m", accelerator="H100", charge=charge, terms=terms
        )
        self.meter = Meter(
            book, CallLog(self.path), self.ledger, clock=self.clock, retry_s=(0.002, 0.02), patience_s=0.3
        )
        await self.meter.start()
        return self

    def kill(self):
        for task in [*self.meter._sending.values(), self.meter._ticking]:
            task.cancel()
        self.meter.outbox.close()
        self.meter.outbox._file = -1  # a number that the next file could get
        self.meter.book.calls.clear()
        self.meter._send = _dead


def _dead(ask):
    raise Unavailable("its replica was killed")


class Flaky(LedgerStandIn):
    """Loses requests and answers."""

    def __init__(self, dice, **said):
        super().__init__(charge, **said)
        self.dice, self.loses = dice, 0.0

    async def _travel(self):
        await asyncio.sleep(self.dice.random() * 0.002)
        if self.dice.random() < self.loses:
            raise Unavailable("lost on the way there")

    async def authorize(self, **said):
        return await self._answered(super().authorize(**said))

    async def update(self, **said):
        return await self._answered(super().update(**said))

    async def settle(self, **said):
        return await self._answered(super().settle(**said))

    async def _answered(self, doing):
        answer = await doing
        if self.dice.random() < self.loses:
            raise Unavailable("lost on the way back")
        return answer


async def started(replica):
    """A thread that syncs may have the file for a moment yet, which a killed process has not."""
    while True:
        try:
            return await replica.start()
        except Conflict:
            await asyncio.sleep(0.01)


async def stream(replica, call_id, account, *, prompt, wants, dice, delivered):
    """One call: outputs of one to four tokens; the client leaves now and then."""
    meter = replica.meter
    await meter.open(
        call_id, payer=Payer(account), key_id="k", prompt_tokens=prompt, wants=wants, tags=(f"call={call_id}",)
    )
    delivered[call_id] = 0
    ended = "error"
    try:
        total = 0
        while total < wants:
            await asyncio.sleep(0)
            total = min(wants, total + dice.randint(1, 4))
            paid = meter.advance(call_id, completion=total, cached=0)
            if paid < total:
                paid = await meter.extend(call_id, completion=total, cached=0)
            delivered[call_id] = min(paid, total)
            if paid < total:
                ended = "balance_exhausted"
                return
            if dice.random() < 0.01:
                ended = "client_gone"
                return
        ended = "length"
    finally:
        if call_id in meter.book.calls:
            meter.end(call_id, ended)


@pytest.mark.parametrize("seed", range(4))
async def test_many_streams_through_losses_and_kills_settle_to_the_token(tmp_path, seed):
    dice = random.Random(seed)
    now = [S]
    ledger = Flaky(dice, clock=lambda: now[0])
    ledger.loses = 0.15
    accounts = [f"a{n}" for n in range(12)]
    for account in accounts:
        ledger.top_up(account, dice.choice([0, 200, 3_000, 10**6]))
    replicas = [await Replica(tmp_path / f"r{n}", ledger, lambda: now[0]).start() for n in range(3)]
    delivered, outcomes = {}, Counter()

    async def caller(number):
        for turn in range(5):
            replica = dice.choice(replicas)
            try:
                await stream(
                    replica,
                    f"c{number}.{turn}",
                    dice.choice(accounts),
                    prompt=dice.randint(1, 60),
                    wants=dice.randint(1, 120),
                    dice=dice,
                    delivered=delivered,
                )
                outcomes["served"] += 1
            except InsufficientTokens:
                outcomes["refused"] += 1
            except (
                Unavailable,
                KeyError,
                OSError,
                ValueError,
                asyncio.CancelledError,
            ):  # ValueError: a mapping that is closed
                outcomes["lost with its replica"] += 1

    async def killer():
        for _ in range(3):
            await asyncio.sleep(0.05)
            victim = dice.choice(replicas)
            victim.kill()
            await started(victim)

    async def clock():
        while True:
            now[0] += 5_000
            ledger.check()
            await asyncio.sleep(0.002)

    ticking = asyncio.create_task(clock())
    await asyncio.gather(killer(), *(caller(number) for number in range(30)))
    ledger.loses = 0.0
    for replica in replicas:
        assert await replica.meter.close(timeout_s=10)
    ticking.cancel()
    assert outcomes["served"] > 20
    ledger.check()
    for account in accounts:
        assert ledger.held(account) == 0
        assert ledger.free[account] >= 0
    for call_id, tokens in delivered.items():
        settled = ledger.calls[call_id].usage.completion_tokens
        assert tokens <= settled <= tokens + 4, call_id  # a kill may fall between the record and the client
        assert ledger.calls[call_id].tags == (f"call={call_id}",)
    assert all(charge(ledger.calls[call_id].usage) == uhs for call_id, uhs in ledger.charged.items())


async def test_while_the_ledger_is_away_a_call_goes_on_within_what_is_held_and_then_says_why(tmp_path):
    ledger = LedgerStandIn(charge)
    ledger.top_up("ann", 10_000)
    replica = await Replica(tmp_path / "r", ledger, lambda: S).start()
    meter = replica.meter
    call = await meter.open("c", payer=Payer("ann"), key_id="", prompt_tokens=10, wants=10_000)
    ledger.reachable = False
    held = call.piece.held_uhs
    affordable = (held - 10) // 10
    assert meter.advance("c", completion=affordable, cached=0) >= affordable
    with pytest.raises(Unavailable, match="can't be reached"):
        await meter.extend("c", completion=affordable + 50, cached=0)
    meter.end("c", "error")
    ledger.reachable = True
    assert await meter.close(timeout_s=5)
    assert ledger.calls["c"].usage.completion_tokens == affordable


async def test_once_the_ledger_is_known_to_be_away_calls_are_told_at_once(tmp_path):
    """Those that came first have waited for it; those that follow, one after the other, don't."""
    ledger = LedgerStandIn(charge)
    for number in range(30):
        ledger.top_up(f"a{number}", 10_000)
    meter = (await Replica(tmp_path / "r", ledger, lambda: S).start()).meter
    meter._patience_s = 2.0
    ledger.reachable = False
    async with asyncio.timeout(30):
        for number in range(30):
            with pytest.raises(Unavailable, match="can't be reached"):
                await meter.open(f"c{number}", payer=Payer(f"a{number}"), key_id="", prompt_tokens=10, wants=10)
    ledger.reachable = True
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(Unavailable):
                await meter.open("last", payer=Payer("a1"), key_id="", prompt_tokens=10, wants=10)
                break
            await asyncio.sleep(0.01)
    meter.end("last", "stop")
    assert await meter.close(timeout_s=5)


async def test_a_refusal_names_the_number_the_limit_and_the_remedy(tmp_path):
    ledger = LedgerStandIn(charge)
    ledger.top_up("ann", 15)
    meter = (await Replica(tmp_path / "r", ledger, lambda: S).start()).meter
    with pytest.raises(InsufficientTokens, match="top up") as refused:
        await meter.open("c", payer=Payer("ann"), key_id="", prompt_tokens=10, wants=9)
    assert refused.value.facts == {"needed_uhs": 20, "free_uhs": 15, "prompt_tokens": 10}
    assert await meter.close()
    assert ledger.free["ann"] == 15


class WithLimit(LedgerStandIn):
    """Of a key whose limit leaves little of what the account has: it says so with a last grant, or in place of one."""

    def __init__(self, left):
        super().__init__(charge)
        self.left = left

    async def authorize(self, *, amount_uhs, minimum_uhs, **said):
        if minimum_uhs > self.left:
            raise InsufficientTokens(
                "this key has so much left", code="key_limit_reached", needed_uhs=minimum_uhs, left_uhs=self.left
            )
        found = await super().authorize(amount_uhs=min(amount_uhs, self.left), minimum_uhs=minimum_uhs, **said)
        return msgspec.structs.replace(found, final=True, free_uhs=0, within_key=True)

    async def update(self, *, more_uhs, **said):
        return msgspec.structs.replace(await super().update(more_uhs=0, **said), final=True, within_key=True)


@pytest.mark.parametrize("left", [15, 25])
async def test_a_refusal_tells_a_keys_limit_from_an_account_that_has_no_more(tmp_path, left):
    ledger = WithLimit(left)
    ledger.top_up("ann", 10_000)
    payer = Payer("ann", "k")
    meter = (await Replica(tmp_path / "r", ledger, lambda: S).start()).meter
    if left > 20:
        await meter.open("first", payer=payer, key_id="k", prompt_tokens=10, wants=1)
    with pytest.raises(InsufficientTokens, match="left of this key's limit") as refused:
        await meter.open("c", payer=payer, key_id="k", prompt_tokens=10, wants=9)
    assert "top up" not in refused.value.message
    assert refused.value.code == "key_limit_reached"
    assert refused.value.facts == {"needed_uhs": 20, "free_uhs": left % 20, "prompt_tokens": 10}
    if left > 20:
        meter.end("first", "stop")
    assert await meter.close()


async def test_on_a_full_disk_no_call_begins_and_nothing_stays_bound(tmp_path):
    ledger = LedgerStandIn(charge)
    ledger.top_up("ann", 10_000)
    meter = (await Replica(tmp_path / "r", ledger, lambda: S).start()).meter

    def full(hold_id, call):
        raise Unavailable("no space", code="outbox_unwritable")

    meter.outbox.began = full
    with pytest.raises(Unavailable, match="no space"):
        await meter.open("c", payer=Payer("ann"), key_id="", prompt_tokens=10, wants=9)
    assert meter.book.exposure_uhs()[0] == 0
    assert await meter.close()
    assert (ledger.free["ann"], ledger.calls) == (10_000, {})


async def test_who_starts_on_a_node_settles_what_others_left_there_and_touches_no_living_one(tmp_path):
    ledger = LedgerStandIn(charge)
    ledger.top_up("ann", 10_000)
    dead = await Replica(tmp_path / "dead.outbox", ledger, lambda: S).start()
    await dead.meter.open("c", payer=Payer("ann"), key_id="", prompt_tokens=10, wants=9)
    dead.meter.advance("c", completion=4, cached=0)
    dead.kill()
    alive = await Replica(tmp_path / "alive.outbox", ledger, lambda: S).start()
    await alive.meter.open("d", payer=Payer("ann"), key_id="", prompt_tokens=10, wants=9)
    assert await settle_left(tmp_path, ledger) == 1
    assert (ledger.charged, [path.name for path in tmp_path.glob("*.outbox")]) == ({"c": 50}, ["alive.outbox"])
    alive.meter.end("d", "stop")
    assert await alive.meter.close()
    assert ledger.free["ann"] == 10_000 - 50 - 10


async def test_a_message_that_fails_for_whatever_reason_is_sent_again(tmp_path):
    ledger = LedgerStandIn(charge)
    ledger.top_up("ann", 10_000)
    meter = (await Replica(tmp_path / "r", ledger, lambda: S).start()).meter
    right, failures = ledger.authorize, ["once", "twice"]

    async def wrong(**said):
        if failures:
            raise ValueError(failures.pop())
        return await right(**said)

    ledger.authorize = wrong
    await meter.open("c", payer=Payer("ann"), key_id="", prompt_tokens=10, wants=9)
    meter.end("c", "stop")
    assert await meter.close()
    assert ledger.charged == {"c": 10}


async def test_a_meter_that_stopped_working_says_so(tmp_path):
    meter = (await Replica(tmp_path / "r", LedgerStandIn(charge), lambda: S).start()).meter
    meter.check()
    meter.book.due = lambda now_us: 1 / 0
    await asyncio.sleep(0.3)
    with pytest.raises(Internal, match="ZeroDivisionError"):
        meter.check()
    meter.outbox.close()
