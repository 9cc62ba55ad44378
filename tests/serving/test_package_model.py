"""A package is exact to the token: streams of several replicas, killed and cut off at random, against the real gate.

The meter's book and its call log are the real ones, and so is the gate; only the engine and the network are played.
"""

import os
import shutil
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fabric.audit.verify import verify_export
from fabric.charging.packages import split, weights_of
from fabric.charging.rates import charge_uhs
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import BuyBundle, TopUp
from fabric.gate.instructions import Accepted
from fabric.gate.questions import BalanceOf, FreeOf
from fabric.gate.serving_events import Authorize, CallUsed, KeepUsage, SettleHold, UpdateHold, Wanted
from serving.calls import Granted, Package
from serving.metering.book import Metering
from serving.metering.call_log import CallLog
from serving.metering.slices import Payer, Short, Terms
from tests.audit.test_verify import SIGNER, whole_export
from tests.gate.shop import ANY, QWEN, RATE, Shop, use

ACCOUNTS = ("ada", "ben")
KINDS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")


class Replica:
    """A meter with its log, which outlives it."""

    def __init__(self, name, folder):
        self.name, self.path, self.starts, self.flying = name, folder / name, 0, []
        self.start()

    def start(self):
        self.starts += 1
        self.log = CallLog(self.path)
        self.meter = Metering(
            name=f"{self.name}.{self.starts}",
            model="qwen3",
            accelerator="H100",
            charge=lambda usage: charge_uhs(RATE, usage),
            terms=Terms(grant_tokens=16, report_calls=3),
            rate_version=1,
        )
        for ask in self.log.unsettled:
            self.meter.recover(ask)

    def kill(self):
        self.log._map.close()
        os.close(self.log._file)
        self.flying = []
        self.start()

    def says(self, ask):
        if ask.kind != "keep":
            self.log.held(ask)
        self.flying.append(ask)


