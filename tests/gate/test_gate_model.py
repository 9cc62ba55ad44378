"""The whole core against naive oracles, one event at a time: an auditor of transfers and a meter in exact fractions.

The machine sends whatever a client, an operator or a cluster could send, in any order. It predicts every answer about
tokens from the auditor's lists alone, checks every transfer, charge and instruction, and after each step the invariants of
the whole. Its journal is decided again at the end, and a twin restored from a snapshot must never differ.
"""

import copy
from collections import defaultdict
from fractions import Fraction
from math import ceil

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fabric.gate import Gate
from fabric.gate.events import (
    Authorize,
    BuyBundle,
    Cancel,
    ClosePeriod,
    Configure,
    CreateKey,
    Grant,
    HoldMode,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    Metered,
    NodeDown,
    NodeDrain,
    NodeUp,
    OpenAccount,
    Pause,
    Pool,
    RaiseLimit,
    ReleaseHold,
    Resume,
    RevokeKey,
    Sample,
    SettleHold,
    Submit,
    Subscribe,
    Tick,
    TopUp,
    Unsubscribe,
    UpdateHold,
)
from fabric.gate.holds import QUANTUM_US, RENEW_BELOW
from fabric.gate.instructions import Accepted, Refusal, RemoveLease, StartLease, StopLease
from fabric.gate.leases import ROUNDING_US, SILENCE_US
from fabric.gate.questions import BalanceOf, JobOf, QuoteOf
from fabric.ledger import Scope, Service, Use
from fabric.ledger.sweeping import REMEMBER_ENDED_US, REMEMBER_LAPSED_US
from tests.gate.oracle import CREDIT, Auditor, Hold, Meter, admits
from tests.gate.world import CATALOGUE, CONFIGURE, DAY, STEEP, T0, TARIFFS, S, spec

ACCOUNTS = ("ada", "bob", "cyd")
NODES_AT_FIRST = {
    "h1": ("H100", 4, Pool.SPOT, None),
    "h2": ("H100", 8, Pool.SPOT, None),
    "a1": ("A100", 8, Pool.RESERVED, None),
    "n1": ("910B", 4, Pool.DEDICATED, "cyd"),
}
USES = (
    Use(service=Service.TRAINING, accelerators=("H100",)),
    Use(service=Service.INFERENCE, accelerators=("A100", "H100")),
    Use(service=Service.INFERENCE, models=("qwen3",)),
)
SCOPES = (Scope(), Scope(), Scope(accelerators=("H100",)), Scope(services=(Service.INFERENCE,), models=("qwen3",)))
TYPES = (("H100",), ("A100",), ("H100", "A100"), ("910B",), ())
TERMINAL = ("succeeded", "failed", "cancelled")
PLACEMENT_CODES = {"gang_too_large", "no_pool_for", "unknown_accelerator"}
WAITS = [0, 0.3, 1, 1, 4, 11, 30, 100, 400, 3_000, 100_000, 8 * 86_400, 40 * 86_400]

accounts = st.sampled_from(ACCOUNTS)
picks = st.integers(0, 30)


