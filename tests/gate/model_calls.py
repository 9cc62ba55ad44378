"""Rules about slices and the calls they pay for; each answer and each charge predicted, in exact fractions."""

import copy
from collections import defaultdict
from fractions import Fraction

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from fabric.charging.rates import Rate
from fabric.gate.calls import GENERATION_US
from fabric.gate.events import Tick
from fabric.gate.instructions import Accepted
from fabric.gate.questions import OpenUsageOf
from fabric.gate.serving_events import (
    Authorize,
    CallUsed,
    KeepUsage,
    ModelSpec,
    OfferModel,
    RecordCalls,
    ScaleModel,
    SettleHold,
    SettleUsage,
    UpdateHold,
    WithdrawModel,
    WriteOffUsage,
)
from fabric.ledger import Service, Use
from fabric.ledger.sweeping import REMEMBER_ENDED_US, REMEMBER_LAPSED_US
from tests.gate.driver import accounts, picks
from tests.gate.model_limits import LimitRules
from tests.gate.model_money import Expected
from tests.gate.world import S

MODEL = "qwen3"
USE = Use(service=Service.INFERENCE, accelerators=("H100",), models=(MODEL,))
PRICES = [(2_500_000, 250_000, 7 * S, 9 * S), (3, 1, 500_000, 1_500_000)]
"""µHs per 10⁶ LLM tokens; at the second, charges are fractions of a µHs."""
CALLS = st.lists(
    st.tuples(
        st.integers(0, 12),  # which call: few names, so that many are reported twice
        st.sampled_from([0, 1, 7, 900, 20_000_000]),
        st.sampled_from([0, 1, 5]),
        st.sampled_from([0, 1, 64, 5_000_000]),
        st.sampled_from([0, 0, 1]),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([0, 0, 5, 4_000]),  # how long ago it began
        st.booleans(),
    ),
    max_size=4,
)


def rate(*numbers):
    fields = ("input", "cached", "output", "reasoning")
    return Rate(**{f"{name}_uhs_per_mtok": number for name, number in zip(fields, numbers, strict=True)})


WORDS = st.fixed_dictionaries(
    {
        "pick": picks,
        "step": st.sampled_from([1, 1, 1, 0, 2, -1]),
        "given": CALLS,
        "more": st.sampled_from([0, 10, 400]),
        "minimum": st.sampled_from([1, 9 * S, 1_000 * S]),
        "end": st.sampled_from([False, False, False, True]),
        "ttl": st.sampled_from([None, None, 30]),
    }
)


