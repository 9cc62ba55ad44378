"""Hands events to a gate and checks what comes of each: transfers, charges, instructions, replay. Knows no rules."""

from collections import defaultdict
from fractions import Fraction
from math import isqrt

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
)

from fabric.gate import Gate, derived
from fabric.gate.burning import ROUNDING_US
from fabric.gate.core import SILENCE_US
from fabric.gate.events import (
    Cancel,
    LeaseFinished,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    Metered,
    Pool,
    Resume,
    Tick,
)
from fabric.gate.instructions import Refusal, RemoveLease, StartLease, StopLease
from fabric.ledger import Scope, Service, Use
from fabric.ledger.state import SETTLEMENT_WINDOW_US
from fabric.units import PPM
from tests.gate.oracle import Auditor, admits
from tests.gate.oracle_prices import PriceBook
from tests.gate.oracle_runs import HOUR, Meter, Outages, Tries
from tests.gate.world import CATALOGUE, T0, TARIFFS

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
PLACEMENT_CODES = {"gang_too_large", "no_pool_for", "unknown_accelerator", "grace_too_long", "over_quota"}
WAITS = [0, 0.3, 1, 1, 4, 11, 30, 100, 400, 3_000, 100_000, 8 * 86_400, 40 * 86_400]

accounts = st.sampled_from(ACCOUNTS)
picks = st.integers(0, 30)


RESTORED_EVERY = 4
"""So many events: in `make soak` every single one, a gate is restored from its snapshot and must decide the same."""


