"""A gate in memory with a till, and the stand-ins of those who take payments."""

from collections import defaultdict

import msgspec
import pytest

from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.payment_events import AskPayment
from fabric.gate.questions import BalanceOf, SuspenseOf
from fabric.payments.by_hand import Operator
from fabric.payments.desk import PaymentDesk
from fabric.units import AccountId
from tests.gate.world import CONFIGURE, S
from tests.payments.stripe_stand_in import StripeStandIn

T0 = 1_790_000_000 * S
PRICE = 1_000_000
"""Of two tokens."""
TOKENS = 7_200 * S


class Killed(BaseException):
    """The desk's process is gone."""


class Till:
    """A gate as its doors reach it: each of its answers is durable. At a chosen step whoever asks is killed."""

    def __init__(self, chosen):
        self.gate, self.now, self.chosen = Gate(), T0, chosen
        self.cash = defaultdict(int)
        self.steps, self.dies_at = 0, None
        self.take(msgspec.structs.replace(CONFIGURE, payments=chosen))
        self.take(OpenAccount(account_id="ada", name="", plan="starter"))

    def now_us(self):
        return self.now

    def take(self, event):
        decision = self.gate.handle(event, self.now)
        self.gate.check()
        for transfer in decision.transfers:
            for leg in transfer.postings:
                if leg.asset == "CNY":
                    self.cash[leg.account] += leg.amount
        return decision.outcome

    def step(self):
        """Between two steps: one more, unless it is the one at which somebody kills it."""
        self.steps += 1
        if self.steps == self.dies_at:
            raise Killed

    async def decide(self, events):
        self.step()
        outcomes = [self.take(event) for event in events]
        self.step()
        return outcomes

    async def ask(self, question):
        return self.gate.ask(question, self.now)

    def free(self):
        return self.gate.ask(BalanceOf(account_id="ada"), self.now).free_uhs

    def suspense(self):
        return [each.why for each in self.gate.ask(SuspenseOf(), self.now)]

    def desk(self, provider):
        """A new one: as after a start."""
        return PaymentDesk(self.decide, self.ask, (provider, Operator(self.now_us)), now_us=self.now_us)

    def asks(self, payment_id="p1", **more):
        return AskPayment(
            payment_id=payment_id, account_id=AccountId("ada"), provider=self.chosen, amount_uhs=TOKENS, **more
        )


@pytest.fixture
def stripe_api():
    stand_in = StripeStandIn()
    yield stand_in
    stand_in.close()