class Driver(RuleBasedStateMachine):
    """Hands events in and checks what comes of each; knows no rules."""

    def __init__(self):
        super().__init__()
        self.gate, self.twin = Gate(), None
        self.now, self.latest, self.made = T0, T0, 0
        self.journal, self.decisions = [], []
        self.money, self.tariffs = Auditor(self.policy_of), TARIFFS
        self.uses, self.clients, self.keys, self.requests = {}, [], [], []
        self.meters, self.weights, self.ended, self.stopped, self.outcomes = {}, {}, {}, {}, {}
        self.devices, self.outstanding, self.leases = {}, {}, []
        self.nodes = dict(NODES_AT_FIRST)
        self.open_holds, self.over = set(), set()

    @property
    def state(self):
        return self.gate.state

    @property
    def book(self):
        return self.gate.state.book

    def name(self, kind):
        self.made += 1
        return f"{kind}{self.made}"

    def policy_of(self, account, use):
        """(origins, credit) that the most generous subscription over this use lets in."""
        policies = set()
        for record in self.state.subscriptions:
            offer = CATALOGUE.subscription(record.subscription)
            only = Scope(services=tuple(Service(name) for name in offer.restriction.services))
            if record.account_id == account and admits(only, use):
                policies.add(offer.overflow.value)
        if not policies or "postpaid" in policies:
            return None, True
        return (None if "wallet" in policies else {"subscription"}), False

    # -- handing in --------------------------------------------------------------------------------------------------------

    def ask(self, event):
        """An event from outside: time has its effects first, so that a refusal can be seen to have none."""
        self.do(Tick())
        before = self.gate.snapshot()
        decision = self.do(event)
        if isinstance(decision.outcome, Refusal):
            assert decision.instructions == decision.transfers == decision.records == ()
            assert not difference(before, self.gate.snapshot(), but="answered"), decision.outcome
            assert decision.outcome.message
        return decision.outcome

    def do(self, event):
        self.latest = max(self.latest, self.now)
        due, before = self.gate.next_due_us(), None
        if isinstance(event, Tick) and (due is None or due > self.latest):
            before = self.gate.snapshot()
        self.lapse()
        stood = {name: (record.state, self.hold_of(record)) for name, record in self.state.leases.items()}
        decision = self.gate.handle(event, self.now)
        self.journal.append((event, self.now))
        self.decisions.append(decision)
        if before is not None:
            assert not difference(before, self.gate.snapshot(), but="now_us"), "a tick before anything was due"
        if self.twin is not None:
            assert self.twin.handle(event, self.now) == decision, "a restored gate decides otherwise"
        captured, emptied = self.audit(decision.transfers)
        self.reckon(event, decision, stood, captured, emptied)
        gone = event.lease_id if isinstance(event, LeaseRemoved) else None
        self.devices.pop(gone, None)
        for instruction in decision.instructions:
            self.heed(instruction)
        self.outstanding.pop(gone, None)
        return decision

    def hold_of(self, record):
        return self.state.jobs[record.lease.job_id].hold_id

    def lapse(self):
        """Clients' holds whose time is up: any event makes them end."""
        for hold_id, _ in self.clients:
            hold = self.money.holds[hold_id]
            if hold.state == "open" and hold.expires <= self.latest:
                hold.state, hold.lapsed, hold.over_at = "lapsed", hold.held, hold.expires

    def audit(self, transfers):
        captured, emptied = defaultdict(int), {ref for ref, hold in self.money.holds.items() if not hold.held}
        for transfer in transfers:
            self.money.apply(
                transfer,
                use_of=lambda ref: self.uses[ref.partition("#")[0]],
                terms_of=lambda lot_id: self.book.lots[lot_id].terms,
            )
            if transfer.kind == "capture":
                captured[transfer.ref] += transfer.postings[-1].amount
                if not self.money.holds[transfer.ref].held:
                    emptied.add(transfer.ref)
        return captured, emptied

    # -- charges, by meters of our own -------------------------------------------------------------------------------------

    def reckon(self, event, decision, stood, captured, emptied):
        dues = self.dues_of(event, stood)
        for name, (_, hold_id) in stood.items():
            got = captured.get(hold_id, 0)
            assert got <= dues[name], f"{name} was charged {got}, and {dues[name]} was due"
            if got < dues[name]:
                assert hold_id in emptied, f"{name} was charged {got} of {dues[name]} though more was held"
                self.meters[name].absorbed += dues[name] - got
        for cdr in decision.records:
            self.check_cdr(cdr, decision)

    def dues_of(self, event, stood):
        """What the event makes due for each lease."""
        dues = defaultdict(int)
        match event:
            case Metered(samples=samples):
                for sample in samples:
                    if sample.lease_id in self.meters and sample.lease_id in stood:
                        until = self.ended.get(sample.lease_id, self.latest)
                        dues[sample.lease_id] += self.meters[sample.lease_id].sample(sample, until)
            case Tick():
                for name, (state, _) in stood.items():
                    meter = self.meters.get(name)
                    if state == "running" and self.latest - meter.started - meter.metered > SILENCE_US:
                        dues[name] += meter.gap(self.latest - meter.started - meter.metered)
            case LeaseRemoved(lease_id=name, final=final) if name in self.meters and name in stood:
                meter, until = self.meters[name], self.ended.get(name, self.latest)
                if final is not None:
                    dues[name] += meter.sample(final, until)
                unseen = until - meter.started - meter.metered
                if unseen > (0 if final is None else ROUNDING_US):
                    dues[name] += meter.gap(unseen)
            case LeaseSaved(lease_id=name) if name in self.meters and name in stood:
                self.meters[name].durable = self.meters[name].charged
            case LeaseStarted(lease_id=name) if stood.get(name, ("",))[0] == "starting":
                job = self.state.jobs[self.state.leases[name].lease.job_id]
                self.meters[name] = Meter(
                    devices=job.spec.devices,
                    weight_ppm=self.weights[name],
                    curve=self.tariffs.curve,
                    started=self.latest,
                )
        return dues

    def check_cdr(self, cdr, decision):
        meter = self.meters[cdr.lease_id]
        lost = self.outcomes.get(cdr.lease_id, "lost") == "lost"
        if lost and self.stopped.get(cdr.lease_id) in (None, "evicted", "drained"):
            meter.refunded = max(meter.charged - meter.durable, 0)
        refunds = sum(transfer.postings[-1].amount for transfer in decision.transfers if transfer.kind == "refund")
        assert refunds == cdr.refunded_uhs == meter.refunded
        assert cdr.charged_uhs == meter.charged
        assert cdr.absorbed_uhs == meter.absorbed
        assert (cdr.metered_us, cdr.estimated_us) == (meter.metered, meter.estimated)
        assert cdr.ended_at_us == self.ended.get(cdr.lease_id, self.latest)
        assert cdr.ended == self.outcomes.get(cdr.lease_id, "lost")
        assert cdr.metered_us <= cdr.ended_at_us - cdr.started_at_us

    # -- what instructions must be -----------------------------------------------------------------------------------------

    def heed(self, instruction):
        match instruction:
            case StartLease(lease=lease):
                self.heed_start(instruction, lease)
            case StopLease(lease_id=name):
                assert self.latest <= instruction.deadline_us
                self.outstanding[name] = [self.outstanding[name][0], instruction]
                self.stopped[name] = instruction.reason
                record = self.state.leases.get(name)
                if record is not None and record.state == "stopping":
                    self.covers(record, instruction.deadline_us)
            case RemoveLease(lease_id=name):
                assert not isinstance(self.outstanding[name][0], RemoveLease), f"{name} is removed twice"
                self.outstanding[name] = [instruction]
                event = self.journal[-1][0]
                said = isinstance(event, LeaseFinished) and event.lease_id == name
                self.outcomes[name] = event.outcome.value if said else "lost"
                self.ended[name] = self.latest

    def heed_start(self, instruction, lease):
        job = self.state.jobs[lease.job_id]
        assert lease.epoch == job.attempts
        assert lease.lease_id not in self.leases
        assert sum(share.devices for share in lease.shares) == job.spec.devices
        if lease.lease_id in self.state.leases:
            assert self.book.holds[job.hold_id].held_uhs > 0, f"{lease.lease_id} runs uncovered"
        self.leases.append(lease.lease_id)
        self.outstanding[lease.lease_id] = [instruction]
        self.devices[lease.lease_id] = {share.node_id: share.devices for share in lease.shares}
        self.weights[lease.lease_id] = self.weight(job, lease.accelerator)
        for node_id in self.devices[lease.lease_id]:
            taken = sum(shares.get(node_id, 0) for shares in self.devices.values())
            kind, devices, pool, owner = self.nodes[node_id]
            assert taken <= devices, f"{node_id} is leased twice"
            assert kind == lease.accelerator
            assert job.spec.accelerators in ((), (kind,)) or kind in job.spec.accelerators
            assert owner in (None, job.account_id)
            assert pool is not Pool.RESERVED or job.spec.preemptible or job.spec.service == "inference"

    def covers(self, record, deadline_us):
        """What is held lasts until the deadline, however hard it burns."""
        meter, job = self.meters[record.lease.lease_id], self.state.jobs[record.lease.job_id]
        worst = max(deadline_us - meter.started - meter.metered, 0) * meter.devices * meter.weight * meter.peak
        assert worst <= job.held_uhs or deadline_us == self.latest

    def weight(self, job, accelerator):
        weight = self.tariffs.weight_ppm(
            accelerator,
            service=job.spec.service,
            operator="op",
            tier=self.state.accounts[job.account_id].plan,
            at_us=self.latest,
        )
        assert weight is not None
        return weight


