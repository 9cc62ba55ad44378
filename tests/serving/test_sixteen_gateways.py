"""Sixteen gateways' meters over one real gate: whatever they say at once, late, twice or after a kill, no limit is exceeded."""

import random
from collections import Counter

import pytest

from fabric.charging.rates import MTOK, charge_uhs
from fabric.gate.account_events import CreateKey, CreateProject
from fabric.gate.events import Tick, TopUp
from fabric.gate.instructions import Accepted
from fabric.gate.limit_events import LimitTerms, SetLimit, Unit, Whose
from fabric.gate.limits import standing
from fabric.gate.periods import Period
from fabric.gate.questions import FreeOf
from fabric.gate.serving_events import Authorize, CallUsed, KeepUsage, SettleHold, UpdateHold, Wanted
from fabric.units import UHS_PER_CT
from serving.calls import Granted
from serving.metering.book import Metering
from serving.metering.slices import Payer, Short, Terms
from tests.gate.model_calls import rate
from tests.gate.test_call_stories import PRICE, USE, offer
from tests.gate.world import Clockwork, S
from tests.serving.test_metering_model import Replica, _as_call

GATEWAYS = 16
KEYS = ("k1", "k2", "k3")
CNY_PER_CT = 500_000
CHEAPEST = min(PRICE)
MOST = {Unit.CT: 300_000, Unit.CNY: 50, Unit.LLM: 6_000}
"""A few slices of it."""


def charge(usage):
    return charge_uhs(rate(*PRICE), usage)


class Gateway(Replica):
    def start(self):
        self.starts += 1
        terms = Terms(grant_tokens=16, report_calls=3)
        name = f"{self.name}.{self.starts}"
        self.meter = Metering(name=name, model="tiny", accelerator="H100", charge=charge, terms=terms, rate_version=1)


