"""How the meter spends a balance: few messages to the ledger, and most of it used before anyone is refused.

The same workload as the field's simulation: 64 closed-loop streams on 8 replicas, an account that can pay some 390
requests, output lengths as in the Azure conversation trace, `max_tokens` 4096. Time is virtual.
"""

import heapq
import random

import pytest

from fabric.errors import InsufficientTokens
from serving.metering.book import Metering
from serving.metering.slices import Payer, Short

from .ledger_standin import LedgerStandIn


def charge(usage):
    """40 µHs a prompt token, 4 a cached one, 400 a completion token."""
    return (usage.prompt_tokens - usage.cached_tokens) * 40 + usage.cached_tokens * 4 + usage.completion_tokens * 400


PAYER = Payer("ann")
STEP_US = 20_000
TOKENS_A_STEP = 1


def sizes(seed):
    """(prompt, completion): lognormal, with the trace's medians (1020 and 129) and means (1155 and 211)."""
    dice = random.Random(seed)
    while True:
        yield int(min(14_000, dice.lognormvariate(6.93, 0.5))) + 1, int(min(1_000, dice.lognormvariate(4.86, 1.0))) + 1


class Economy:
    def __init__(self, *, seed, requests_paid=390, streams=64, replicas=8, free_told=True):
        self.sizes = sizes(seed)
        self.now = 1_000_000
        self.ledger = LedgerStandIn(charge, clock=lambda: self.now, free_told=free_told)
        self.balance = requests_paid * (1155 * 40 + 211 * 400)
        self.ledger.top_up("ann", self.balance)
        self.meters = [Metering(name=f"r{n}", model="m", accelerator="H100", charge=charge) for n in range(replicas)]
        self.streams = streams
        self.requests = self.cut = self.refusals = 0
        self.used_at_first_refusal = self.messages_at_first_refusal = self.requests_at_first_refusal = None
        self.produced = {}

    def run(self, *, for_s=10_000):
        queue = [(self.now + n * 1_000, n, None) for n in range(self.streams)]
        ends = self.now + for_s * 1_000_000
        while queue and self.refusals < self.streams and queue[0][0] < ends:
            self.now, stream, call = heapq.heappop(queue)
            meter = self.meters[stream % len(self.meters)]
            for ask in meter.due(self.now):
                self.tell(meter, ask)
            call = self.begin(meter, stream) if call is None else self.step(meter, *call)
            if call is not False:
                heapq.heappush(queue, (self.now + STEP_US, stream, call))
        self.settle()
        return self

    def begin(self, meter, stream):
        prompt, output = next(self.sizes)
        self.requests += 1
        call_id = f"c{self.requests}"
        for _ in range(2):
            got = meter.open(call_id, payer=PAYER, key_id="", prompt_tokens=prompt, wants=4096, now_us=self.now)
            if not isinstance(got, Short):
                return call_id, 0, output
            self.tell(meter, meter.need(PAYER, got, self.now))
        self.refuse()
        return False

    def refuse(self):
        self.refusals += 1
        if self.used_at_first_refusal is None:
            used = sum(self.charge_so_far(meter) for meter in self.meters) + self.ledger.spent("ann")
            self.used_at_first_refusal = used / self.balance
            self.messages_at_first_refusal = self.ledger.messages.total()
            self.requests_at_first_refusal = self.requests

    def charge_so_far(self, meter):
        slices = [*meter._slices.values(), *meter._leaving.values()]
        return sum(piece.spent_uhs for piece in slices) + sum(charge(call.usage) for call in meter.calls.values())

    def step(self, meter, call_id, produced, output):
        produced = min(output, produced + TOKENS_A_STEP)
        for _ in range(2):
            paid = meter.advance(call_id, completion=produced, cached=0, now_us=self.now)
            if paid >= produced:
                break
            self.tell(meter, meter.need_more(call_id, completion=produced, now_us=self.now))
        self.produced[call_id] = min(paid, produced)
        if paid < produced:
            self.cut += 1
        elif produced < output:
            return call_id, produced, output
        meter.close(call_id, ended="stop", now_us=self.now)
        return None

    def tell(self, meter, ask):
        try:
            meter.granted(ask, self.ledger.do(ask), now_us=self.now)
        except InsufficientTokens:
            meter.refused(ask, now_us=self.now)

    def settle(self):
        for meter in self.meters:
            for call_id in list(meter.calls):
                meter.close(call_id, ended="cancelled", now_us=self.now)
            for _ in range(3):
                self.now += 3_000_000
                for ask in meter.due(self.now):
                    self.tell(meter, ask)
            assert not meter.unsettled()


@pytest.mark.parametrize("seed", range(3))
def test_most_of_a_small_balance_is_used_before_the_first_refusal_and_none_beyond_it(seed):
    economy = Economy(seed=seed).run()
    assert economy.used_at_first_refusal >= 0.70
    assert economy.messages_at_first_refusal / economy.requests_at_first_refusal <= 0.25
    assert {call_id: call.usage.completion_tokens for call_id, call in economy.ledger.calls.items()} == economy.produced
    assert 0 <= economy.ledger.free["ann"] == economy.balance - economy.ledger.spent("ann")
    assert economy.ledger.free["ann"] < economy.balance / 100


def test_a_busy_account_with_enough_asks_the_ledger_for_less_than_one_request_in_four():
    economy = Economy(seed=7, requests_paid=100_000).run(for_s=40)
    assert economy.refusals == economy.cut == 0
    assert economy.requests > 300
    assert economy.ledger.messages.total() / economy.requests <= 0.25