class GateMachine(Driver):
    """What may happen, and what the answer must be."""

    @initialize(seconds=st.sampled_from([0, 20 * 86_400]), credit=st.sampled_from([0, 500 * S]))
    def open_for_business(self, seconds, credit):
        self.now += seconds * S
        assert self.do(OpenAccount(account_id="early", name="", plan="starter")).outcome.code == "not_configured"
        self.do(CONFIGURE)
        for account, plan in zip(ACCOUNTS, ("starter", "pro", "post"), strict=True):
            self.do(OpenAccount(account_id=account, name=account, plan=plan, credit_limit_uhs=credit))
            self.money.limit[account] = credit or CATALOGUE.plan(plan).credit_limit_uhs
            self.do(TopUp(account_id=account, amount_uhs=1_000 * S))
        for node_id in NODES_AT_FIRST:
            self.node_up(node_id, 0)
        for account, hold in zip(ACCOUNTS, (HoldMode.FULL, HoldMode.ROLLING, HoldMode.FULL), strict=True):
            self.submit(
                account=account,
                types=("H100",),
                gang=(1, None),
                seconds=900,
                hold=hold,
                service=Service.TRAINING,
                more={},
                keyed=False,
                named=False,
            )

    # -- money -------------------------------------------------------------------------------------------------------------

    @rule(
        way=st.sampled_from(["top_up", "top_up", "grant", "bundle"]),
        account=accounts,
        seconds=st.sampled_from([-1, 0, 30, 50, 700, 4_000, 4_000]),
        scope=st.sampled_from(SCOPES),
        life=st.sampled_from([None, 5 * S, DAY]),
    )
    def bring_in_tokens(self, way, account, seconds, scope, life):
        bought = self.state.accounts[account].entitlements.get("5g-min", 0)
        name, amount = self.name("r"), seconds * S
        event = {
            "top_up": TopUp(account_id=account, amount_uhs=amount, request_id=name),
            "grant": Grant(account_id=account, amount_uhs=amount, scope=scope, lifetime_us=life, request_id=name),
            "bundle": BuyBundle(account_id=account, bundle="none" if seconds == 0 else "edge", request_id=name),
        }[way]
        outcome = self.ask(event)
        self.requests.append((event, outcome))
        accepted = seconds > 0 or (way == "bundle" and seconds != 0)
        assert isinstance(outcome, Accepted) == accepted
        got = self.state.accounts[account].entitlements.get("5g-min", 0) - bought
        assert got == 600 * (accepted and way == "bundle")

    @rule(account=accounts, offer=st.sampled_from(["monthly", "weekly", "daily"]), end=st.booleans())
    def subscribe(self, account, offer, end):
        running = [r for r in self.state.subscriptions if (r.account_id, r.subscription) == (account, offer)]
        if end:
            outcome = self.ask(Unsubscribe(account_id=account, subscription=offer))
            assert isinstance(outcome, Accepted) == bool(running)
            return
        ending = [record.ending for record in running]
        outcome = self.ask(Subscribe(account_id=account, subscription=offer))
        if isinstance(outcome, Refusal):
            assert (outcome.code, ending) == ("already_subscribed", [False])

    @rule(steep=st.booleans(), bad=st.sampled_from([None, None, "plan", "type", "weight"]))
    def configure(self, steep, bad):
        """Prices change; or would, but for somebody or something that would be left without one."""
        tariffs = STEEP if steep else TARIFFS
        weights = {"type": TARIFFS.weights[1:], "weight": TARIFFS.weights[:1] + TARIFFS.weights[2:]}
        outcome = self.ask(
            Configure(
                tariffs=msgspec.structs.replace(tariffs, weights=weights.get(bad, tariffs.weights)),
                catalogue=msgspec.structs.replace(CATALOGUE, plans=CATALOGUE.plans[: 1 if bad == "plan" else 3]),
            )
        )
        assert isinstance(outcome, Accepted) if bad is None else outcome.code == "invalid_config"
        self.tariffs = tariffs if bad is None else self.tariffs

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
        """A request id with the same content gets the first answer for ever, with other content a conflict."""
        event, outcome = self.requests[pick % len(self.requests)]
        if changed:
            event = TopUp(account_id=event.account_id, amount_uhs=7 * S, request_id=event.request_id)
        again = self.ask(event)
        assert again == outcome if not changed else again.code == "request_id_reused"
        assert self.decisions[-1].transfers == self.decisions[-1].instructions == ()

    # -- clients' holds ----------------------------------------------------------------------------------------------------

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
            expected = self.expect_update(trial, hold_id, used, more)
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
            elif hold.state == "open" and ttl:
                hold.expires = self.latest + ttl * S

    def use_up(self, trial, hold_id, used):
        """Held, then free, then debt: returns what became debt."""
        hold = trial.holds[hold_id]
        debt, covered = 0, min(used, hold.held)
        while covered:
            lot, there = hold.queue.pop(0)
            part = min(there, covered)
            hold.queue[:0] = [(lot, there - part)] if there > part else []
            debt += part * (lot == CREDIT)
            trial.debt[hold.account] += part * (lot == CREDIT)
            covered, used = covered - part, used - part
        over = trial.take(hold.account, hold.use, used, self.latest, into="captured")
        beyond = sum(part for lot, part in over if lot == CREDIT)
        trial.debt[hold.account] += beyond
        return debt + beyond

    def expect_update(self, trial, hold_id, used, more):
        hold = trial.holds[hold_id]
        self.use_up(trial, hold_id, used)
        is_open = hold.state == "open"
        granted = min(more, trial.free(hold.account, hold.use, self.latest)) if is_open else 0
        return Accepted(granted_uhs=granted, held_uhs=hold.held + granted, final=granted < more or not is_open)

    def expect_end(self, trial, hold_id, used):
        hold = trial.holds[hold_id]
        late = hold.state == "lapsed"
        over = used > (hold.lapsed if late else hold.held)
        debt = self.use_up(trial, hold_id, used)
        facts = {"captured_uhs": used, "released_uhs": hold.held, "debt_uhs": debt, "over_hold": over, "late": late}
        return Accepted(facts=facts)

    # -- jobs --------------------------------------------------------------------------------------------------------------

    @rule(
        account=accounts,
        types=st.sampled_from(TYPES),
        gang=st.sampled_from([(1, None), (1, None), (2, None), (4, 2), (8, None), (9, 3), (40, None)]),
        seconds=st.sampled_from([60, 60, 300, 300, 1_500, 5_000, 5, 0]),
        hold=st.sampled_from(HoldMode),
        service=st.sampled_from(
            [Service.TRAINING, Service.TRAINING, Service.TRAINING, Service.INFERENCE, Service.BATCH]
        ),
        more=st.fixed_dictionaries(
            {
                "preemptible": st.booleans(),
                "grace_us": st.sampled_from([0, 10 * S, 200 * S]),
                "max_retries": st.sampled_from([0, 1]),
                "time_limit_us": st.sampled_from([None, None, 50 * S]),
            }
        ),
        keyed=st.booleans(),
        named=st.booleans(),
    )
    def submit(self, *, account, types, gang, seconds, hold, service, more, keyed, named):
        self.do(Tick())
        job_id, limit = self.name("j"), seconds * S
        wanted = spec(limit, types=types, devices=gang[0], devices_per_node=gang[1], hold=hold, service=service, **more)
        self.uses[job_id] = Use(service=service, accelerators=types)
        key = self.keys[-1] if keyed and self.keys else None
        event = Submit(
            job_id=job_id, account_id=account, spec=wanted, key_id=key, request_id=self.name("r") if named else ""
        )
        quote = self.gate.ask(QuoteOf(account_id=account, spec=wanted, key_id=key), self.now)
        free = self.money.free(account, self.uses[job_id], self.latest)
        outcome = self.ask(event)
        if named:
            self.requests.append((event, outcome))
        assert isinstance(outcome, Accepted) == (quote.affordable and not quote.refusal)
        if isinstance(outcome, Accepted):
            assert outcome.held_uhs == outcome.granted_uhs == quote.hold_uhs == self.first_hold(account, wanted) <= free
        elif outcome.code == "insufficient_tokens":
            assert (outcome.facts["free_uhs"], outcome.facts["needed_uhs"]) == (free, self.first_hold(account, wanted))
        elif outcome.code == "invalid_amount":
            assert limit == 0
        elif outcome.code in {"key_limit_reached", "key_revoked", "not_found"}:
            assert key is not None
        else:
            assert outcome.code in PLACEMENT_CODES

    def first_hold(self, account, wanted):
        if wanted.hold is HoldMode.FULL:
            return wanted.limit_uhs
        plan = self.state.accounts[account].plan
        weight = max(
            self.tariffs.weight_ppm(name, service=wanted.service, operator="op", tier=plan, at_us=self.latest)
            for name in wanted.accelerators or self.tariffs.accelerators
        )
        duration = max(QUANTUM_US, 2 * RENEW_BELOW * wanted.grace_us)
        worst = wanted.devices * duration * Fraction(weight * self.tariffs.curve.points[-1][1], 10**12)
        return min(wanted.limit_uhs, ceil(worst))

    @precondition(lambda self: self.state.jobs)
    @rule(
        pick=picks,
        verb=st.sampled_from([Cancel, Pause, Pause, Resume, Resume, RaiseLimit, RaiseLimit]),
        thief=st.booleans(),
    )
    def order(self, pick, verb, thief):
        job = list(self.state.jobs.values())[-1 - pick % len(self.state.jobs)]
        account = ACCOUNTS[(ACCOUNTS.index(job.account_id) + 1) % 3] if thief and pick % 3 == 0 else job.account_id
        extra = {"limit_uhs": job.limit_uhs + 200 * S} if verb is RaiseLimit else {}
        ended = job.state in TERMINAL
        outcome = self.ask(verb(job_id=job.job_id, account_id=account, **extra))
        if account != job.account_id:
            assert outcome.code == "not_found"
        elif ended:
            assert outcome.code == "job_ended"
        elif isinstance(outcome, Refusal):
            assert outcome.code in {"insufficient_tokens", "limit_reached", "key_limit_reached", "job_ended"}

    # -- the cluster -------------------------------------------------------------------------------------------------------

    @rule(node_id=st.sampled_from(list(NODES_AT_FIRST)), fewer=st.sampled_from([0, 0, 0, 1]))
    def node_up(self, node_id, fewer):
        kind, devices, pool, owner = NODES_AT_FIRST[node_id]
        node = (kind, devices - fewer, pool, owner)
        event = NodeUp(node_id=node_id, accelerator=kind, devices=node[1], pool=pool, dedicated_to=owner)
        if node != self.nodes[node_id]:
            self.clear(node_id)
        self.nodes[node_id] = node
        assert isinstance(self.ask(event), Accepted)

    @rule(node_id=st.sampled_from(list(NODES_AT_FIRST)), drain=st.booleans())
    def node_down(self, node_id, drain):
        if drain:
            self.ask(NodeDrain(node_id=node_id, grace_us=5 * S))
            return
        self.clear(node_id)
        self.ask(NodeDown(node_id=node_id))

    def clear(self, node_id):
        for shares in self.devices.values():
            shares.pop(node_id, None)

    def lease(self, pick, state):
        found = [name for name, record in self.state.leases.items() if record.state in state]
        return found[pick % len(found)] if found else None

    @rule(
        steps=st.lists(
            st.tuples(picks, st.sampled_from([1, 5, 60, 150, 400]), st.sampled_from([400_000, 1_000_000, 0])),
            min_size=1,
            max_size=8,
        ),
        saved=st.booleans(),
    )
    def work(self, steps, saved):
        """The cluster does as it is told: what should start starts and burns, what should stop saves, what ended is cleared."""
        for pick, seconds, use in steps:
            name = self.lease(pick, ("starting", "running", "stopping", "removing"))
            match self.state.leases[name].state if name else None:
                case "starting":
                    self.do(LeaseStarted(lease_id=name))
                case "running":
                    self.meter(pick, seconds, 1 + pick % 2, use, 1)
                    if saved and pick % 4 == 0:
                        self.do(LeaseSaved(lease_id=name, write_us=S))
                case "stopping":
                    outcome = LeaseOutcome.SAVED if saved else LeaseOutcome.LOST
                    self.do(LeaseFinished(lease_id=name, outcome=outcome))
                case "removing":
                    self.clear_away(name, seconds % 3, final=pick % 2)

    @rule(
        pick=picks,
        seconds=st.sampled_from([1, 5, 60, 150]),
        cuts=st.integers(1, 3),
        use=st.sampled_from([0, 400_000, 1_000_000]),
        step=st.sampled_from([1, 1, 1, 0, 3]),
    )
    def meter(self, pick, seconds, cuts, use, step):
        """Time passes and is metered, in one window or several; now and then a sample is said again or lost."""
        name = self.lease(pick, ("running", "stopping"))
        if name is None:
            return
        self.now = self.latest + seconds * S
        meter = self.meters[name]
        samples = []
        for cut in range(cuts):
            window = seconds * S // cuts + (cut == 0) * (seconds * S % cuts)
            busy = meter.devices * window * use // 1_000_000
            seq = meter.seq + step + cut
            samples.append(Sample(lease_id=name, seq=seq, window_us=window, busy_us=busy, estimated=pick == 7))
        self.do(Metered(samples=tuple(samples)))

    @rule(pick=picks, window=st.sampled_from([0, 1, 90]), busy=st.sampled_from([-1, 5, 10_000]), dead=st.booleans())
    def meter_nonsense(self, pick, window, busy, dead):
        """Windows longer than the time that has passed, more busy than there is, leases that are long gone."""
        if self.leases:
            name = self.leases[-1 - pick % len(self.leases)] if dead else self.lease(pick, ("running", "removing"))
            seq = self.meters[name].seq + 1 if name in self.meters else 1
            sample = Sample(lease_id=name or "nobody.1", seq=seq, window_us=window * S, busy_us=busy * S)
            self.do(Metered(samples=(sample, sample)))

    @rule(
        pick=picks,
        outcome=st.sampled_from(LeaseOutcome),
        where=st.sampled_from([("starting",), ("running", "stopping")]),
    )
    def end(self, pick, outcome, where):
        if name := self.lease(pick, where):
            self.do(LeaseFinished(lease_id=name, outcome=outcome, error="boom\nValueError: no"))

    @rule(pick=picks)
    def save(self, pick):
        if name := self.lease(pick, ("running", "stopping", "removing")):
            self.do(LeaseSaved(lease_id=name, write_us=S))

    @rule(pick=picks, final=st.booleans(), seconds=st.sampled_from([0, 1, 3]))
    def land(self, pick, final, seconds):
        """What is to be removed is gone, with a last sample or without."""
        if name := self.lease(pick, ("removing",)):
            self.clear_away(name, seconds, final=final)

    def clear_away(self, name, seconds, *, final):
        self.now = self.latest + seconds * S
        sample = None
        if final and name in self.meters:
            meter = self.meters[name]
            rest = max(self.ended[name] - meter.started - meter.metered - 2, 0)
            sample = Sample(lease_id=name, seq=meter.seq + 1, window_us=rest, busy_us=rest)
        self.do(LeaseRemoved(lease_id=name, final=sample))

    @rule(pick=picks)
    def vanish(self, pick):
        if name := self.lease(pick, ("starting", "running", "stopping")):
            self.do(LeaseRemoved(lease_id=name))

    @precondition(lambda self: any(name not in self.state.leases for name in self.leases))
    @rule(
        pick=picks,
        make=st.sampled_from(
            [
                lambda name: LeaseStarted(lease_id=name),
                lambda name: LeaseSaved(lease_id=name),
                lambda name: LeaseFinished(lease_id=name, outcome=LeaseOutcome.FAILED),
                lambda name: LeaseRemoved(lease_id=name),
                lambda name: Metered(samples=(Sample(lease_id=name, seq=99, window_us=S, busy_us=S),)),
            ]
        ),
    )
    def late_word(self, pick, make):
        """A word from a dead attempt changes nothing."""
        dead = [name for name in self.leases if name not in self.state.leases]
        self.do(Tick())
        before = self.gate.snapshot()
        decision = self.do(make(dead[pick % len(dead)]))
        assert decision.transfers == decision.instructions == decision.records == ()
        assert not difference(before, self.gate.snapshot())

    # -- time --------------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from(WAITS), tick=st.booleans())
    def wait(self, seconds, tick):
        self.now = self.latest + round(seconds * S)
        if tick:
            self.do(Tick())

    @rule(seconds=st.sampled_from([5, 86_400]))
    def turn_the_clock_back(self, seconds):
        self.now = self.latest - seconds * S
        self.do(Tick())
        assert self.state.now_us == self.latest

    @rule()
    def tick_when_due(self):
        """What falls due does so in a finite number of ticks."""
        for _ in range(20):
            due = self.gate.next_due_us()
            if due is None or due > self.latest:
                break
            self.do(Tick())
        else:
            pytest.fail(f"ticks never settle: due at {due}, now {self.latest}")

    @rule()
    def restart(self):
        """A gate restored from a snapshot is the same, and goes on the same."""
        snapshot = self.gate.snapshot()
        self.twin = Gate.restore(snapshot)
        assert self.twin.snapshot() == snapshot
        self.twin.check()

    # -- what is always so -------------------------------------------------------------------------------------------------

    @invariant()
    def the_gate_is_sound(self):
        self.gate.check()
        if self.twin is not None:
            assert self.twin.snapshot() == self.gate.snapshot()

    @invariant()
    def the_journal_alone_gives_every_balance(self):
        held, debt = defaultdict(int), defaultdict(int)
        for hold in self.money.holds.values():
            held[hold.account] += hold.held
        for account in ACCOUNTS:
            debt[account] = self.money.debt[account] + self.money.on_credit(account)
            lots = [lot for lot in self.money.lots if lot.account == account]
            assert self.money.paths[f"cust/{account}/available"] == sum(lot.free for lot in lots) >= 0
            assert self.money.paths[f"cust/{account}/held"] == held[account] >= 0
            assert self.money.paths[f"cust/{account}/debt"] == -debt[account] <= 0
        for lot in self.money.lots:
            booked = self.book.lots[lot.lot_id]
            there = (lot.free, lot.held, lot.captured, lot.expired)
            assert there == (booked.free_uhs, booked.held_uhs, booked.captured_uhs, booked.expired_uhs), lot.lot_id
            assert min(there) >= 0
            assert sum(there) == lot.amount
        assert len(self.money.lots) == len(self.book.lots)

    @invariant()
    def what_is_held_is_held_for_a_job_or_a_client(self):
        owners = {job.hold_id: job for job in self.state.jobs.values() if job.hold_id is not None}
        for hold_id, hold in self.book.holds.items():
            there = self.money.holds.get(hold_id, Hold("", None))
            assert hold.held_uhs == there.held
            assert ("#" in hold_id) == (hold_id in owners)
        for hold_id in owners:
            assert hold_id in self.book.holds
        ended = self.open_holds - set(self.book.holds)
        assert not self.over & set(self.book.holds), "a hold that had ended is open again"
        self.over |= ended
        self.open_holds = set(self.book.holds)
        assert all(not self.money.holds[hold_id].held for hold_id in self.over)

    @invariant()
    def every_job_pays_for_what_it_burned_and_no_more(self):
        burned = defaultdict(int)
        for hold_id, hold in self.money.holds.items():
            burned[hold_id.partition("#")[0]] += hold.captured
        for job in self.state.jobs.values():
            assert job.burned_uhs == burned[job.job_id] <= job.limit_uhs
            assert job.held_uhs == (self.money.holds[job.hold_id].held if job.hold_id else 0)
            assert (job.lease_id in self.state.leases) or job.lease_id is None
            assert job.settled == (job.state in TERMINAL and job.lease_id is None)
            assert not (job.settled and job.hold_id)
            assert (job.job_id in self.state.parked.get(job.account_id, ())) == (
                job.state == "parked" and job.lease_id is None
            )
        for key_id in self.keys:
            key = self.state.keys[key_id]
            mine = [job for job in self.state.jobs.values() if job.key_id == key_id]
            spent, held = sum(job.burned_uhs for job in mine), sum(job.held_uhs for job in mine)
            assert (key.spent_uhs, key.held_uhs) == (spent, held)
            assert key.limit_uhs is None or spent + held <= key.limit_uhs

    @invariant()
    def who_could_go_on_does(self):
        """No job waits for tokens that are there, and none that was asked to go on is forgotten."""
        for account, waiting in self.state.parked.items():
            for job in (self.state.jobs[job_id] for job_id in waiting):
                if job.reason == "out_of_tokens" and job.key_id is None and self.settled_clock():
                    free = self.money.free(account, self.uses[job.job_id], self.latest)
                    left = job.limit_uhs - job.burned_uhs
                    wanted = (
                        min(left, self.first_hold(account, job.spec)) if job.spec.hold is HoldMode.ROLLING else left
                    )
                    assert free < wanted or left <= 0

    def settled_clock(self):
        """Whether prices stand as they stood when tokens were last looked for."""
        return self.tariffs is TARIFFS

    @invariant()
    def what_is_outstanding_is_said_again(self):
        assert self.gate.outstanding() == tuple(said for both in self.outstanding.values() for said in both)

    @invariant()
    def a_balance_shows_what_there_is(self):
        for account in ACCOUNTS:
            view = self.gate.ask(BalanceOf(account_id=account), self.now)
            lots = [lot for lot in self.money.lots if lot.account == account and lot.alive(self.now)]
            assert view.free_uhs == sum(lot.free for lot in lots)
            assert view.debt_uhs == self.money.debt[account]
        for job_id in list(self.state.jobs)[-2:]:
            assert self.gate.ask(JobOf(job_id=job_id), self.now).job_id == job_id

    def teardown(self):
        """All that runs comes to its end, everything is settled, and the journal leads to the same place again."""
        for name, record in list(self.state.leases.items()):
            if record.state != "removing":
                self.do(LeaseFinished(lease_id=name, outcome=LeaseOutcome.SUCCEEDED))
        for _ in range(50):
            if not self.state.leases:
                break
            for name in list(self.state.leases):
                self.do(LeaseFinished(lease_id=name, outcome=LeaseOutcome.SUCCEEDED))
                self.do(LeaseRemoved(lease_id=name))
        assert not self.state.leases
        assert not self.state.sessions
        for job in self.state.jobs.values():
            assert job.settled == (job.state in TERMINAL)
        again = Gate()
        for (event, now), decision in zip(self.journal, self.decisions, strict=True):
            assert again.handle(event, now) == decision
        assert again.snapshot() == self.gate.snapshot()


def difference(before, after, *, but=""):
    """What two snapshots don't have in common, leaving one field out, and what is but remembered for a while."""
    if before == after:
        return {}
    one, other = msgspec.msgpack.decode(before), msgspec.msgpack.decode(after)
    for each in (one, other):
        del each["placement"]["planned_at_us"], each["book"]["ended"], each["book"]["lapsed"]
    return {name: (one[name], other[name]) for name in one if name != but and one[name] != other[name]}


TestTheWholeCore = GateMachine.TestCase
TestTheWholeCore.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.soak
def test_the_whole_core_for_long():
    run_state_machine_as_test(GateMachine, settings=settings(stateful_step_count=100, deadline=None))
