"""Rules about money: what comes in, what it may be spent on, and what a client says about its holds."""

import copy

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    precondition,
    rule,
)

from fabric.gate.account_events import CreateKey, RevokeKey
from fabric.gate.events import (
    BuyBundle,
    ClosePeriod,
    Configure,
    Grant,
    RecordPayment,
    Subscribe,
    Tick,
    TopUp,
    Unsubscribe,
    VoidLot,
)
from fabric.gate.idempotency import REMEMBERED_US
from fabric.gate.instructions import Accepted, Refusal
from fabric.gate.invoice_events import CreditInvoice
from fabric.gate.serving_events import Authorize, ReleaseHold, SettleHold, UpdateHold
from fabric.ledger.sweeping import REMEMBER_ENDED_US, REMEMBER_LAPSED_US
from fabric.placement.quota_terms import Quota
from fabric.placement.quotas import Policy
from tests.gate.driver import ACCOUNTS, SCOPES, USES, Driver, accounts, picks
from tests.gate.oracle import CREDIT
from tests.gate.world import CATALOGUE, DAY, STEEP, TARIFFS, S

QUOTAS = (
    Quota(accelerator="A100", account="ada", nominal=3, lend_max=1),
    Quota(accelerator="H100", account="ada", nominal=4, borrow_max=2, lend_max=2),
    Quota(accelerator="H100", account="bob", nominal=2),
    Quota(accelerator="H100", cohort="one", nominal=3, borrow_max=3),
)
POLICIES = (
    None, None, Policy(), Policy(half_life_us=DAY, entry_us=0), Policy(evictions_max=1, run_us_min=0),
    Policy(headroom_devices=2, bypasses_max=1), Policy(waits_us=(0, 0, 0, 0, 0), retry_us=S), Policy(quotas=QUOTAS),
)  # fmt: skip
"""None = as before."""


