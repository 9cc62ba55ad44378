"""A desk and its journal's writer in a process that SIGKILL ends between every two steps: each payment is booked and refunded once."""

import asyncio
import os
import signal
import sys
import time

import msgspec
import pytest

from fabric.clock import SteadyClock
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.payment_events import AskPayment, RefundPayment
from fabric.gate.questions import PaymentsOf
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.writer import Writer
from fabric.payments.alipay import Alipay
from fabric.payments.by_hand import Operator
from fabric.payments.desk import PaymentDesk
from tests.gate.world import CONFIGURE, S
from tests.payments.alipay_stand_in import APP_ID, AlipayStandIn, pem_of, public_of
from tests.payments.conftest import PRICE, TOKENS

ASK = AskPayment(payment_id="p1", account_id="ada", provider="alipay", amount_uhs=TOKENS, request_id="r1")
REFUND = RefundPayment(payment_id="p1", account_id="ada", reason="asked", request_id="r2")
PAYS, HEARS = range(1, 6), range(1, 9)
"""Its steps: asked, started, said to be started; heard, taken back, refunded there, said to be refunded; before and after each."""
FEW = {("pays", 3), ("hears", 2), ("hears", 4), ("hears", 6), ("hears", 8)}


async def carried_out(_):
    pass


class Life:
    """From opening the journal on; at a chosen step it is killed."""

    def __init__(self, path, api, dies_at=0):
        self.path, self.api, self.dies_at, self.steps = path, api, dies_at, 0
        self.gate = None

    def step(self):
        self.steps += 1
        if self.steps == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    async def decide(self, events):
        self.step()
        outcomes = await self.writer.submit(events)
        self.step()
        return outcomes

    async def ask(self, question):
        return self.writer.core.ask(question, time.time_ns() // 1_000)

    async def live(self, work):
        self.writer = Writer(SqliteJournal(self.path), restore=Gate.restore, clock=SteadyClock(), carry_out=carried_out)
        await self.writer.start()
        await self.writer.submit(
            [
                msgspec.structs.replace(CONFIGURE, payments="alipay"),
                OpenAccount(account_id="ada", name="", plan="starter", request_id="open"),
            ]
        )
        taker = Taker(self)
        desk = PaymentDesk(self.decide, self.ask, (taker, Operator(lambda: 0)), now_us=lambda: time.time_ns() // 1_000)
        await work(self, desk)
        self.gate = self.writer.core
        self.gate.check()
        await self.writer.close()


class Taker(Alipay):
    """Alipay, with a step before and after each time that it is asked to pay back."""

    def __init__(self, life):
        super().__init__(
            app_id=APP_ID,
            private_key=pem_of(life.api.ours),
            alipay_public_key=public_of(life.api.theirs),
            notify_url="https://op.example/payments/alipay",
            return_url="https://op.example",
            now_us=lambda: time.time_ns() // 1_000,
            gateway=life.api.url,
        )
        self.life = life

    async def start(self, payment, *, before):
        started = await super().start(payment, before=before)
        self.life.step()
        return started

    async def refund(self, payment, refund):
        self.life.step()
        said = await super().refund(payment, refund)
        self.life.step()
        return said


async def pays(life, desk):
    """As a customer's program does that asks again with the same request id."""
    await life.decide([ASK])
    await desk.link("ada", "p1")


def hears(notice):
    async def work(life, desk):
        await desk.hear("alipay", {}, notice)
        await life.decide([REFUND])
        await desk.carry_on(at_once=True)

    return work


def lives(life, work):
    """In a process of its own, whether it was killed."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            asyncio.run(life.live(work))
        finally:
            os._exit(0 if life.gate is not None else 1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.fixture(scope="module")
def stand_in():
    made = AlipayStandIn()
    yield made
    made.close()


KILLS = [("pays", at) for at in PAYS] + [("hears", at) for at in HEARS]


@pytest.mark.parametrize(
    ("phase", "at"), [pytest.param(*kill, marks=() if kill in FEW else pytest.mark.soak) for kill in KILLS]
)
def test_killed_by_a_signal_it_is_paid_and_refunded_once(tmp_path, stand_in, phase, at):
    api, path = stand_in, tmp_path / "journal.sqlite"
    api.trades, api.refunds, api.rows = {}, {}, []
    if phase == "pays":
        assert lives(Life(path, api, at), pays), "it has so many steps"
    assert not lives(Life(path, api), pays)
    form = asyncio.run(Taker(Life(path, api)).start(view(path), before=None))
    notice = api.pays(api.opens(form.url))
    if phase == "hears":
        assert lives(Life(path, api, at), hears(notice)), "it has so many steps"
    assert not lives(Life(path, api), hears(notice))
    gate = replayed(path)
    (payment,) = gate.state.till.payments.values()
    money = gate.state.book.money_microcny
    assert (payment.state, payment.refunded_microcny, len(payment.refunds)) == ("refunded", PRICE, 1)
    assert (money["cash"], money["revenue"], money.get("suspense", 0)) == (0, 0, 0)
    assert (len(api.refunds), api.trades["p1"]["back"]) == (1, PRICE // 10_000)
    assert gate.state.book.lots[payment.lot_id].voided_uhs == TOKENS


def replayed(path):
    async def found():
        writer = Writer(SqliteJournal(path), restore=Gate.restore, clock=SteadyClock(), carry_out=carried_out)
        await writer.start(replay_from=0)
        gate = writer.core
        await writer.close()
        return gate

    return asyncio.run(found())


def view(path):
    gate = replayed(path)
    (found,) = gate.ask(PaymentsOf(payment_id="p1"), gate.state.now_us + S)
    return found