class CallRules(LimitRules, Expected):
    """Models offered at changing prices; slices with and without keys; calls reported once, twice, late and elsewhere."""

    def __init__(self):
        super().__init__()
        self.slices, self.prices = [], []
        self.slice_key, self.slice_made = {}, {}
        self.charged, self.billed, self.recorded, self.open = {}, defaultdict(int), [], {}
        self.key_held, self.key_spent, self.overspent = defaultdict(int), defaultdict(int), set()

    def lapse(self, until):
        super().lapse(until)
        for hold_id, _ in self.slices:
            self.key_held[self.slice_key[hold_id]] -= self.let_lapse(self.money.holds[hold_id], until)

    # -- models ------------------------------------------------------------------------------------------------------------

    @rule(numbers=st.sampled_from(PRICES), bad=st.sampled_from([None, None, None, "name", "rate", "type", "bounds"]))
    def offer(self, numbers, bad):
        if bad is None:
            self.offer_at(numbers)
            return
        flaws = {"name": {"name": "a b"}, "type": {"accelerators": ("B200",)}, "bounds": {"replicas_min": 3}}
        spec = ModelSpec(**{"name": MODEL, "source": "/m", "replicas_max": 2, **flaws.get(bad, {})})
        rates = (rate(-1, *numbers[1:]),) if bad == "rate" else (rate(*numbers),)
        assert self.ask(OfferModel(spec=spec, rates=rates)).http_status == 400

    def offer_at(self, numbers):
        spec = ModelSpec(name=MODEL, source="/m", accelerators=("H100",), replicas_max=2)
        outcome = self.ask(OfferModel(spec=spec, rates=(rate(*numbers),)))
        if not self.prices or self.prices[-1][1] != numbers:
            self.prices.append((self.latest, numbers))
        assert outcome.facts["rate_version"] == len(self.prices)

    @precondition(lambda self: self.prices)
    @rule(least=st.sampled_from([0, 1, 5]), withdraw=st.booleans())
    def change_the_offer(self, least, withdraw):
        stands = not self.state.models[MODEL].withdrawn
        event = WithdrawModel(model=MODEL) if withdraw else ScaleModel(model=MODEL, replicas_min=least, replicas_max=3)
        outcome = self.ask(event)
        assert isinstance(outcome, Accepted) == (stands and (withdraw or least <= 3))

    # -- slices ------------------------------------------------------------------------------------------------------------

    @rule(
        account=accounts,
        seconds=st.sampled_from([1, 40, 400, 5_000]),
        ttl=st.sampled_from([5, 60, 3_600]),
        minimum=st.sampled_from([None, 1, 30 * S]),
        pick=st.one_of(st.none(), picks),
    )
    def open_slice(self, account, seconds, ttl, minimum, pick):
        self.do(Tick())
        hold_id, amount = self.name("s"), seconds * S
        mine = [key for key in self.keys if self.state.keys[key].account_id == account]
        key = mine[pick % len(mine)] if mine and pick is not None else None
        self.uses[hold_id] = USE
        event = Authorize(
            hold_id=hold_id,
            account_id=account,
            amount_uhs=amount,
            use=USE,
            ttl_us=ttl * S,
            minimum_uhs=minimum,
            key_id=key,
        )
        left = self.left_of(key, account)
        outcome = self.ask(event)
        if key and self.state.keys[key].revoked:
            assert outcome.code == "key_revoked"
            return
        within, least = min(amount, left), amount if minimum is None else min(minimum, amount)
        if within < least:
            own = self.left_of(key) == left
            assert outcome.code == ("key_limit_reached" if own else "spending_limit_reached")
            assert outcome.facts["left_uhs"] == left
            return
        granted = min(within, self.money.free(account, USE, self.latest)) if hold_id not in self.money.holds else None
        if granted is None:  # the auditor has applied it
            granted = self.money.holds[hold_id].held
            assert granted == outcome.granted_uhs >= (within if minimum is None else least)
            assert outcome == Accepted(granted_uhs=granted, held_uhs=granted, final=granted < amount)
            hold = self.money.holds[hold_id]
            hold.expires, hold.answer, hold.over_at = self.latest + ttl * S, ("update", outcome), 0
            self.slices.append((hold_id, account))
            self.slice_key[hold_id] = key
            self.key_held[key] += granted
            assert self.ask(event) == outcome, "asked for again, it is the same slice"
        else:
            assert outcome.code == "insufficient_tokens"
            assert granted < (within if minimum is None else least)

    @precondition(lambda self: self.slices)
    @rule(words=st.lists(WORDS, min_size=1, max_size=6))
    def talk(self, words):
        """Gateways say several things in a row."""
        for word in words:
            self.report(**word)

    def report(self, *, pick, step, given, more, minimum, end, ttl):
        """A gateway says which calls a slice has paid for: new ones, old ones, calls that another slice has paid for."""
        self.do(Tick())
        hold_id, account = self.slices[-1 - pick % len(self.slices)]
        hold, key, more = self.money.holds[hold_id], self.slice_key[hold_id], more * S
        calls = tuple(self.call(*each) for each in given)
        common = {"hold_id": hold_id, "account_id": account, "seq": hold.seq + step, "calls": calls}
        bills = self.bills(account, calls)
        used, held = sum(bills.values()), hold.held
        trial, left, lost = copy.deepcopy(self.money), self.left_of(key, account), self.money.lost[account]
        if end:
            expected, event = self.expect_end(trial, hold_id, used), SettleHold(**common)
        else:
            event = UpdateHold(**common, more_uhs=more, minimum_uhs=minimum, ttl_us=ttl and ttl * S)
            room = 0 if key and self.state.keys[key].revoked else max(0, left - max(used - held, 0))
            expected = self.expect_more(trial, hold_id, used, more=more, minimum=minimum, room=room, ttl=ttl)
        outcome = self.ask(event)
        forgotten = {"ended": REMEMBER_ENDED_US, "lapsed": REMEMBER_LAPSED_US}.get(hold.state)
        is_forgotten = forgotten is not None and hold.over_at < self.latest - forgotten
        if calls and (is_forgotten or (step > 0 and hold.state == "ended")):
            self.report_of_what_is_over(hold_id, account, bills, end=end, forgotten=is_forgotten, lost_before=lost)
        elif is_forgotten:
            assert outcome.code == "not_found"
        elif step <= 0:
            again = step == 0 and hold.answer[0] == ("end" if end else "update")
            assert outcome == hold.answer[1] if again else outcome.code == "stale_seq"
            assert self.decisions[-1].records == ()
        elif hold.state == "ended":
            assert outcome.code == "hold_ended"
        else:
            assert outcome == expected
            lost = trial.lost[account] - lost
            self.note(hold_id, account, bills, lost)
            self.key_spent[key] += used - lost
            self.key_held[key] += self.money.holds[hold_id].held - held
            self.overspent |= {key} if used > held else set()
            hold.seq, hold.answer = hold.seq + step, ("end" if end else "update", outcome)
            hold.lapsed = max(hold.lapsed - used, 0)
            if ttl and hold.state in ("open", "aside"):
                hold.state, hold.expires = "open", self.latest + ttl * S
            if end:
                hold.state, hold.over_at = "ended", self.latest

    def report_of_what_is_over(self, hold_id, account, bills, *, end, forgotten, lost_before):
        """What was used is met from what is free, or written off where nobody knows of the hold any more."""
        decision, due = self.decisions[-1], sum(bills.values())
        lost = self.money.lost[account] - lost_before
        assert lost == due if forgotten else 0 <= lost <= due
        facts = {"captured_uhs": due - lost, "written_off_uhs": lost, "late": True}
        assert decision.outcome == (Accepted(facts=facts) if end else Accepted(final=True))
        self.note(None if forgotten else hold_id, account, bills, lost)
        self.key_spent[None if forgotten else self.slice_key[hold_id]] += due - lost
        self.overspent |= {self.slice_key[hold_id]} if due > lost else set()

    @rule(account=accounts, given=CALLS, broken=st.booleans())
    def keep_open(self, account, given, broken):
        """Calls that were refused in every other way, some of which can never be charged."""
        calls = [self.call(*each) for each in given]
        if broken:
            calls = [msgspec.structs.replace(call, cached_tokens=call.prompt_tokens + 1) for call in calls]
        for call in calls:
            self.ask(KeepUsage(account_id=account, hold_id="somewhere", call=call, code="x"))
            if (account, call.call_id) not in self.charged:
                self.open.setdefault((account, call.call_id), call)

    @precondition(lambda self: self.open)
    @rule(pick=picks, write_off=st.booleans())
    def close_by_hand(self, pick, write_off):
        """What was kept is charged or written off once, unless it was charged on another way since."""
        account, call_id = sorted(self.open)[pick % len(self.open)]
        call, kind = self.open[account, call_id], WriteOffUsage if write_off else SettleUsage
        outcome = self.ask(kind(account_id=account, call_id=call_id))
        broken = call.cached_tokens > call.prompt_tokens and (account, call_id) not in self.charged
        if broken and not write_off:
            assert outcome.code == "invalid_call"
            return
        bills = {} if broken else self.bills(account, (call,))
        self.note(None, account, bills, sum(bills.values()))
        self.open.pop((account, call_id), None)
        if broken:
            self.charged[account, call_id] = 0

    @invariant()
    def what_could_not_be_charged_is_listed(self):
        listed = self.gate.ask(OpenUsageOf(), self.latest)
        assert {(each.account_id, each.call.call_id): each.call for each in listed} == self.open

    @precondition(lambda self: self.prices)
    @rule(account=accounts, given=CALLS)
    def record(self, account, given):
        """Calls that the account's own lease covers need no hold."""
        calls = tuple(self.call(*each) for each in given)
        bills = self.bills(account, calls)
        outcome = self.ask(RecordCalls(account_id=account, calls=calls))
        if all(call.covered for call in calls):
            assert outcome == Accepted()
            self.note(None, account, bills)
        else:
            assert outcome.code == "not_covered"

    # -- what must come of it ----------------------------------------------------------------------------------------------

    def call(self, number, prompt, cached, completion, reasoning, covered, ago, named):
        started = self.latest - ago * S
        era = self.latest // GENERATION_US  # so long is an id remembered, and nobody reports a call any later
        return CallUsed(
            call_id=f"call-{era}-{number}", model=MODEL, accelerator="H100" if named else "A100", prompt_tokens=prompt,
            cached_tokens=min(cached, prompt), completion_tokens=completion, reasoning_tokens=min(reasoning, completion),
            started_at_us=started, ended_at_us=self.latest, ended="stop", covered=covered,
        )  # fmt: skip

    def bills(self, account, calls):
        """What each call that was never charged costs, by the price that held when it began."""
        found = {}
        for call in calls:
            if (account, call.call_id) in self.charged or call.call_id in found:
                continue
            numbers = ([price for since, price in self.prices if since <= call.started_at_us] or [self.prices[0][1]])[
                -1
            ]
            counts = (
                call.prompt_tokens - call.cached_tokens, call.cached_tokens,
                call.completion_tokens - call.reasoning_tokens, call.reasoning_tokens,
            )  # fmt: skip
            due = round(sum(Fraction(count * price, 1_000_000) for count, price in zip(counts, numbers, strict=True)))
            found[call.call_id] = 0 if call.covered else due
        return found

    def note(self, hold_id, account, bills, lost=0):
        """Each new call has its record; what was written off is what the last calls aren't charged."""
        records = self.decisions[-1].records
        assert [(record.cdr_id, record.charged_uhs + record.absorbed_uhs) for record in records] == list(bills.items())
        assert sum(record.absorbed_uhs for record in records) == lost
        paid = [record.charged_uhs > 0 for record in records if record.charged_uhs + record.absorbed_uhs]
        assert paid == sorted(paid, reverse=True), "the last calls bear the loss"
        assert all(record.account_id == account for record in self.decisions[-1].records)
        for call_id, charge in bills.items():
            self.charged[account, call_id] = charge
            self.open.pop((account, call_id), None)
            self.billed[hold_id] += charge

    def exceeds(self, whose):
        kind, _, name = whose.partition("/")
        return name in self.overspent if kind == "key" else bool(self.overspent)

    def left_of(self, key, account=None):
        """By the key's own limit for life; of an account: by those that reset, too."""
        if account is not None:
            return min(self.left_of(key), self.left_by_limits(account, key))
        limit = self.state.keys[key].limit_uhs if key else None
        if limit is None:
            return 10**30
        jobs = [job for job in self.state.jobs.values() if job.key_id == key]
        spent = sum(job.burned_uhs + job.held_uhs for job in jobs) + self.key_spent[key] + self.key_held[key]
        return max(0, limit - spent)

    def expect_more(self, trial, hold_id, used, *, more, minimum, room, ttl):
        hold = trial.holds[hold_id]
        self.use_up(trial, hold_id, used)
        if hold.state == "aside" and ttl:
            hold.state = "open"
        free = trial.free(hold.account, hold.use, self.latest) if hold.state == "open" else 0
        granted = min(more, room, free)
        granted = granted if granted >= min(minimum, more) else 0
        return Accepted(granted_uhs=granted, held_uhs=hold.held + granted, final=granted < more or hold.state != "open")

    @invariant()
    def a_slice_pays_for_its_calls_and_for_nothing_else(self):
        for hold_id, _ in self.slices:
            hold = self.money.holds[hold_id]
            assert hold.captured + hold.lost == self.billed[hold_id]