class MoneyRules(Driver):
    """Top-ups, grants, bundles, subscriptions, prices, keys; each answer predicted."""

    @rule(
        way=st.sampled_from(["top_up", "top_up", "grant", "bundle"]),
        account=accounts,
        seconds=st.sampled_from([-1, 0, 30, 50, 700, 4_000, 4_000]),
        scope=st.sampled_from(SCOPES),
        life=st.sampled_from([None, 5 * S, DAY]),
    )
    def bring_in_tokens(self, way, account, seconds, scope, life):
        self.do(Tick())
        bought = self.entitled(account)
        name, amount = self.name("r"), seconds * S
        more = {"channel": self.channel, "payment_ref": name, "account_id": account, "request_id": name}
        event = {
            "top_up": TopUp(amount_uhs=amount, **more),
            "grant": Grant(account_id=account, amount_uhs=amount, scope=scope, lifetime_us=life, request_id=name),
            "bundle": BuyBundle(bundle="none" if seconds == 0 else "edge", **more),
        }[way]
        outcome = self.ask(event)
        self.requests.append((event, outcome))
        accepted = seconds > 0 or (way == "bundle" and seconds != 0)
        assert isinstance(outcome, Accepted) == accepted
        got = self.entitled(account) - bought
        assert got == 600 * (accepted and way == "bundle")

    @rule(
        account=accounts,
        channel=st.sampled_from(["sandbox", "operator"]),
        ref=st.sampled_from(["P", "Q"]),
        seconds=st.sampled_from([30, 50]),
    )
    def pay_by_reference(self, account, channel, ref, seconds):
        """It books once for each account and channel, whatever request brings it, and nothing where it doesn't count."""
        event = TopUp(
            account_id=account, amount_uhs=seconds * S, payment_ref=ref, channel=channel, request_id=self.name("r")
        )
        outcome = self.ask(event)
        booked, first = self.references.get((account, channel, ref), (None, None))
        if channel == "sandbox" != self.channel:
            assert outcome.code == "operator_only"
        elif booked is None:
            assert outcome.granted_uhs == seconds * S
            self.references[account, channel, ref] = seconds, outcome
        else:
            assert outcome == first if booked == seconds else outcome.code == "payment_ref_used"
            assert self.decisions[-1].transfers == ()

    @rule(pick=picks, seconds=st.sampled_from([None, None, 1, 40, 5_000]), thief=st.booleans())
    def void(self, pick, seconds, thief):
        """What is unused of a lot is taken back, never what is held or used, and only from its owner."""
        self.do(Tick())
        if not self.money.lots:
            return
        lot = self.money.lots[-1 - pick % len(self.money.lots)]
        account = ACCOUNTS[(ACCOUNTS.index(lot.account) + 1) % 3] if thief else lot.account
        amount = None if seconds is None else seconds * S
        wanted, ahead = lot.free if amount is None else amount, [record.ahead for record in self.state.subscriptions]
        outcome = self.ask(VoidLot(account_id=account, lot_id=lot.lot_id, amount_uhs=amount, reason="a mistake"))
        if thief:
            assert outcome.code == "not_found"
        elif not 0 < wanted <= lot.free + lot.voided + lot.frozen:
            assert outcome.code == "not_unused"
        elif isinstance(outcome, Refusal):
            assert outcome.code in ("not_unused", "not_the_last")
            assert wanted > lot.free or any(lot.lot_id in lots for lots in ahead)
        else:
            assert outcome.facts["voided_uhs"] == wanted

    @rule(account=accounts, share=st.sampled_from([1, 2, 3, 0, -1]), again=st.booleans())
    def pay_invoices(self, account, share, again):
        """Whole, in part, nothing, or too much; and said twice it is paid once."""
        self.do(Tick())
        due = self.money.due(account)
        amount = due + 1 if share < 0 else due // share if share else 0
        event = RecordPayment(account_id=account, amount_microcny=amount, payment_ref=self.name("b"))
        outcome = self.ask(event)
        if not 0 < amount <= due:
            assert outcome.code == "invalid_amount"
            return
        assert outcome.facts["receivable_microcny"] == due - amount == self.money.due(account)
        if again:
            assert self.ask(event) == outcome
            assert self.decisions[-1].transfers == ()

    @rule(account=accounts, share=st.sampled_from([1, 2, 0, -1]), oldest=st.booleans())
    def credit_invoice(self, account, share, oldest):
        """A credit note takes off one invoice what nobody has paid of it, in whole fen, and never more."""
        self.do(Tick())
        unpaid = [(each[3], each[1] - each[2]) for each in self.money.invoices[account]]
        name, most = unpaid[0 if oldest else -1] if unpaid else ("none", 0)
        amount = most + 10_000 if share < 0 else most if share == 1 else most // 2 // 10_000 * 10_000 * share
        before, due = self.book.credit_notes_made, self.money.due(account)
        event = CreditInvoice(account_id=account, invoice_id=name, amount_microcny=amount, reason="a mistake")
        outcome = self.ask(event)
        if not unpaid:
            assert outcome.code == "not_found"
        elif not 0 < amount <= most:
            assert outcome.code == "invalid_amount"
        else:
            assert outcome.facts["credit_note"] == before + 1
            assert outcome.facts["receivable_microcny"] == due - amount == self.money.due(account)

    @invariant()
    def invoices_are_numbered_without_gaps(self):
        found = [each.number for account in self.book.accounts.values() for each in account.invoices]
        assert len(found) == len(set(found))
        transfers = [each for decision in self.decisions for each in decision.transfers if each.kind == "invoice"]
        assert self.book.invoices_made == sum(any(leg.asset == "CNY" for leg in each.postings) for each in transfers)

    @invariant()
    def what_is_owed_has_the_price_of_its_time(self):
        for account in ACCOUNTS if self.journal else ():
            booked, today = self.book.accounts[account], self.price_of(account)
            earlier = sum(each.amount_uhs * (each.microcny_per_ct - today) for each in booked.priced)
            owed = self.money.owed(account)
            assert booked.debt_uhs * today + earlier == sum(price * amount for price, amount in owed)

    def entitled(self, account):
        """What bundles gave besides tokens and is still good: a purchase lets go of what isn't."""
        given = self.state.accounts[account].entitlements
        return sum(each.amount for each in given if each.expires_at_us > self.latest)

    @rule(account=accounts, offer=st.sampled_from(["monthly", "weekly", "daily"]), end=st.booleans())
    def subscribe(self, account, offer, end):
        running = [r for r in self.state.subscriptions if (r.account_id, r.subscription) == (account, offer)]
        if end:
            outcome = self.ask(Unsubscribe(account_id=account, subscription=offer))
            assert isinstance(outcome, Accepted) == bool(running)
            return
        ending = [record.ending for record in running]
        more = {"channel": self.channel, "payment_ref": self.name("s")}
        outcome = self.ask(Subscribe(account_id=account, subscription=offer, **more))
        if isinstance(outcome, Refusal) and self.channel == "sandbox":
            assert (outcome.code, ending) == ("already_subscribed", [False])
        elif isinstance(outcome, Refusal):
            assert (outcome.code, len(running[0].ahead)) == ("paid_ahead", 12)

    @invariant()
    def nothing_is_bought_with_a_customers_word_where_that_does_not_count(self):
        if self.channel == "operator" and not isinstance(self.journal[-1][0], Configure):
            paid = [leg.account for transfer in self.decisions[-1].transfers for leg in transfer.postings]
            voided = isinstance(self.journal[-1][0], VoidLot)
            assert voided or "cash/sandbox" not in paid

    @rule(
        steep=st.booleans(),
        bad=st.sampled_from([None, None, "plan", "type", "weight", "policy"]),
        channel=st.sampled_from(["sandbox", "sandbox", "operator"]),
        dear=st.booleans(),
        policy=st.sampled_from(POLICIES),
        later=st.sampled_from([None, None, None, 3, 500, DAY // S, 30 * DAY // S]),
        dated=st.sampled_from([("tariffs",), ("catalogue",), ("tariffs", "catalogue")]),
    )
    def configure(self, *, steep, bad, channel, dear, policy, later, dated):
        """Prices change, now or on a date; or would, but for somebody or something that would be left without one."""
        tariffs = STEEP if steep else TARIFFS
        prices = [plan.price_microcny_per_ct * (3 if dear else 1) for plan in CATALOGUE.plans]
        dearer = [
            msgspec.structs.replace(plan, price_microcny_per_ct=price)
            for plan, price in zip(CATALOGUE.plans, prices, strict=True)
        ]
        catalogue = msgspec.structs.replace(CATALOGUE, plans=tuple(dearer[: 1 if bad == "plan" else 3]))
        weights = {"type": TARIFFS.weights[1:], "weight": TARIFFS.weights[:1] + TARIFFS.weights[2:]}
        since = {} if later is None else dict.fromkeys(dated, max(self.now, self.latest) + later * S)
        if "tariffs" in since:
            self.made += 1
            tariffs = msgspec.structs.replace(tariffs, version=100 + self.made, effective_from_us=since["tariffs"])
        catalogue = msgspec.structs.replace(catalogue, effective_from_us=since.get("catalogue", 0))
        outcome = self.ask(
            Configure(
                tariffs=msgspec.structs.replace(tariffs, weights=weights.get(bad, tariffs.weights)),
                catalogue=catalogue,
                payments=channel,
                policy=Policy(half_life_us=0) if bad == "policy" else policy,
            )
        )
        assert isinstance(outcome, Accepted) if bad is None else outcome.code == "invalid_config"
        if bad is None:
            self.channel, now = channel, self.latest
            self.in_force.say(self.in_force.tariffs, tariffs, now=now, since=since.get("tariffs", now))
            self.in_force.say(self.in_force.catalogues, catalogue, now=now, since=since.get("catalogue", now))

    @rule(sure=st.sampled_from([False, False, False, True]))
    def close_period(self, sure):
        if not sure:
            return
        period = self.name("p")
        assert isinstance(self.ask(ClosePeriod(period=period)), Accepted)
        assert not any(self.money.debt.values())
        assert self.ask(ClosePeriod(period=period)).code == "period_closed"

    @rule(account=accounts, limit=st.sampled_from([None, 100 * S, 2_000 * S]), revoke=st.booleans())
    def key(self, account, limit, revoke):
        if revoke and self.keys:
            self.ask(RevokeKey(key_id=self.keys[-1], account_id=account))
            return
        self.keys.append(self.name("k"))
        event = CreateKey(key_id=self.keys[-1], account_id=account, secret_sha256="", limit_uhs=limit)
        assert isinstance(self.ask(event), Accepted)

    @precondition(lambda self: self.requests)
    @rule(pick=picks, changed=st.booleans())
    def say_it_again(self, pick, changed):
        """A yes is said again for 32 days to the same content, and is a conflict with other content."""
        event, outcome = self.requests[pick % len(self.requests)]
        answered = self.state.answered.get(f"{event.account_id}/{event.request_id}")
        assert answered is None or isinstance(outcome, Accepted), "a refusal is not remembered"
        if answered is None or max(self.now, self.latest) - answered.at_us >= REMEMBERED_US:
            return
        if changed:
            event = TopUp(account_id=event.account_id, amount_uhs=7 * S, request_id=event.request_id)
        again = self.ask(event)
        assert again == outcome if not changed else again.code == "request_id_reused"
        assert self.decisions[-1].transfers == self.decisions[-1].instructions == ()


class Expected(Driver):
    """What a word about a hold must be answered, from the auditor's lists alone."""

    def use_up(self, trial, hold_id, used):
        """Held, then free, then lost: what became debt, and what the operator lost."""
        hold = trial.holds[hold_id]
        debt, covered = 0, min(used, hold.held)
        while covered:
            lot, there = hold.queue.pop(0)
            part = min(there, covered)
            hold.queue[:0] = [(lot, there - part)] if there > part else []
            debt += part * (lot == CREDIT)
            trial.debt[hold.account] += part * (lot == CREDIT)
            covered, used = covered - part, used - part
        there = min(used, trial.free(hold.account, hold.use, self.latest))
        trial.lost[hold.account] += used - there
        over = trial.take(hold.account, hold.use, there, self.latest, into="captured")
        beyond = sum(part for lot, part in over if lot == CREDIT)
        trial.debt[hold.account] += beyond
        return debt + beyond, used - there

    def expect_update(self, trial, hold_id, used, more, ttl):
        hold = trial.holds[hold_id]
        self.use_up(trial, hold_id, used)
        hold.state = "open" if hold.state == "aside" and ttl else hold.state
        is_open = hold.state == "open"
        granted = min(more, trial.free(hold.account, hold.use, self.latest)) if is_open else 0
        return Accepted(granted_uhs=granted, held_uhs=hold.held + granted, final=granted < more or not is_open)

    def expect_end(self, trial, hold_id, used):
        hold = trial.holds[hold_id]
        late = hold.state != "open"
        over = used > (hold.lapsed if hold.state == "lapsed" else hold.held)
        debt, lost = self.use_up(trial, hold_id, used)
        facts = {
            "captured_uhs": used - lost, "released_uhs": hold.held, "debt_uhs": debt, "over_hold": over, "late": late,
            "written_off_uhs": lost,
        }  # fmt: skip
        return Accepted(facts=facts)


class HoldRules(Expected):
    """Clients' holds; each answer predicted from the auditor's lists alone."""

    @rule(
        account=accounts,
        seconds=st.sampled_from([0, 20, 200, 1_000, 5_000]),
        use=st.sampled_from(USES),
        ttl=st.sampled_from([5, 60, 3_600]),
        minimum=st.sampled_from([None, 1, 300 * S]),
    )
    def authorize(self, account, seconds, use, ttl, minimum):
        self.do(Tick())
        hold_id, amount = self.name("c"), seconds * S
        self.uses[hold_id] = use
        free = self.money.free(account, use, self.latest)
        event = Authorize(
            hold_id=hold_id, account_id=account, amount_uhs=amount, use=use, ttl_us=ttl * S, minimum_uhs=minimum,
            request_id=hold_id,
        )  # fmt: skip
        outcome = self.ask(event)
        self.requests.append((event, outcome))
        granted = min(amount, free)
        if not amount:
            assert outcome.code == "invalid_amount"
        elif granted < amount and (minimum is None or granted < minimum):
            assert (outcome.code, outcome.facts["free_uhs"]) == ("insufficient_tokens", free)
        else:
            assert outcome == Accepted(granted_uhs=granted, held_uhs=granted, final=granted < amount)
            hold = self.money.holds[hold_id]
            hold.expires, hold.answer, hold.over_at = self.latest + ttl * S, ("update", outcome), 0
            self.clients.append((hold_id, account))

    @precondition(lambda self: self.clients)
    @rule(
        pick=picks,
        step=st.sampled_from([-1, 0, 1, 1, 1, 2]),
        used=st.sampled_from([0, 5, 150, 1_500]),
        more=st.sampled_from([0, 10, 400]),
        ttl=st.sampled_from([None, 30]),
        verb=st.sampled_from(["update", "update", "settle", "release"]),
        thief=st.booleans(),
    )
    def word(self, *, pick, step, used, more, ttl, verb, thief):
        """A client says something about a hold: new, again, late, or about somebody else's."""
        self.do(Tick())
        hold_id, owner = self.clients[-1 - pick % len(self.clients)]
        account = ACCOUNTS[(ACCOUNTS.index(owner) + 1) % 3] if thief and step == 2 else owner
        hold, used, more = self.money.holds[hold_id], used * S, more * S
        common = {"hold_id": hold_id, "account_id": account, "seq": hold.seq + step}
        trial = copy.deepcopy(self.money)
        if verb == "update":
            expected = self.expect_update(trial, hold_id, used, more, ttl)
            event = UpdateHold(**common, used_uhs=used, more_uhs=more, ttl_us=ttl and ttl * S)
        else:
            used = used if verb == "settle" else 0
            expected = self.expect_end(trial, hold_id, used)
            event = SettleHold(**common, used_uhs=used) if verb == "settle" else ReleaseHold(**common)
        outcome = self.ask(event)
        kind = "update" if verb == "update" else "end"
        forgotten = {"ended": REMEMBER_ENDED_US, "lapsed": REMEMBER_LAPSED_US}.get(hold.state)
        if account != owner or (forgotten is not None and hold.over_at < self.latest - forgotten):
            assert outcome.code == "not_found"
        elif step <= 0:
            again = step == 0 and hold.answer[0] == kind
            assert outcome == hold.answer[1] if again else outcome.code == "stale_seq"
        elif hold.state == "ended":
            assert outcome.code == "hold_ended"
        else:
            assert outcome == expected
            hold.seq, hold.answer, hold.lapsed = hold.seq + step, (kind, outcome), max(hold.lapsed - used, 0)
            if verb != "update":
                hold.state, hold.over_at = "ended", self.latest
            elif hold.state in ("open", "aside") and ttl:
                hold.state, hold.expires = "open", self.latest + ttl * S