class Driver(RuleBasedStateMachine):
    """Hands events in and checks what comes of each; knows no rules."""

    def __init__(self):
        super().__init__()
        self.gate, self.twin = Gate(), None
        self.now, self.latest, self.made = T0, T0, 0
        self.journal, self.decisions = [], []
        self.money, self.in_force = Auditor(self.policy_of, self.price_of), PriceBook(TARIFFS, CATALOGUE)
        self.uses, self.clients, self.keys, self.requests = {}, [], [], []
        self.channel, self.references = "sandbox", {}
        self.meters, self.kinds, self.ended, self.stopped, self.outcomes = {}, {}, {}, {}, {}
        self.tries = defaultdict(Tries)
        self.outages = defaultdict(Outages)
        self.devices, self.outstanding, self.leases, self.lost_every = {}, {}, [], {}
        self.nodes = dict(NODES_AT_FIRST)
        self.open_holds, self.over = set(), set()

    @property
    def state(self):
        return self.gate.state

    @property
    def tariffs(self):
        """Those in force."""
        return self.in_force.at(self.in_force.tariffs, self.latest)

    @property
    def catalogue(self):
        return self.in_force.at(self.in_force.catalogues, self.latest)

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

    def price_of(self, account):
        return self.catalogue.plan(self.state.accounts[account].plan).price_microcny_per_ct

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
        stood = {name: (record.state, self.hold_of(record)) for name, record in self.state.leases.items()}
        restored = Gate.restore(self.gate.snapshot()) if self.restores_now() else None
        decision = self.gate.handle(event, self.now)
        if restored is not None:
            self.compare(restored, event, decision)
        self.journal.append((event, self.now))
        self.decisions.append(decision)
        if before is not None:
            assert not difference(before, self.gate.snapshot(), but="now_us"), "a tick before anything was due"
        if self.twin is not None:
            assert self.twin.handle(event, self.now) == decision, "a restored gate decides otherwise"
        for name in (each.lease_id for each in decision.instructions if isinstance(each, RemoveLease)):
            self.note_end(event, name)
        for account in self.state.accounts:
            self.money.at_todays(account)
        self.money.uses.clear()
        dues = self.dues_of(event, stood)
        captured, emptied = self.audit(decision.transfers)
        self.reckon(decision, stood, dues, captured, emptied)
        gone = event.lease_id if isinstance(event, LeaseRemoved) else None
        self.devices.pop(gone, None)
        for job in self.state.jobs.values():
            self.tries[job.job_id].queued(job.holds)
        if isinstance(event, Resume) and not isinstance(decision.outcome, Refusal):
            self.tries[event.job_id].earliest = 0
        for instruction in decision.instructions:
            self.heed(instruction)
        self.outstanding.pop(gone, None)
        return decision

    def restores_now(self):
        return len(self.journal) % RESTORED_EVERY == 0 or settings.get_current_profile_name() == "soak"

    def compare(self, restored, event, decision):
        """One that was restored from the snapshot before the event decides the same, and knows the same then."""
        assert restored.handle(event, self.now) == decision, "a restored gate decides otherwise"
        assert restored.snapshot() == self.gate.snapshot()
        derived.assert_same(self.gate._core, restored._core)
        assert restored.next_due_us() == self.gate.next_due_us()
        assert restored.outstanding() == self.gate.outstanding()

    def hold_of(self, record):
        return self.state.jobs[record.lease.job_id].hold_id

    def lapse(self, until):
        """Clients' holds whose time is up by then: they are set aside, and given up when their window ends."""
        for hold_id, _ in self.clients:
            if hold_id in self.money.holds:
                self.let_lapse(self.money.holds[hold_id], until)

    def let_lapse(self, hold, until=None):
        """How much is given up, if it is by then, or now."""
        until = self.latest if until is None else until
        if hold.state == "open" and hold.expires <= until:
            hold.state, hold.settle_by = "aside", hold.expires + SETTLEMENT_WINDOW_US
        if hold.state == "aside" and hold.settle_by <= until:
            hold.state, hold.lapsed, hold.over_at = "lapsed", hold.held, hold.settle_by
            return hold.held
        return 0

    def audit(self, transfers):
        captured, emptied = defaultdict(int), {ref for ref, hold in self.money.holds.items() if not hold.held}
        for transfer in transfers:
            self.lapse(transfer.at_us)
            owed = self.money.owes(transfer.account_id)
            self.money.apply(
                transfer,
                use_of=lambda ref: self.uses[ref.partition("#")[0]],
                terms_of=lambda lot_id: self.book.lots[lot_id].terms,
            )
            if self.money.owes(transfer.account_id) < owed:
                assert transfer.kind in ("payment", "repay", "refund", "credit_note"), f"forgiven: {transfer}"
            if transfer.kind == "capture":
                captured[transfer.ref] += transfer.postings[-1].amount
                if not self.money.holds[transfer.ref].held:
                    emptied.add(transfer.ref)
        self.lapse(self.latest)
        return captured, emptied

    # -- charges, by meters of our own -------------------------------------------------------------------------------------

    def reckon(self, decision, stood, dues, captured, emptied):
        for name, (_, hold_id) in stood.items():
            got = captured.get(hold_id, 0)
            assert got <= dues[name], f"{name} was charged {got}, and {dues[name]} was due"
            if got < dues[name]:
                assert hold_id in emptied, f"{name} was charged {got} of {dues[name]} though more was held"
                self.meters[name].absorbed += dues[name] - got
        for cdr in (record for record in decision.records if not record.model):
            self.check_cdr(cdr, decision)

    def dues_of(self, event, stood):
        """What the event makes due for each lease."""
        dues = defaultdict(int)
        match event:
            case Metered(samples=samples):
                for sample in samples:
                    if sample.lease_id in self.meters and sample.lease_id in stood:
                        until = self.ended.get(sample.lease_id, self.latest)
                        due = self.meters[sample.lease_id].sample(sample, until)
                        dues[sample.lease_id] += self.priced(sample.lease_id, stood, due)
            case Tick():
                for name, (state, _) in stood.items():
                    meter = self.meters.get(name)
                    if state == "running" and self.latest - meter.started - meter.metered > SILENCE_US:
                        due = meter.gap(self.latest - meter.started - meter.metered)
                        dues[name] += self.priced(name, stood, due)
            case LeaseRemoved(lease_id=name, final=final) if name in self.meters and name in stood:
                meter, until = self.meters[name], self.ended.get(name, self.latest)
                if final is not None:
                    dues[name] += self.priced(name, stood, meter.sample(final, until))
                unseen = until - meter.started - meter.metered
                if unseen > (0 if final is None else ROUNDING_US):
                    dues[name] += self.priced(name, stood, meter.gap(unseen))
            case LeaseSaved(lease_id=name) if name in self.meters and name in stood:
                self.meters[name].durable, self.meters[name].durable_at = (
                    self.meters[name].charged,
                    self.meters[name].metered,
                )
                self.tries[self.state.leases[name].lease.job_id].saved(event.step, self.meters[name].durable)
            case LeaseStarted(lease_id=name) if stood.get(name, ("",))[0] == "starting":
                job = self.state.jobs[self.state.leases[name].lease.job_id]
                self.tries[job.job_id].unstarted = 0
                self.meters[name] = Meter(
                    devices=job.spec.devices,
                    weight_at=self.weight_of(job, self.kinds[name], self.in_force.of_lease(self.latest)),
                    tariffs_at=self.in_force.of_lease(self.latest),
                    started=self.latest,
                    turns=self.in_force.turns,
                )
        return dues

    def priced(self, name, stood, due):
        """What a meter told is due, by the prices of its time."""
        plan = self.state.accounts[self.state.jobs[name.rpartition(".")[0]].account_id].plan
        parts = self.in_force.together(plan, self.meters[name].taken())
        self.money.uses.setdefault(stood[name][1], []).extend(parts)
        return due

    def check_cdr(self, cdr, decision):
        meter = self.meters[cdr.lease_id]
        lost = self.outcomes.get(cdr.lease_id, "lost") == "lost"
        tries = self.tries[cdr.job_id]
        reason, outages = self.stopped.get(cdr.lease_id), self.outages[cdr.account_id]
        ours = lost and reason in (None, "evicted", "resized", "drained", "fabric_down") and tries.believed()
        if ours and (reason is not None or outages.believed(self.latest)):
            took = self.state.jobs[cdr.job_id].saves_us
            every = self.lost_every[cdr.lease_id]
            often = min(max(isqrt(2 * max(took) * every), 20 * max(took)), every) if took else every
            meter.most = 2 * max(often, 60_000_000)
            meter.refunded = meter.lost()
            tries.given_back += meter.refunded
            if reason is None:
                outages.took(self.latest, meter.refunded)
        outages.paid(meter.charged)
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
                self.lost_every[lease.lease_id] = lease.loss_every_us
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

    def note_end(self, event, name):
        """An attempt is over."""
        said = isinstance(event, LeaseFinished) and event.lease_id == name
        self.outcomes[name] = event.outcome.value if said else "lost"
        self.ended[name] = self.latest
        if isinstance(event, Cancel) and event.at_once:
            self.stopped[name] = "cancelled"  # without a StopLease
        job, record = self.state.jobs[name.rpartition(".")[0]], self.state.leases.get(name)
        asked_for = self.stopped.get(name) if record is None else record.stop_reason
        self.tries[job.job_id].ended(
            self.outcomes[name],
            asked_for=asked_for,
            started_at=self.meters[name].started if name in self.meters else None,
            at=self.latest,
            saved_step=job.saved_step,
        )

    def heed_start(self, instruction, lease):
        job = self.state.jobs[lease.job_id]
        assert lease.epoch == job.attempts
        assert self.latest >= self.tries[job.job_id].earliest, "it is tried again too soon"
        assert lease.lease_id not in self.leases
        assert sum(share.devices for share in lease.shares) == job.spec.devices
        if lease.lease_id in self.state.leases:
            assert self.book.holds[job.hold_id].held_uhs > 0, f"{lease.lease_id} runs uncovered"
        self.leases.append(lease.lease_id)
        self.outstanding[lease.lease_id] = [instruction]
        self.devices[lease.lease_id] = {share.node_id: share.devices for share in lease.shares}
        kinds = [self.nodes[share.node_id][0] for share in lease.shares for _ in range(share.devices)]
        self.kinds[lease.lease_id] = kinds
        assert lease.accelerator == "+".join(dict.fromkeys(kinds))
        assert len(set(kinds)) == 1 or job.spec.mix == "islands" or set(kinds) <= {"H100", "A100"}
        for share in lease.shares:
            node_id = share.node_id
            taken = sum(shares.get(node_id, 0) for shares in self.devices.values())
            kind, devices, pool, owner = self.nodes[node_id]
            assert taken <= devices, f"{node_id} is leased twice"
            assert kind == (share.accelerator or lease.accelerator)
            assert kind == lease.accelerator or job.spec.mix != "never"
            assert job.spec.accelerators in ((), (kind,)) or kind in job.spec.accelerators
            is_guest = job.spec.preemptible and job.spec.service != "inference"
            assert owner in (None, job.account_id) or is_guest, "idle cells of others are lent to who gives them back"
            assert pool is not Pool.RESERVED or job.spec.preemptible or job.spec.service == "inference"

    def covers(self, record, deadline_us):
        """What is held lasts until the deadline, however hard it burns."""
        meter, job = self.meters[record.lease.lease_id], self.state.jobs[record.lease.job_id]
        at, worst = meter.started + meter.metered, Fraction(0)
        while at < deadline_us:
            until = min(deadline_us, at - at % HOUR + HOUR, *(turn for turn in self.in_force.turns() if turn > at))
            peak = Fraction(meter.tariffs_at(at).curve.points[-1][1], PPM)
            worst += (until - at) * meter.devices * Fraction(meter.weight_at(at), PPM) * peak
            at = until
        assert worst <= job.held_uhs or deadline_us == self.latest

    def weight_of(self, job, kinds, tariffs_at):
        """What a device of a gang weighs at a time: the mean of all, rounded down."""

        def at(at_us):
            weights = [self.weight(job, kind, at_us, tariffs_at(at_us)) for kind in kinds]
            return sum(weights) // len(weights)

        return at

    def weight(self, job, accelerator, at_us, tariffs):
        weight = tariffs.weight_ppm(
            accelerator,
            service=job.spec.service,
            operator="op",
            tier=self.state.accounts[job.account_id].plan,
            at_us=at_us,
        )
        assert weight is not None
        return weight


def difference(before, after, *, but=""):
    """What two snapshots don't have in common, leaving one field out, and what is but remembered for a while."""
    if before == after:
        return {}
    one, other = msgspec.msgpack.decode(before), msgspec.msgpack.decode(after)
    for each in (one, other):
        del each["placement"]["planned_at_us"], each["book"]["ended"], each["book"]["expired"]
    return {name: (one[name], other[name]) for name in one if name != but and one[name] != other[name]}
