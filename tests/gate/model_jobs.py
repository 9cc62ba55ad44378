"""Rules about jobs and the cluster they run on: owners, nodes, leases, meters, in any order and at any time."""

from fractions import Fraction
from math import ceil

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from fabric.gate.events import (
    Cancel,
    ForgetJobs,
    HoldMode,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    LeaseTooLarge,
    Metered,
    NodeDown,
    NodeDrain,
    NodeUp,
    Pause,
    RaiseLimit,
    Resume,
    RolledBack,
    Sample,
    Submit,
    Tick,
)
from fabric.gate.holds import QUANTUM_US, RENEW_BELOW
from fabric.gate.instructions import Accepted, Refusal, StopLease
from fabric.gate.questions import QuoteOf
from fabric.ledger import Service, Use
from tests.gate.driver import (
    ACCOUNTS,
    NODES_AT_FIRST,
    PLACEMENT_CODES,
    TERMINAL,
    TYPES,
    Driver,
    accounts,
    difference,
    picks,
)
from tests.gate.world import CATALOGUE, S, spec


class JobRules(Driver):
    """What owners ask for."""

    @rule(
        account=accounts,
        types=st.sampled_from(TYPES),
        gang=st.sampled_from([(1, None), (1, None), (2, None), (4, 2), (8, None), (9, 3), (18, None), (40, None)]),
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
                "mix": st.sampled_from(["never", "never", "same-vendor", "islands"]),
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
        elif outcome.code == "spending_limit_reached":
            assert self.left_by_limits(account, key) < self.first_hold(account, wanted)
        elif outcome.code == "plan_is_preemptible":
            names = [
                each.subscription
                for each in self.state.subscriptions
                if each.account_id == account and not each.past_due_at_us
            ]
            ranks = [self.catalogue.plan(CATALOGUE.subscription(name).plan).tier_rank for name in names]
            plan = self.catalogue.plan(self.state.accounts[account].plan)
            assert all(rank > 0 for rank in ranks)
            assert not more["preemptible"]
            assert service is not Service.INFERENCE
            assert plan.tier_rank > 0
        else:
            assert outcome.code in PLACEMENT_CODES

    def first_hold(self, account, wanted):
        if wanted.hold is HoldMode.FULL:
            return wanted.limit_uhs
        plan = self.state.accounts[account].plan
        duration = max(QUANTUM_US, 2 * RENEW_BELOW * wanted.grace_us)
        worst = max(
            tariffs.weight_ppm(name, service=wanted.service, operator="op", tier=plan, at_us=hour * 3_600 * S)
            * tariffs.curve.points[-1][1]
            for tariffs in self.in_force.known(self.latest, self.latest + duration)
            for name in wanted.accelerators or tariffs.accelerators
            for hour in range(24)
        )
        return min(wanted.limit_uhs, ceil(wanted.devices * duration * Fraction(worst, 10**12)))

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
        extra |= {"at_once": pick % 2 == 0} if verb is Cancel else {}
        ended = job.state in TERMINAL
        outcome = self.ask(verb(job_id=job.job_id, account_id=account, **extra))
        if account != job.account_id:
            assert outcome.code == "not_found"
        elif ended:
            assert outcome.code == "job_ended"
        elif isinstance(outcome, Refusal):
            codes = {"insufficient_tokens", "limit_reached", "key_limit_reached", "spending_limit_reached", "job_ended"}
            assert outcome.code in codes


class ClusterRules(Driver):
    """What happens to nodes and leases."""

    @rule(
        node_id=st.sampled_from(list(NODES_AT_FIRST)),
        fewer=st.sampled_from([0, 0, 0, 1]),
        notice_us=st.sampled_from([None, None, 20 * S]),
    )
    def node_up(self, node_id, fewer, notice_us=None):
        kind, devices, pool, owner = NODES_AT_FIRST[node_id]
        node = (kind, devices - fewer, pool, owner)
        event = NodeUp(
            node_id=node_id, accelerator=kind, devices=node[1], pool=pool, dedicated_to=owner, notice_us=notice_us
        )
        if node != self.nodes[node_id]:
            self.clear(node_id)
        self.nodes[node_id] = node
        assert isinstance(self.ask(event), Accepted)

    @rule(
        node_id=st.sampled_from(list(NODES_AT_FIRST)),
        drain=st.booleans(),
        closing=st.booleans(),
        cordon=st.booleans(),
        undo=st.booleans(),
    )
    def node_down(self, node_id, drain, closing, cordon, undo):
        if drain:
            decision = self.do(NodeDrain(node_id=node_id, grace_us=5 * S, closing=closing, cordon=cordon, undo=undo))
            assert not (cordon and any(isinstance(each, StopLease) for each in decision.instructions)), (
                "what runs stays"
            )
            return
        self.clear(node_id)
        self.ask(NodeDown(node_id=node_id))

    @rule(
        steps=st.lists(
            st.tuples(
                st.sampled_from(list(NODES_AT_FIRST)),
                st.sampled_from(["up", "up", "down", "down", "drain", "undo"]),
                st.sampled_from([None, 2 * S, 20 * S, 90 * S]),
            ),
            min_size=2,
            max_size=6,
        )
    )
    def come_and_go(self, steps):
        """Nodes that give notice leave and return, with another notice or the same, while others drain."""
        for node_id, verb, notice_us in steps:
            if verb == "up":
                self.node_up(node_id, 0, notice_us)
            else:
                self.node_down(node_id, verb != "down", closing=False, cordon=False, undo=verb == "undo")

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
                        self.do(LeaseSaved(lease_id=name, write_us=(1, 40)[pick % 8 == 0] * S))
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

    @rule(account=st.sampled_from(ACCOUNTS), keep=st.integers(0, 2))
    def forget(self, account, keep):
        self.do(ForgetJobs(account_id=account, keep=keep))

    @rule(pick=picks)
    def take_too_much_room(self, pick):
        if name := self.lease(pick, ("starting", "running", "stopping", "removing")):
            self.do(LeaseTooLarge(lease_id=name, error="its folder has 9 bytes"))

    @rule(pick=picks, write_s=st.sampled_from([1, 40]))
    def save(self, pick, write_s):
        if name := self.lease(pick, ("running", "stopping", "removing")):
            self.do(LeaseSaved(lease_id=name, write_us=write_s * S, restore_us=pick * S))

    @precondition(lambda self: self.state.jobs)
    @rule(pick=picks)
    def roll_back(self, pick):
        job = list(self.state.jobs.values())[-1 - pick % len(self.state.jobs)]
        outcome = self.ask(RolledBack(job_id=job.job_id, account_id=job.account_id, step=pick))
        assert isinstance(outcome, Accepted) == (job.lease_id is None)

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
                lambda name: LeaseTooLarge(lease_id=name),
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