class Packages(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.shop = Shop()
        self.shop.do(OpenAccount(account_id="ben", name="ben", plan="starter"))
        self.folder = Path(tempfile.mkdtemp(prefix="packages-"))
        self.replicas = [Replica("r1", self.folder), Replica("r2", self.folder)]
        self.engine, self.delivered, self.promised, self.count = {}, {}, {}, 0

    @initialize(
        bundles=st.lists(st.sampled_from(["small", "any"]), max_size=3), uhs=st.sampled_from([0, 3_000, 200_000])
    )
    def deposits(self, bundles, uhs):
        for name in bundles:
            self.buy("ada", name)
        for account in ACCOUNTS:
            if uhs:
                self.shop.do(TopUp(account_id=account, amount_uhs=uhs))

    # -- what happens --------------------------------------------------------------------------------------------------

    @rule(who=st.sampled_from(ACCOUNTS), name=st.sampled_from(["small", "any"]))
    def buy(self, who, name):
        self.shop.do(BuyBundle(account_id=who, bundle=name, channel="sandbox"))

    @rule(who=st.sampled_from(ACCOUNTS), uhs=st.integers(1, 20_000))
    def top_up(self, who, uhs):
        self.shop.do(TopUp(account_id=who, amount_uhs=uhs))

    @rule(at=st.integers(0, 1), who=st.sampled_from(ACCOUNTS), prompt=st.integers(0, 300), wants=st.integers(0, 120))
    def request(self, at, who, prompt, wants):
        replica, payer = self.replicas[at], Payer(who)
        self.count += 1
        for _ in range(4):
            got = replica.meter.open(
                f"c{self.count}", payer=payer, key_id="", prompt_tokens=prompt, wants=wants, now_us=self.now
            )
            if not isinstance(got, Short):
                replica.log.began(got.piece.hold_id, replica.meter.told(got, "error", at_us=self.now))
                self.engine[got.call_id] = (replica, prompt)
                self.note(got)
                return
            self.ask(replica, replica.meter.need(payer, got, self.now))

    @precondition(lambda self: self.engine)
    @rule(
        steps=st.lists(
            st.tuples(st.integers(0, 20), st.integers(0, 40), st.integers(0, 300), st.integers(0, 40)),
            min_size=1,
            max_size=8,
        )
    )
    def produce(self, steps):
        for number, tokens, cached, reasoning in steps:
            if self.engine:
                self._produce(sorted(self.engine)[number % len(self.engine)], tokens, cached, reasoning)

    def _produce(self, call_id, tokens, cached, reasoning):
        replica, prompt = self.engine[call_id]
        meter, call = replica.meter, replica.meter.calls[call_id]
        produced = min(call.wants, call.usage.completion_tokens + tokens)
        for _ in range(4):
            paid = meter.advance(
                call_id, completion=produced, cached=min(cached, prompt), reasoning=reasoning, now_us=self.now
            )
            if paid >= produced or (ask := meter.need_more(call_id, completion=produced, now_us=self.now)) is None:
                break
            self.ask(replica, ask)
        replica.log.moved(call_id, call.usage, packages=call.limits)
        self.note(call)
        if paid < produced:
            self._end(call_id, "balance_exhausted")

    def note(self, call):
        """What left the replica, and what it was promised by then: that is what it must come to, whoever is killed."""
        self.delivered[call.call_id], self.promised[call.call_id] = call.usage, call.limits

    @precondition(lambda self: self.engine)
    @rule(data=st.data(), ended=st.sampled_from(["stop", "client_gone", "error"]))
    def end(self, data, ended):
        self._end(data.draw(st.sampled_from(sorted(self.engine))), ended)

    def _end(self, call_id, ended):
        replica, _ = self.engine.pop(call_id)
        replica.log.closed(replica.meter.close(call_id, ended=ended, now_us=self.now))

    @rule(us=st.sampled_from([1_000, 700_000, 2_100_000, 6_000_000, 200_000_000, 310_000_000]))
    def time_passes(self, us):
        self.shop.now_us += us
        for replica in self.replicas:
            for ask in replica.meter.due(self.now):
                replica.says(ask)

    @precondition(lambda self: any(replica.flying for replica in self.replicas))
    @rule(data=st.data(), lost=st.sampled_from(["", "", "", "request", "answer"]))
    def message_arrives(self, data, lost):
        replica = data.draw(st.sampled_from([replica for replica in self.replicas if replica.flying]))
        ask = data.draw(st.sampled_from(replica.flying))
        if lost == "answer":
            self.hear(ask)
        elif not lost:
            self.deliver(replica, ask)

    @rule(at=st.integers(0, 1))
    def killed(self, at):
        replica = self.replicas[at]
        replica.kill()
        self.engine = {call_id: where for call_id, where in self.engine.items() if where[0] is not replica}

    # -- messages ------------------------------------------------------------------------------------------------------

    @property
    def now(self):
        return self.shop.now_us

    def ask(self, replica, ask):
        if ask not in replica.flying:
            replica.says(ask)
        self.deliver(replica, ask)

    def hear(self, ask):
        """What the door makes of a message, and what it answers."""
        name, account = f"gateway:{ask.hold_id}", ask.payer.account_id
        wanted = None if ask.wanted is None else Wanted(**ask.wanted._asdict())
        of = {"hold_id": name, "account_id": account}
        calls = tuple(used(call) for call in ask.calls)
        if ask.kind == "authorize":
            least = max(1, ask.minimum_uhs)
            event = Authorize(
                **of, amount_uhs=ask.amount_uhs, use=use(), ttl_us=300_000_000, minimum_uhs=least, wanted=wanted
            )
        elif ask.kind == "update":
            event = UpdateHold(
                **of, seq=ask.seq, calls=calls, more_uhs=ask.amount_uhs, minimum_uhs=max(1, ask.minimum_uhs),
                ttl_us=300_000_000, wanted=wanted,
            )  # fmt: skip
        elif ask.kind == "settle":
            event = SettleHold(**of, seq=ask.seq, calls=calls)
        else:
            event = KeepUsage(**of, call=calls[0], code=ask.code, reason=ask.reason)
        outcome = self.shop.do(event).outcome
        if not isinstance(outcome, Accepted):
            return outcome
        room = self.shop.gate.ask(FreeOf(account_id=account, hold_id=name), self.now)
        packages = tuple(Package(each.asset, each.held, each.free) for each in room.packages)
        return Granted(outcome.held_uhs, outcome.final, room.free_uhs, room.within_key, packages)

    def deliver(self, replica, ask):
        answer = self.hear(ask)
        replica.flying.remove(ask)
        if isinstance(answer, Granted):
            replica.meter.granted(ask, answer, now_us=self.now)
            replica.log.acknowledged(ask, over=ask.kind == "settle")
        elif ask.kind == "settle" and not ask.calls:  # a hold that was never granted
            replica.meter.granted(ask, Granted(0, final=False), now_us=self.now)
            replica.log.acknowledged(ask, over=True)
        else:
            gone = answer.code not in ("insufficient_tokens", "key_limit_reached")
            replica.meter.refused(ask, gone=gone, now_us=self.now, code=answer.code, reason=answer.message)
            if ask.kind == "authorize":
                replica.log.forget(ask.hold_id)

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def what_calls_may_take_is_held(self):
        for replica in self.replicas:
            bound, held = replica.meter.exposure_uhs()
            assert 0 <= bound <= held or held == 0 == bound
            for piece in replica.meter._slices.values():
                for pot in piece.pots.values():
                    assert pot.bound >= 0
                    assert pot.spent >= 0
                    assert pot.bound + pot.spent <= pot.held

    def teardown(self):
        try:
            self.settle_all()
            self.check_all()
        finally:
            for replica in self.replicas:
                replica.log.close()
            shutil.rmtree(self.folder)

    def settle_all(self):
        for call_id in sorted(self.engine):
            self._end(call_id, "cancelled")
        for replica in self.replicas:
            for _ in range(40 + 12 * len(self.delivered)):
                self.shop.now_us += 1_000_000
                for ask in [*replica.flying]:
                    self.deliver(replica, ask)
                for ask in replica.meter.due(self.now):
                    replica.says(ask)
            assert not replica.meter.unsettled(), "a slice leaked"

    def check_all(self):
        """No token is paid twice, none for nothing, and none by nobody."""
        records = [record for _, _, decision in self.shop.journal for record in decision.records]
        assert Counter(record.cdr_id for record in records) == Counter(list(self.delivered)), (
            "each call is recorded once"
        )
        taken = Counter()
        for record in records:
            usage = self.delivered[record.cdr_id]
            counted = {name: getattr(usage, name) for name in KINDS}
            assert {name: getattr(record, name) for name in KINDS} == counted
            due = split(usage, self.promised[record.cdr_id]).paid
            assert [(paid.asset, paid.units) for paid in record.packages] == [(each.asset, each.units) for each in due]
            for paid in record.packages:
                weights = weights_of(paid.asset)
                prompt, cached, completion, reasoning = (getattr(paid.tokens, name) for name in KINDS)
                mine = (prompt - cached, cached, completion - reasoning, reasoning)
                assert min(mine) >= 0
                assert paid.units == sum(n * weight for n, weight in zip(mine, weights, strict=True))
                assert paid.units == sum(amount for _, amount in paid.lots)
                for name in KINDS:
                    counted[name] -= getattr(paid.tokens, name)
                for lot, amount in paid.lots:
                    taken[lot] += amount
            assert min(counted.values()) >= 0
            rates = RATE.numbers
            rest = (
                counted["prompt_tokens"] - counted["cached_tokens"], counted["cached_tokens"],
                counted["completion_tokens"] - counted["reasoning_tokens"], counted["reasoning_tokens"],
            )  # fmt: skip
            exact = Fraction(sum(n * rate for n, rate in zip(rest, rates, strict=True)), 1_000_000)
            assert abs(record.charged_uhs - exact) <= Fraction(1, 2)
            assert record.absorbed_uhs == 0, "what was promised was there"
        book = self.shop.gate.state.book
        for asset in (QWEN, ANY):
            for lot in book.packages[asset].lots.values() if asset in book.packages else ():
                assert (lot.held_uhs, lot.captured_uhs) == (0, taken[lot.lot_id])
                assert lot.granted_uhs == lot.free_uhs + lot.captured_uhs
        for account in ACCOUNTS:
            balance = self.shop.gate.ask(BalanceOf(account_id=account), self.now)
            assert (balance.debt_uhs, balance.held_uhs) == (0, 0)
        report = verify_export(whole_export(self.shop.leaves()), trusted_key=str(SIGNER.verifier))
        assert report.ok, report


def used(call):
    counts = {name: getattr(call.usage, name) for name in KINDS}
    return CallUsed(
        call_id=call.call_id, model=call.model, accelerator=call.accelerator, **counts,
        started_at_us=call.started_at_us, ended_at_us=call.ended_at_us, ended=call.ended,
        rate_version=call.rate_version, packages=call.packages,
    )  # fmt: skip


TestPackages = Packages.TestCase
TestPackages.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