class House:
    """The gateways, what is on its way between them and the gate, and what clients have been given."""

    def __init__(self, seed, unit, whose):
        self.dice, self.unit = random.Random(f"{seed} {unit} {whose}"), unit
        self.world = Clockwork("ada")
        self.gate = self.world.gate
        self.world.do(offer())
        self.world.do(TopUp(account_id="ada", amount_uhs=100_000 * S))
        self.world.do(CreateProject(account_id="ada", project="lab", wallet="ada"))
        for key in KEYS:
            self.world.do(CreateKey(key_id=key, account_id="ada", secret_sha256="", project="lab"))
        name = {Whose.KEY: "k1", Whose.PROJECT: "lab", Whose.ACCOUNT: ""}[whose]
        terms = LimitTerms(period=Period.LIFE, unit=unit, amount=MOST[unit])
        outcome = self.world.do(SetLimit(account_id="ada", whose=whose, name=name, terms=terms)).outcome
        assert isinstance(outcome, Accepted), outcome
        self.keys = KEYS if whose is not Whose.KEY else ("k1",)
        self.gateways = [Gateway(f"g{at}") for at in range(GATEWAYS)]
        self.waiting, self.open, self.served = [], {}, {}
        self.count = self.largest_uhs = 0
        self.seen = Counter()

    @property
    def now(self):
        return self.world.now_us

    def payer(self, key):
        """As a gateway has it: a key that limits narrow has slices of its own."""
        return Payer("ada", key if any("key/" in name or "project/" in name for name in self.gate.state.limits) else "")

    # -- the gate ------------------------------------------------------------------------------------------------------

    def tell(self, ask):
        """As a gateway's client and the door do."""
        wanted = None if ask.wanted is None else Wanted(**ask.wanted._asdict())
        of = {"hold_id": ask.hold_id, "account_id": "ada"}
        calls = tuple(_used(call) for call in ask.calls)
        match ask.kind:
            case "authorize":
                event = Authorize(
                    amount_uhs=ask.amount_uhs, minimum_uhs=ask.minimum_uhs, use=USE, ttl_us=300 * S, wanted=wanted,
                    key_id=ask.payer.key_id or None, **of,
                )  # fmt: skip
            case "update":
                event = UpdateHold(
                    seq=ask.seq, calls=calls, more_uhs=ask.amount_uhs, minimum_uhs=max(1, ask.minimum_uhs),
                    ttl_us=300 * S, wanted=wanted, **of,
                )  # fmt: skip
            case "settle":
                event = SettleHold(seq=ask.seq, calls=calls, **of)
            case _:
                event = KeepUsage(call=calls[0], code=ask.code, reason=ask.reason, **of)
        return self.world.do(event).outcome

    def deliver(self, gateway, ask, *, answered=True):
        outcome = self.tell(ask)
        if not answered:
            return
        if isinstance(outcome, Accepted):
            self.largest_uhs = max(self.largest_uhs, outcome.held_uhs)
            room = self.gate.ask(FreeOf(account_id="ada", hold_id=ask.hold_id), self.now)
            answer = Granted(outcome.held_uhs, outcome.final, room.free_uhs, room.within_key)
            gateway.meter.granted(ask, answer, now_us=self.now)
            gateway.acknowledge(ask)
        elif ask.kind == "settle" and not ask.calls:  # of a hold that was never granted, as `Meter` has it
            gateway.meter.granted(ask, Granted(0, final=False), now_us=self.now)
            gateway.acknowledge(ask)
        else:
            gone = outcome.http_status != 402
            self.seen["gone" if gone else "refused"] += 1
            gateway.meter.refused(ask, gone=gone, now_us=self.now, code=outcome.code, reason=outcome.message)
        gateway.flying.remove(ask)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def request(self):
        self.count += 1
        self.try_call(
            self.dice.choice(self.gateways), f"c{self.count}", self.dice.choice(self.keys), self.dice.randrange(300),
            self.dice.randrange(1, 120), self.dice.randrange(1, 4),
        )  # fmt: skip

    def try_call(self, gateway, call_id, key, prompt, wants, tries):
        payer = self.payer(key)
        got = gateway.meter.open(call_id, payer=payer, key_id=key, prompt_tokens=prompt, wants=wants, now_us=self.now)
        if not isinstance(got, Short):
            self.open[call_id] = gateway
            self.note(gateway, got)
        elif tries:
            ask = gateway.meter.need(payer, got, self.now)
            if ask not in gateway.flying:
                gateway.record(ask)
            self.waiting.append((gateway, call_id, key, prompt, wants, tries - 1))

    def note(self, gateway, call):
        """What a client has been given, the outbox has."""
        kept = gateway.recorded.setdefault(call.piece.hold_id, {"payer": call.payer, "seq": 0, "calls": {}})["calls"]
        kept[call.call_id] = _as_call(gateway.meter, call, "error", self.now)
        self.served[call.call_id] = call.usage

    def produce(self):
        if not self.open:
            return
        call_id = self.dice.choice(sorted(self.open))
        gateway = self.open[call_id]
        call = gateway.meter.calls[call_id]
        prompt, wish = call.usage.prompt_tokens, call.usage.completion_tokens + self.dice.randrange(1, 30)
        made = min(call.wants, wish)
        cached = self.dice.choice((0, prompt))
        paid = gateway.meter.advance(call_id, completion=made, cached=cached, now_us=self.now)
        self.note(gateway, call)
        if paid < made and (ask := gateway.meter.need_more(call_id, completion=made, now_us=self.now)) is not None:
            if ask not in gateway.flying:
                gateway.record(ask)
            if self.dice.random() < 0.7:
                return  # it goes on when it is answered
        if paid < made or made == call.wants or self.dice.random() < 0.1:
            self.end(call_id, "balance_exhausted" if paid < made else "stop")

    def end(self, call_id, ended="stop"):
        gateway = self.open.pop(call_id)
        hold_id = gateway.meter.calls[call_id].piece.hold_id
        call = gateway.meter.close(call_id, ended=ended, now_us=self.now)
        self.served[call_id] = call.usage
        gateway.recorded[hold_id]["calls"][call_id] = call

    # -- the world -----------------------------------------------------------------------------------------------------

    def message(self):
        flying = [(gateway, ask) for gateway in self.gateways for ask in gateway.flying]
        if flying:
            gateway, ask = self.dice.choice(flying)
            lost = self.dice.random()
            if lost > 0.1:  # else it was lost on the way there
                self.deliver(gateway, ask, answered=lost > 0.2)
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            self.try_call(*each)

    def time_passes(self):
        self.world.now_us += self.dice.choice((1_000, 700_000, 6_000_000))
        for gateway in self.gateways:
            for ask in gateway.meter.due(self.now):
                gateway.record(ask)

    def long_time_passes(self):
        """Holds lapse: what they hold stays set aside for their gateways' last word."""
        if self.dice.random() < 0.2:
            self.world.now_us += 310 * S
            self.world.do(Tick())

    def kill(self):
        if self.dice.random() < 0.3:
            gateway = self.dice.choice(self.gateways)
            gateway.kill()
            self.open = {call_id: where for call_id, where in self.open.items() if where is not gateway}
            self.waiting = [each for each in self.waiting if each[0] is not gateway]

    # -- what is so ----------------------------------------------------------------------------------------------------

    def check(self):
        """By what clients were given, reported or not."""
        uhs = sum(map(charge, self.served.values()))
        if self.unit is Unit.CT:
            assert uhs <= MOST[self.unit]
        elif self.unit is Unit.CNY:
            assert uhs * CNY_PER_CT <= MOST[self.unit] * UHS_PER_CT
        else:
            tokens = sum(usage.prompt_tokens + usage.completion_tokens for usage in self.served.values())
            one_slice = -(-self.largest_uhs * MTOK // CHEAPEST)
            self.seen["beyond"] += tokens > MOST[self.unit]
            assert tokens <= MOST[self.unit] + one_slice

    def all_settled(self):
        for call_id in sorted(self.open):
            self.end(call_id)
        for _ in range(60):
            for gateway in self.gateways:
                for ask in gateway.meter.leave(self.now):
                    gateway.record(ask)
                while gateway.flying:
                    self.deliver(gateway, gateway.flying[0])
            self.world.now_us += 6_000_000
        assert not any(gateway.meter.unsettled() for gateway in self.gateways)
        self.check()
        (limit,) = (each for limits in self.gate.state.limits.values() for each in limits)
        used = standing(self.gate._core, limit, self.now).used
        uhs = sum(map(charge, self.served.values()))
        tokens = sum(usage.prompt_tokens + usage.completion_tokens for usage in self.served.values())
        counted = {Unit.CT: uhs, Unit.CNY: uhs * CNY_PER_CT // UHS_PER_CT, Unit.LLM: tokens}
        assert used == counted[self.unit], "what was given is what is counted"
        assert self.gate.state.book.accounts["ada"].held_uhs == 0


def _used(call):
    usage = call.usage
    return CallUsed(
        call_id=call.call_id, model="tiny", accelerator="H100", prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens, completion_tokens=usage.completion_tokens,
        reasoning_tokens=usage.reasoning_tokens, started_at_us=call.started_at_us, ended_at_us=call.ended_at_us,
        ended=call.ended, key_id=call.key_id, rate_version=call.rate_version,
    )  # fmt: skip


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("whose", [Whose.KEY, Whose.PROJECT, Whose.ACCOUNT])
def test_no_limit_is_exceeded_by_more_than_a_slice_however_sixteen_gateways_spend_at_once(unit, whose):
    for seed in range(3):
        house = House(seed, unit, whose)
        happenings = [
            house.request,
            house.message,
            house.produce,
            house.time_passes,
            house.kill,
            house.long_time_passes,
        ]
        for _ in range(400):
            (do,) = house.dice.choices(happenings, weights=(30, 40, 40, 5, 2, 1))
            do()
            house.check()
        house.all_settled()
        assert house.seen["refused"], "it was used up"
