"""Reports of use: split, refused, taken apart, kept; whatever befalls them, each call is charged once or listed as open."""

import asyncio
import random

import msgspec
import pytest

from fabric.errors import FabricError, Internal, PermissionDenied
from serving.calls import Call, Usage
from serving.metering.book import Metering
from serving.metering.call_log import CallLog
from serving.metering.meter import Meter, steady_clock
from serving.metering.reports import first_report
from serving.metering.slices import Payer, Terms
from serving.replica.recovery import settle_left

from .ledger_standin import LedgerStandIn
from .test_meter import Flaky, charge

ANN = Payer("ann")
MANY = 1_063
"""More calls than the ledger takes in one message."""


class Replica:
    """A meter over a file, that is killed and started again."""

    def __init__(self, path, ledger):
        self.path, self.ledger, self.starts, self.clock = path, ledger, 0, steady_clock()

    async def start(self):
        self.starts += 1
        terms = Terms(grant_tokens=8, idle_us=20_000, report_us=30_000, report_calls=40, retry_us=5_000)
        book = Metering(
            name=f"{self.path.stem}.{self.starts}", model="m", accelerator="H100", charge=charge, terms=terms
        )
        while True:
            try:
                outbox = CallLog(self.path)
                break
            except FabricError:  # a thread that syncs has the file for a moment yet
                await asyncio.sleep(0.01)
        self.meter = Meter(book, outbox, self.ledger, clock=self.clock, retry_s=(0.002, 0.02), patience_s=0.3)
        await self.meter.start()
        return self

    def kill(self):
        for task in [*self.meter._sending.values(), self.meter._ticking]:
            task.cancel()
        self.meter.outbox.close()
        self.meter.outbox._file = -1

    async def use(self, *names, payer=ANN):
        for name in names:
            await self.meter.open(name, payer=payer, key_id="", prompt_tokens=10, wants=1)
        for name in names:
            self.meter.end(name, "stop")


@pytest.fixture
def ledger():
    made = LedgerStandIn(charge)
    made.top_up("ann", 10**7)
    return made


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("covered", [False, True])
async def test_however_many_calls_ended_while_the_ledger_was_away_all_are_charged(tmp_path, ledger, restart, covered):
    replica, payer = await Replica(tmp_path / "r.outbox", ledger).start(), Payer("ann", "", covered)
    await replica.use("first", payer=payer)
    names = [f"c{number}" for number in range(MANY)]
    for name in names:
        await replica.meter.open(name, payer=payer, key_id="", prompt_tokens=10, wants=1)
    ledger.reachable = False
    for name in names:
        replica.meter.end(name, "stop")
    if restart:
        replica.kill()
        await replica.start()
    ledger.reachable = True
    assert await replica.meter.close(timeout_s=60)
    assert set(ledger.charged) == {"first", *names}
    assert ledger.free["ann"] == 10**7 - (0 if covered else 10 * (MANY + 1))


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("covered", [False, True])
async def test_a_call_that_is_refused_takes_no_other_with_it(tmp_path, ledger, restart, covered):
    replica, payer = await Replica(tmp_path / "r.outbox", ledger).start(), Payer("ann", "", covered)
    ledger.faulty = {"c7", "c31"}
    names = [f"c{number}" for number in range(50)]
    await replica.use(*names, payer=payer)
    if restart:
        replica.kill()
        await replica.start()
    assert await replica.meter.close(timeout_s=30)
    assert set(ledger.open) == ledger.faulty
    assert set(ledger.charged) == set(names) - ledger.faulty


async def test_what_the_ledger_will_not_even_keep_stays_with_the_replica(tmp_path, ledger):
    """And is told of: through restarts, until the ledger takes it."""
    replica = await Replica(tmp_path / "r.outbox", ledger).start()
    ledger.faulty, ledger.keeps = {"b"}, False
    await replica.use("a", "b", "c")
    assert not await replica.meter.close(timeout_s=1)
    assert set(ledger.charged) == {"a", "c"}
    await replica.start()
    replica.meter.outbox.compact()
    for _ in range(500):
        if replica.meter.unreported():
            break
        await asyncio.sleep(0.01)
    assert replica.meter.unreported() == 1
    replica.kill()
    assert await settle_left(tmp_path, ledger, timeout_s=0.3) == 0
    ledger.keeps = True
    await replica.start()
    assert await replica.meter.close(timeout_s=30, for_good=True)
    assert (set(ledger.open), list(tmp_path.glob("*.outbox"))) == ({"b"}, [])


@pytest.mark.parametrize("error", [PermissionDenied("the replica's key was revoked"), Internal("a bug")])
async def test_use_waits_for_a_door_that_refuses_everybody(tmp_path, ledger, error):
    replica = await Replica(tmp_path / "r.outbox", ledger).start()
    await replica.use("a")
    right, refusals = ledger._travel, [error] * 10

    async def refusing():
        if refusals:
            raise refusals.pop()
        await right()

    ledger._travel = refusing
    assert await replica.meter.close(timeout_s=30)
    assert (set(ledger.charged), ledger.open) == ({"a"}, {})


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_befalls_reports_each_call_is_charged_once_or_listed(tmp_path, seed):
    """Outages, lost answers, refusals, a ledger that keeps nothing for a while, kills."""
    dice = random.Random(seed)
    ledger = Flaky(dice)
    ledger.calls_max, ledger.loses = 30, 0.2
    for account in ("ann", "ben"):
        ledger.top_up(account, 10**7)
    replicas = [await Replica(tmp_path / f"{name}.outbox", ledger).start() for name in "rs"]
    used = []
    for turn in range(12):
        replica = dice.choice(replicas)
        ledger.reachable, ledger.keeps = True, dice.random() < 0.5
        names = [f"c{turn}.{number}" for number in range(dice.randint(1, 60))]
        payer = Payer(dice.choice(["ann", "ben"]), "", dice.random() < 0.2)
        for name in names:
            try:
                await replica.meter.open(name, payer=payer, key_id="", prompt_tokens=10, wants=1)
            except FabricError:
                continue
            used.append(name)
        ledger.faulty |= {name for name in names if dice.random() < 0.1}
        ledger.reachable = dice.random() < 0.5
        for name in [name for name in names if name in replica.meter.book.calls]:
            replica.meter.end(name, "stop")
        await asyncio.sleep(0.05 * dice.random())
        if dice.random() < 0.4:
            replica.kill()
            await replica.start()
    ledger.reachable = ledger.keeps = True
    ledger.loses = 0.0
    for replica in replicas:
        assert await replica.meter.close(timeout_s=60)
    assert set(ledger.charged) | set(ledger.open) == set(used)
    assert not set(ledger.charged) & set(ledger.open)
    assert set(ledger.open) <= ledger.faulty
    ledger.check()


def test_a_message_is_bounded_in_calls_and_in_bytes():
    def call(name):
        return Call(name, "ann", "", "m", "H100", Usage(1), 0, 0, "stop")

    few = [call("x" * 1_000) for _ in range(10)]
    assert len(first_report(few, calls_max=4, bytes_max=10**6)) == 4
    assert len(first_report(few, calls_max=100, bytes_max=3_600)) == 3
    assert len(first_report(few, calls_max=100, bytes_max=1)) == 1, "one too large by itself is still said"
    assert first_report([], calls_max=100, bytes_max=1) == ()
    marked = [msgspec.structs.replace(call("x"), tags=("team=" + "x" * 995,)) for _ in range(10)]
    assert len(first_report(marked, calls_max=100, bytes_max=3_600)) == 3
