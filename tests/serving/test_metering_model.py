"""The meter against a naive ledger: many accounts, streams and replicas, that are killed and cut off at random."""

from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fabric.charging.rounding import half_even
from fabric.errors import InsufficientTokens, InvalidRequest, NotFound
from serving.calls import Call, Usage
from serving.metering.book import Metering
from serving.metering.slices import Ask, Payer, Short, Terms

from .ledger_standin import LedgerStandIn

IN, CACHED, OUT, REASONING = 40_300_000, 4_100_000, 400_700_000, 410_000_000
ACCOUNTS = ("ann", "ben", "cleo")


def charge(usage):
    return half_even(
        (usage.prompt_tokens - usage.cached_tokens) * IN
        + usage.cached_tokens * CACHED
        + (usage.completion_tokens - usage.reasoning_tokens) * OUT
        + usage.reasoning_tokens * REASONING,
        1_000_000,
    )


class Replica:
    """A meter, and what its outbox would bring back: the hold of each call, and its last usage."""

    def __init__(self, name):
        self.name, self.starts = name, 0
        self.flying, self.recorded = [], {}
        self.start()

    def start(self):
        self.starts += 1
        self.meter = Metering(
            name=f"{self.name}.{self.starts}",
            model="m",
            accelerator="H100",
            charge=charge,
            terms=Terms(grant_tokens=16, report_calls=3),
        )

    def record(self, ask):
        if ask.kind != "keep":
            kept = self.recorded.setdefault(ask.hold_id, {"payer": ask.payer, "seq": ask.seq, "calls": {}})
            kept["seq"] = ask.seq
        self.flying.append(ask)

    def acknowledge(self, ask):
        kept = self.recorded.get(ask.hold_id)
        for call in ask.calls if kept else ():
            kept["calls"].pop(call.call_id, None)
        if kept and (ask.kind == "settle" or (ask.kind == "record" and not self.meter.knows(ask.hold_id))):
            kept["over"] = True
        if kept and not kept["calls"] and kept.get("over"):
            self.recorded.pop(ask.hold_id, None)

    def kill(self):
        """SIGKILL and a new start: what was under way is unknown, everything recorded is settled."""
        left = [
            Ask(
                "record" if kept["payer"].covered else "settle",
                hold_id,
                kept["payer"],
                kept["seq"] + 1,
                tuple(kept["calls"].values()),
            )
            for hold_id, kept in self.recorded.items()
        ]
        self.start()
        self.flying = []
        for ask in left:
            self.meter.recover(ask)


