"""The whole core against naive oracles, one event at a time: an auditor of transfers and a meter in exact fractions.

The machine sends whatever a client, an operator or a cluster could send, in any order. It predicts every answer about
tokens from the auditor's lists alone, checks every transfer, charge and instruction, and after each step the invariants of
the whole. Its journal is decided again at the end, and a twin restored from a snapshot must never differ.
"""

from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs

from fabric.audit.verify import verify_export
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import HoldMode, LeaseFinished, LeaseOutcome, LeaseRemoved, Tick, TopUp
from fabric.gate.instructions import RemoveLease
from fabric.gate.questions import BalanceOf, JobOf
from fabric.journal.encoding import entries_of
from fabric.ledger import Service
from fabric.ledger.state import SETTLEMENT_WINDOW_US
from tests.audit.test_verify import SIGNER, whole_export
from tests.gate.driver import ACCOUNTS, NODES_AT_FIRST, TERMINAL, WAITS
from tests.gate.model_credit import CreditRules
from tests.gate.model_limits import LimitRules
from tests.gate.model_payments import PaymentRules
from tests.gate.model_tags import TagRules
from tests.gate.oracle import CREDIT, Hold
from tests.gate.world import CATALOGUE, CONFIGURE, TARIFFS, S


class GateMachine(CreditRules, LimitRules, PaymentRules, TagRules):
    """What may happen, and what the answer must be."""

    hard_on_accounts = False

    @initialize(seconds=st.sampled_from([0, 20 * 86_400]), credit=st.sampled_from([None, 0, 500 * S]))
    def open_for_business(self, seconds, credit):
        self.now += seconds * S
        assert self.do(OpenAccount(account_id="early", name="", plan="starter")).outcome.code == "not_configured"
        self.do(CONFIGURE)
        for account, plan in zip(ACCOUNTS, ("starter", "pro", "post"), strict=True):
            own = credit if plan == "post" else None
            if credit and own is None:
                on_credit = OpenAccount(account_id=account, name=account, plan=plan, credit_limit_uhs=credit)
                assert self.do(on_credit).outcome.code == "prepaid_plan"
            self.do(OpenAccount(account_id=account, name=account, plan=plan, credit_limit_uhs=own))
            self.money.limit[account] = CATALOGUE.plan(plan).credit_limit_uhs if own is None else own
            self.do(TopUp(account_id=account, amount_uhs=1_000 * S))
        for node_id in NODES_AT_FIRST:
            self.node_up(node_id, 0, 20 * S if node_id == "h1" else None)
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

    def check_used(self, view, bound, account, key):
        """Of jobs the windows are the meters': by them alone, all that was spent since it was set is counted, at most."""
        if key is not None:
            assert 0 <= view.used <= self.state.keys[key].spent_uhs + bound.used

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
            assert self.money.paths[f"cust/{account}/debt"] == -debt[account] - self.money.arrears[account] <= 0
            assert self.money.arrears[account] == self.book.accounts[account].charged_back_uhs
        for lot in self.money.lots:
            booked = self.book.lots[lot.lot_id]
            there = (lot.free, lot.held, lot.captured, lot.expired)
            assert there == (booked.free_uhs, booked.held_uhs, booked.captured_uhs, booked.expired_uhs), lot.lot_id
            assert min(there) >= 0
            assert sum(there) + lot.voided + lot.frozen == lot.amount
            assert (lot.voided, lot.frozen) == (booked.voided_uhs, booked.frozen_uhs)
        assert len(self.money.lots) == len(self.book.lots)

    @invariant()
    def no_account_owes_more_than_its_credit(self):
        """So a prepaid one never owes anything, whatever was reported, in whatever order, however late."""
        for account in ACCOUNTS:
            view = self.gate.ask(BalanceOf(account_id=account), self.latest)
            assert 0 <= view.debt_uhs + view.invoiced_uhs <= self.money.limit[account]
            assert view.invoiced_uhs == self.money.unpaid(account)
            assert view.receivable_microcny == self.money.due(account)
            assert self.book.accounts[account].written_off_uhs == self.money.lost[account]

    @invariant()
    def no_lot_outlives_its_expiry_but_under_what_runs(self):
        """A queued job holds nothing that has expired; a client's hold keeps it a validity and a settlement window at most."""
        for hold_id in self.book.holds | self.book.lapsed:
            job = self.state.jobs.get(hold_id.partition("#")[0]) if "#" in hold_id else None
            for lot_id in [lot_id for lot_id, amount in self.money.holds[hold_id].queue if amount and lot_id != CREDIT]:
                expires = self.money.lot(lot_id).terms.expires_at_us
                if job is None:
                    assert expires is None or self.latest < expires + 3_600 * S + SETTLEMENT_WINDOW_US
                elif job.lease_id is None:
                    assert expires is None or self.latest < expires

    @invariant()
    def what_is_held_is_held_for_a_job_or_a_client(self):
        owners = {job.hold_id: job for job in self.state.jobs.values() if job.hold_id is not None}
        for hold_id, hold in (self.book.holds | self.book.lapsed).items():
            there = self.money.holds.get(hold_id, Hold("", None))
            assert hold.held_uhs == there.held
            assert ("#" in hold_id) == (hold_id in owners)
        for hold_id in owners:
            assert hold_id in self.book.holds
        standing = set(self.book.holds | self.book.lapsed)
        ended = self.open_holds - standing
        assert not self.over & standing, "a hold that had ended is open again"
        self.over |= ended
        self.open_holds = standing
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
            tries = self.tries[job.job_id]
            assert (job.losses, job.unstarted) == (tries.row, tries.unstarted)
            waits = job.job_id in self.state.placement.queue
            if job.state == "queued" and job.lease_id is None:
                assert waits == (job.waits_until_us is None)
                assert (
                    waits
                    or self.latest < tries.earliest == job.waits_until_us
                    or self.gate.next_due_us() <= self.latest
                )
            else:
                assert not waits
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
        return self.tariffs is TARIFFS and self.in_force.tariffs[-1][0] <= self.latest

    @invariant()
    def what_is_outstanding_is_said_again(self):
        again = self.gate.outstanding()
        removed = [each for each in again if isinstance(each, RemoveLease)]
        assert all(each.lease is not None and each.lease.lease_id == each.lease_id for each in removed)
        plain = tuple(structs.replace(each, lease=None) if each in removed else each for each in again)
        assert plain == tuple(said for both in self.outstanding.values() for said in both)

    @invariant()
    def a_balance_shows_what_there_is(self):
        for account in ACCOUNTS:
            view = self.gate.ask(BalanceOf(account_id=account), self.now)
            now = max(self.now, self.latest)
            lots = [lot for lot in self.money.lots if lot.account == account and lot.alive(now)]
            lots = [lot for lot in lots if lot.terms.effective_at_us <= now]
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
        self.verify()

    def verify(self):
        """Whoever doubts a bill finds nothing wrong with what was decided."""
        leaves, at_us = [], 0
        for (event, now), decision in zip(self.journal, self.decisions, strict=True):
            at_us = max(at_us, now)
            leaves += [each.leaf for each in entries_of(len(leaves), at_us=at_us, event=event, decision=decision)]
        report = verify_export(whole_export(leaves), trusted_key=str(SIGNER.verifier))
        assert report.ok, report


@pytest.mark.parametrize("later", [None, 5])
def test_what_is_used_on_credit_under_two_prices_is_within_the_models_reach(later):
    machine = GateMachine()
    machine.open_for_business(seconds=0, credit=500 * S)
    machine.owe(before=60, after=60, dear=True, later=later, seconds=300, ends=False)
    prices = [each.microcny_per_ct for each in machine.book.accounts["cyd"].priced]
    assert (prices, machine.money.debt["cyd"] > 0) == ([400_000], True)
    machine.what_is_owed_has_the_price_of_its_time()
    machine.teardown()


TestTheWholeCore = GateMachine.TestCase
TestTheWholeCore.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.soak
def test_the_whole_core_for_long():
    run_state_machine_as_test(GateMachine, settings=settings(stateful_step_count=100, deadline=None))
