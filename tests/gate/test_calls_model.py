"""Slices and calls against the auditor, by themselves: so few rules that most steps are about them.

Accounts with credit and without, lots for one model and for anything, keys with limits, prices that change, slices that
lapse, calls that are reported twice, late, and with another slice. Overspend is 0: no hold takes more than is free.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test

from fabric.gate import Gate
from fabric.gate.account_events import CreateKey, OpenAccount, RevokeKey
from fabric.gate.events import Grant, NodeUp, Pool, Tick, TopUp
from fabric.gate.instructions import Accepted
from fabric.gate.questions import CallerOf, ModelsOf
from tests.gate.driver import ACCOUNTS, SCOPES, accounts, picks
from tests.gate.model_calls import MODEL, PRICES, USE, CallRules
from tests.gate.test_gate_model import GateMachine
from tests.gate.world import CATALOGUE, CONFIGURE, DAY, S


class CallMachine(CallRules):
    """What gateways, an operator and time may do."""

    @initialize(credit=st.sampled_from([None, 0, 500 * S]))
    def open_for_business(self, credit):
        self.do(CONFIGURE)
        self.do(NodeUp(node_id="h1", accelerator="H100", devices=1, pool=Pool.RESERVED))
        for account, plan in zip(ACCOUNTS, ("starter", "pro", "post"), strict=True):
            own = credit if plan == "post" else None
            self.do(OpenAccount(account_id=account, name=account, plan=plan, credit_limit_uhs=own))
            self.money.limit[account] = CATALOGUE.plan(plan).credit_limit_uhs if own is None else own
            self.do(TopUp(account_id=account, amount_uhs=1_000 * S))
        self.offer_at(PRICES[0])
        for account in ACCOUNTS:
            self.make_key(account=account, limit=300 * S)
            for pick in (None, 0):
                self.open_slice(account=account, seconds=40, ttl=3_600, minimum=None, pick=pick)

    @rule(
        account=accounts,
        seconds=st.sampled_from([1, 300]),
        scope=st.sampled_from(SCOPES),
        life=st.sampled_from([None, 60 * S]),
    )
    def bring_in_tokens(self, account, seconds, scope, life):
        self.ask(Grant(account_id=account, amount_uhs=seconds * S, scope=scope, lifetime_us=life))

    @rule(account=accounts, limit=st.sampled_from([None, 100 * S, 300 * S]))
    def make_key(self, account, limit):
        self.keys.append(self.name("k"))
        event = CreateKey(key_id=self.keys[-1], account_id=account, secret_sha256="", limit_uhs=limit)
        assert isinstance(self.ask(event), Accepted)

    @rule(pick=picks, sure=st.sampled_from([False, True]))
    def revoke_key(self, pick, sure):
        if sure:
            self.ask(RevokeKey(key_id=self.keys[pick % len(self.keys)]))

    @rule(seconds=st.sampled_from([1, 4, 30, 100, 4_000, 100_000, 40 * 86_400]), tick=st.booleans())
    def wait(self, seconds, tick):
        self.now = self.latest + seconds * S
        if tick:
            self.do(Tick())

    @rule()
    def restart(self):
        snapshot = self.gate.snapshot()
        self.twin = Gate.restore(snapshot)
        assert self.twin.snapshot() == snapshot

    the_gate_is_sound = GateMachine.the_gate_is_sound
    no_account_owes_more_than_its_credit = GateMachine.no_account_owes_more_than_its_credit
    no_lot_outlives_its_expiry_but_under_what_runs = GateMachine.no_lot_outlives_its_expiry_but_under_what_runs
    the_journal_alone_gives_every_balance = GateMachine.the_journal_alone_gives_every_balance

    @invariant()
    def a_key_counts_what_is_held_and_spent_with_it_and_never_lets_more_be_held_than_its_limit(self):
        for key_id in self.keys:
            key = self.state.keys[key_id]
            assert (key.spent_uhs, key.held_uhs) == (self.key_spent[key_id], self.key_held[key_id])
            within = key.limit_uhs is None or key.spent_uhs + key.held_uhs <= key.limit_uhs
            assert within or key_id in self.overspent

    @invariant()
    def a_gateway_is_told_what_a_slice_could_get(self):
        for key_id in self.keys[:3]:
            view = self.gate.ask(CallerOf(key_id=key_id), self.latest)
            free = min(self.left_of(key_id, view.account_id), self.money.free(view.account_id, USE, self.latest))
            offered = list(self.gate.ask(ModelsOf(account_id=view.account_id), self.latest))
            assert [(each.model, each.free_uhs) for each in view.models] == [(MODEL, free)] * len(offered)

    def teardown(self):
        """The journal leads to the same place again."""
        self.now = self.latest + 50 * DAY
        self.do(Tick())
        assert not self.book.holds, "no slice leaks"
        assert not self.book.lapsed, "nothing is set aside for ever"
        again = Gate()
        for (event, now), decision in zip(self.journal, self.decisions, strict=True):
            assert again.handle(event, now) == decision
        assert again.snapshot() == self.gate.snapshot()


TestSlicesAndCalls = CallMachine.TestCase
TestSlicesAndCalls.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@pytest.mark.soak
def test_slices_and_calls_for_long():
    run_state_machine_as_test(CallMachine, settings=settings(stateful_step_count=100, deadline=None))