class Serving(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 1_000_000_000
        self.ledger = LedgerStandIn(charge, clock=lambda: self.now)
        self.ledger.calls_max = 2
        self.replicas = [Replica("r1"), Replica("r2")]
        self.engine = {}
        self.delivered = {}
        self.count = 0

    @initialize(tokens=st.lists(st.integers(0, 1_000), min_size=3, max_size=3))
    def deposits(self, tokens):
        for account_id, count in zip(ACCOUNTS, tokens, strict=True):
            self.ledger.top_up(account_id, count * OUT // 1_000_000)

    # -- what happens --------------------------------------------------------------------------------------------------

    @rule(who=st.sampled_from(ACCOUNTS), tokens=st.integers(1, 400))
    def top_up(self, who, tokens):
        self.ledger.top_up(who, tokens * OUT // 1_000_000)

    @rule(
        at=st.integers(0, 1),
        who=st.sampled_from(ACCOUNTS),
        limited=st.booleans(),
        covered=st.sampled_from([False, False, False, True]),
        prompt=st.integers(0, 300),
        wants=st.integers(0, 120),
    )
    def request(self, at, who, limited, covered, prompt, wants):
        replica = self.replicas[at]
        self.count += 1
        call_id, payer = f"c{self.count}", Payer(who, "k" if limited else "", covered)
        for _ in range(2):
            got = replica.meter.open(
                call_id, payer=payer, key_id="k", prompt_tokens=prompt, wants=wants, now_us=self.now
            )
            if not isinstance(got, Short):
                self._began(replica, got)
                return
            known = list(replica.flying)
            ask = replica.meter.need(payer, got, self.now)
            if ask not in known:
                replica.record(ask)
            self._deliver(replica, ask)

    def _began(self, replica, call):
        self.engine[call.call_id] = (replica, call.usage.prompt_tokens)
        self.delivered[call.call_id] = call.usage
        self._note(replica, call, "error")

    def _note(self, replica, call, ended):
        meter = replica.meter
        kept = replica.recorded.setdefault(call.piece.hold_id, {"payer": call.payer, "seq": 0, "calls": {}})["calls"]
        kept[call.call_id] = _as_call(meter, call, ended, self.now)

    @precondition(lambda self: self.engine)
    @rule(
        steps=st.lists(
            st.tuples(st.integers(0, 20), st.integers(0, 40), st.integers(0, 300), st.integers(0, 40)),
            min_size=1,
            max_size=12,
        )
    )
    def produce(self, steps):
        """Several outputs, of calls picked by number; each of several tokens, as an engine under load gives them."""
        for number, tokens, cached, reasoning in steps:
            if self.engine:
                calls = sorted(self.engine)
                self._produce(calls[number % len(calls)], tokens, cached, reasoning)
                self.every_hold_covers_its_calls()

    def _produce(self, call_id, tokens, cached, reasoning):
        replica, prompt = self.engine[call_id]
        meter, call = replica.meter, replica.meter.calls[call_id]
        produced = min(call.wants, call.usage.completion_tokens + tokens)
        for _ in range(2):
            paid = meter.advance(
                call_id, completion=produced, cached=min(cached, prompt), reasoning=reasoning, now_us=self.now
            )
            if paid >= produced:
                break
            known = list(replica.flying)
            ask = meter.need_more(call_id, completion=produced, now_us=self.now)
            if ask is None:
                break
            if ask not in known:
                replica.record(ask)
            self._deliver(replica, ask)
        self.delivered[call_id] = call.usage
        self._note(replica, call, "error")
        if paid < produced:
            assert call.usage.completion_tokens == paid
            self._end(call_id, "balance_exhausted")

    @precondition(lambda self: self.engine)
    @rule(data=st.data(), ended=st.sampled_from(["stop", "client_gone", "error"]))
    def end(self, data, ended):
        self._end(data.draw(st.sampled_from(sorted(self.engine))), ended)

    def _end(self, call_id, ended):
        replica, _ = self.engine.pop(call_id)
        hold_id = replica.meter.calls[call_id].piece.hold_id
        call = replica.meter.close(call_id, ended=ended, now_us=self.now)
        assert call.usage == self.delivered[call_id]
        replica.recorded[hold_id]["calls"][call_id] = call

    @rule(us=st.sampled_from([1_000, 700_000, 2_100_000, 6_000_000, 200_000_000, 310_000_000]))
    def time_passes(self, us):
        self.now += us
        self.ledger.expire()
        for replica in self.replicas:
            for ask in replica.meter.due(self.now):
                replica.record(ask)

    @precondition(lambda self: any(replica.flying for replica in self.replicas))
    @rule(data=st.data(), lost=st.sampled_from(["", "", "", "request", "answer"]))
    def message_arrives(self, data, lost):
        replica = data.draw(st.sampled_from([replica for replica in self.replicas if replica.flying]))
        ask = data.draw(st.sampled_from(replica.flying))
        if lost == "answer":
            self._tell(ask)
        elif not lost:
            self._deliver(replica, ask)

    @rule(at=st.integers(0, 1))
    def killed(self, at):
        replica = self.replicas[at]
        replica.kill()
        self.engine = {call_id: where for call_id, where in self.engine.items() if where[0] is not replica}

    @rule(keeps=st.booleans())
    def the_ledger_keeps_what_it_can_not_charge(self, keeps):
        self.ledger.keeps = keeps

    @precondition(lambda self: self.delivered)
    @rule(data=st.data())
    def a_call_will_be_refused(self, data):
        """Whatever is reported with it is refused too."""
        call_id = data.draw(st.sampled_from(sorted(self.delivered)))
        if call_id not in self.ledger.charged:
            self.ledger.faulty.add(call_id)

    def _tell(self, ask):
        try:
            return self.ledger.do(ask)
        except (InsufficientTokens, InvalidRequest, NotFound) as error:
            return error

    def _deliver(self, replica, ask):
        answer = self._tell(ask)
        replica.flying.remove(ask)
        meter = replica.meter
        if isinstance(answer, Exception):
            gone = not isinstance(answer, InsufficientTokens)
            meter.refused(ask, gone=gone, now_us=self.now, code=answer.code, reason=str(answer))
            if ask.kind == "authorize":
                replica.recorded.pop(ask.hold_id, None)
        else:
            if answer is not None:
                meter.granted(ask, answer, now_us=self.now)
            else:
                meter.granted(ask, None, now_us=self.now)
            replica.acknowledge(ask)

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def what_may_be_charged_is_held(self):
        for replica in self.replicas:
            bound, held = replica.meter.exposure_uhs()
            assert 0 <= bound <= held or held == 0 == bound

    @invariant()
    def every_hold_covers_its_calls(self):
        for replica in self.replicas:
            for hold_id, kept in replica.recorded.items():
                hold = self.ledger.holds.get(hold_id)
                unsettled = [call for call_id, call in kept["calls"].items() if call_id not in self.ledger.charged]
                if hold is None or not hold["over"]:
                    due = sum(charge(call.usage) for call in unsettled if not call.covered)
                    assert due <= (hold["uhs"] if hold else 0)

    @invariant()
    def the_ledger_is_sound(self):
        for account_id in ACCOUNTS:
            deposited = self.ledger.deposited[account_id]
            total = self.ledger.free[account_id] + self.ledger.held(account_id) + self.ledger.spent(account_id)
            assert total == deposited

    def teardown(self):
        for call_id in sorted(self.engine):
            self._end(call_id, "cancelled")
        self.ledger.keeps = True
        for replica in self.replicas:
            for _ in range(40 + 12 * len(self.delivered)):
                self.now += 1_000_000 if replica.meter.unreported(0) == 0 else 3_600_000_000
                for ask in [*replica.flying]:
                    self._deliver(replica, ask)
                for ask in replica.meter.due(self.now):
                    replica.record(ask)
            assert not replica.meter.unsettled(), "a slice leaked"
        for call_id, usage in self.delivered.items():
            if call_id in self.ledger.open:
                assert call_id in self.ledger.faulty
                assert self.ledger.open[call_id].usage == usage
                continue
            assert call_id in self.ledger.calls, "a call was neither settled nor is it open"
            call = self.ledger.calls[call_id]
            assert call.usage == usage
            exact = Fraction(
                0
                if call.covered
                else (usage.prompt_tokens - usage.cached_tokens) * IN
                + usage.cached_tokens * CACHED
                + (usage.completion_tokens - usage.reasoning_tokens) * OUT
                + usage.reasoning_tokens * REASONING,
                1_000_000,
            )
            assert abs(self.ledger.charged[call_id] - exact) <= Fraction(1, 2)
        assert not set(self.ledger.calls) & set(self.ledger.open), "a call is charged and open"
        assert set(self.ledger.calls) | set(self.ledger.open) == set(self.delivered)
        for account_id in ACCOUNTS:
            assert self.ledger.held(account_id) == 0


def _as_call(meter, call, ended, now):
    return Call(
        call.call_id,
        call.payer.account_id,
        call.key_id,
        meter.model,
        meter.accelerator,
        Usage(*(getattr(call.usage, name) for name in call.usage.__struct_fields__)),
        call.started_at_us,
        now,
        ended,
        call.payer.covered,
    )


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
