"""The engines behind the gate, and what the event in hand has led to so far.

One `Core` lives as long as the gate; `begin` clears the desk for the next event. The functions of the sibling modules
work on it, so that none of them owns the state and each can be read alone.
"""

import heapq
from collections import deque
from typing import Final

from fabric.charging.catalogue import Catalogue, Plan, Subscription
from fabric.charging.dunning import CLOSE, PARK, STOP, Step, next_step
from fabric.charging.records import Cdr
from fabric.charging.tariffs import Tariffs
from fabric.gate.instructions import AnyInstruction
from fabric.gate.lease_watch import LeaseWatch
from fabric.gate.lifecycle import TERMINAL, TRANSITIONS, JobState, Trigger
from fabric.gate.payment_state import Payment
from fabric.gate.prices import PriceList
from fabric.gate.state import GateState, Job, Key, SubscriptionRecord
from fabric.gate.timeline import Moment, noted
from fabric.ledger.accounts import Invoice
from fabric.placement import Planner
from fabric.placement.forecast import Starts
from fabric.units import AccountId, Fraction, JobId

SILENCE_US: Final = 10_000_000
"""How long a running lease may go unmetered: longer than any delay of a meter's word."""
BEGUN_KEPT: Final = 1_000
Gang = tuple[
    AccountId | None,
    int,
    int | None,
    tuple[str, ...],
    str,
    bool,
    tuple[tuple[str, ...], ...],
    Fraction | None,
    tuple[str, ...],
]
"""All of a request that decides where it may go: the account if it has cells, devices, devices a node, types, service,
whether it is preemptible, which types it may mix, which part of a device it has, and which pools its grace is too long for.
"""


class Core:
    """State, ledger and planner, with the instructions and records of the current event."""

    __slots__ = (
        "answers_of",
        "answers_until_us",
        "backing_off",
        "begun",
        "behind",
        "book",
        "changed",
        "coming",
        "dunning_due_us",
        "freed",
        "held",
        "held_by_jobs",
        "instructions",
        "jobs_of",
        "keys_of",
        "now_us",
        "placeable",
        "placeable_in",
        "planner",
        "plans",
        "price_list",
        "prices",
        "records",
        "renewals",
        "replan",
        "silence_us",
        "starts",
        "state",
        "subscribed_by",
        "unfinished",
        "unrun_of",
        "watch",
    )

    def __init__(self, state: GateState, *, silence_us: int = SILENCE_US) -> None:  # noqa: PLR0915 - a list of what is kept
        self.state = state
        self.silence_us = silence_us
        """How long a running lease may go unmetered before the gap is charged as estimated."""
        self.book = state.book
        self.planner = Planner(state.placement)
        self.now_us = state.now_us
        self.instructions: list[AnyInstruction] = []
        self.records: list[Cdr] = []
        self.freed: dict[AccountId, None] = {}
        """Accounts that have more free tokens than before this event: their waiting jobs may go on."""
        self.held: list[Job] = []
        """Jobs for which tokens were held in this event."""
        self.replan = False
        """Whether who waits or what is free has changed: the planner is asked once, when all is said."""
        self.price_list: PriceList | None = None
        self.prices: PriceList
        """The same, once the gate is configured, as it is before anything is sold."""
        self.coming: list[tuple[int, PriceList]] = []
        """Tariffs that are announced, and from when on they hold: derived."""
        self.behind = False
        """Whether more falls due by now than this event has seen to."""
        self.renewals: list[tuple[int, AccountId, str]] = []
        """A heap of the subscriptions by when they are to be looked at: derived, so that looking at the clock costs nothing, and what
        no longer stands is passed over when it comes up.
        """
        for record in state.subscriptions:
            self.note_renewal(record)
        self.dunning_due_us: int | None = None
        """When something is to be done about an overdue invoice next: derived, so that looking at the clock costs nothing."""
        self.plans: dict[str, Plan] = {}
        self.placeable: dict[Gang, None] = {}
        """Gangs that were found to fit into some pool as it is built."""
        self.placeable_in = self.planner.layout
        """The layout of the nodes that they were found in: with another they are forgotten."""
        self.jobs_of: dict[AccountId, list[Job]] = {}
        """Each account's jobs, oldest first: derived, so that nobody's question looks through everybody's."""
        self.unrun_of: dict[AccountId, int] = {}
        """How many of them ended without ever having run: derived, so that whoever forgets those needn't count."""
        for job in state.jobs.values():
            self.jobs_of.setdefault(job.account_id, []).append(job)
            if job.has_ended_unrun:
                self.unrun_of[job.account_id] = self.unrun_of.get(job.account_id, 0) + 1
        self.held_by_jobs: dict[str, int] = {}
        """What jobs hold of each key and account, as their limits are kept by: derived, so that the rest is known, which is for
        calls.
        """
        for job in state.jobs.values():
            self.note_held(job, job.held_uhs)
        self.unfinished = {
            payment.payment_id: None for payment in state.till.payments.values() if payment.is_unfinished
        }
        """Payments of which a provider is still to do something: derived, so that nobody looks through those of years."""
        self.keys_of: dict[AccountId, list[Key]] = {}
        """Each account's keys, revoked ones too: derived, so that nobody's question looks through everybody's."""
        for key in state.keys.values():
            self.keys_of.setdefault(key.account_id, []).append(key)
        self.subscribed_by = _by_account(state.subscriptions)
        """Each account's subscriptions: derived, so that nobody's looks through everybody's."""
        self.answers_of: dict[str, deque[str]] = {}
        """Each account's answers that are remembered, oldest first: derived, so that one can't have too many."""
        self.answers_until_us = 0
        """No answer is forgotten before; 0 = look anew."""
        self.begun = deque(
            heapq.nlargest(BEGUN_KEPT, (job for job in state.jobs.values() if job.started_at_us), key=_started_us)[
                ::-1
            ],
            maxlen=BEGUN_KEPT,
        )
        """The jobs that started last, for the first time: derived, for whoever asks when another will."""
        self.starts: tuple[int, Starts] | None = None
        """What was learned of starts when somebody asked last, and up to when: derived."""
        self.watch = LeaseWatch()
        """When leases are next to be looked at: derived, so that a tick costs nothing where nothing is due."""
        self.backing_off = _set_back(state)
        """A heap of the jobs that are to be tried again later, by when: derived, and what no longer stands is passed over."""
        self.note_prices()
        self.note_dunning()
        self.changed: dict[JobId, None] = {}
        """Jobs that changed since somebody last looked: for those who watch, not part of the state."""

    def begin(self, now_us: int) -> None:
        """Clear the desk. Time never runs backwards in here, whatever the caller's clock does."""
        state = self.state
        self.now_us = state.now_us = max(now_us, state.now_us)
        if self.instructions:
            self.instructions = []
        if self.records:
            self.records = []
        if self.freed:
            self.freed = {}
        if self.held:
            self.held = []
        self.replan = self.behind = False

    def keep(self, job: Job) -> None:
        """A new job, from now on."""
        self.state.jobs[job.job_id] = job
        self.jobs_of.setdefault(job.account_id, []).append(job)

    def note_held(self, job: Job, delta_uhs: int) -> None:
        """It holds so much more, or less."""
        if delta_uhs:
            _note_held(self.held_by_jobs, f"account/{job.account_id}", delta_uhs)
            if job.key_id:
                _note_held(self.held_by_jobs, f"key/{job.key_id}", delta_uhs)

    def settle(self, job: Job) -> None:
        """Nothing of it is left to be charged."""
        if not job.settled:
            job.settled = True
            if job.has_ended_unrun:
                self.unrun_of[job.account_id] = self.unrun_of.get(job.account_id, 0) + 1

    def forget(self, job_ids: dict[JobId, None], account_id: AccountId) -> None:
        """These jobs, which have ended without ever having run, are as if they had never been."""
        if not job_ids:
            return
        for job_id in job_ids:
            del self.state.jobs[job_id]
            self.changed.pop(job_id, None)
        left = [job for job in self.jobs_of.pop(account_id) if job.job_id not in job_ids]
        if left:
            self.jobs_of[account_id] = left
        self.unrun_of[account_id] -= len(job_ids)
        if not self.unrun_of[account_id]:
            del self.unrun_of[account_id]

    def keep_key(self, key: Key) -> None:
        """A new key, from now on."""
        self.state.keys[key.key_id] = key
        self.keys_of.setdefault(key.account_id, []).append(key)

    def note_payment(self, payment: Payment) -> None:
        """It was made, or something has come of it."""
        if payment.is_unfinished:
            self.unfinished[payment.payment_id] = None
        else:
            self.unfinished.pop(payment.payment_id, None)

    @property
    def tariffs(self) -> Tariffs:
        assert self.state.tariffs is not None, "the gate is configured before anything is submitted"
        return self.state.tariffs

    @property
    def catalogue(self) -> Catalogue:
        assert self.state.catalogue is not None, "the gate is configured before anything is sold"
        return self.state.catalogue

    def move(self, job: Job, trigger: Trigger, *, reason: str = "") -> None:
        """Take the one transition that the table allows, and say why."""
        job.state = TRANSITIONS[job.state, trigger]
        job.reason = reason
        if job.state is not JobState.STARTING:
            noted(job.timeline, self._moment(job))
        self.touch(job)

    def prices_until(self, until_us: int) -> list[PriceList]:
        """Those in force, and those that are announced to begin before a moment."""
        return [self.prices, *(each for since_us, each in self.coming if since_us < until_us)]

    def plan_of(self, account_id: AccountId) -> Plan:
        """What the account is on; no plan that an account is on ever leaves the catalogue."""
        return self.plans[self.state.accounts[account_id].plan]

    def plans_of(self, account_id: AccountId) -> list[Plan]:
        """Whose rank and rights the account has: its own plan's, and those of the subscriptions that run, as long as they do."""
        found = [self.plan_of(account_id)]
        for record in self.subscribed_by.get(account_id, ()):
            offer = self.offer_of(record)
            plan = self.plans.get(offer.plan) if offer is not None and record.past_due_at_us is None else None
            if plan is not None:
                found.append(plan)
        return found

    def offer_of(self, record: SubscriptionRecord) -> Subscription | None:
        """The terms of the cycle that a subscription is in; None = there is nothing of that name."""
        steps = self.state.offers.get(record.subscription)
        return self.catalogue.subscription(record.subscription) if steps is None else steps[record.terms].offer

    def rank_of(self, account_id: AccountId) -> int:
        """The account's place in the queue, as its best plan has it: 0 goes first."""
        if account_id not in self.subscribed_by:
            return self.plan_of(account_id).tier_rank
        return min(plan.tier_rank for plan in self.plans_of(account_id))

    def note_prices(self) -> None:
        """Tariffs and catalogue were set, or announced."""
        tariffs, catalogue = self.state.tariffs, self.state.catalogue
        operator = self.state.operator
        self.price_list = None
        if tariffs is not None:
            self.price_list = self.prices = PriceList(tariffs, operator=operator)
        self.coming = [
            (each.since_us, PriceList(each.tariffs, operator=operator))
            for each in self.state.announced
            if each.tariffs is not None
        ]
        self.plans = {plan.name: plan for plan in catalogue.plans} if catalogue is not None else {}

    def keep_subscription(self, record: SubscriptionRecord) -> None:
        """A new subscription, from now on."""
        self.state.subscriptions.append(record)
        self.subscribed_by.setdefault(record.account_id, []).append(record)
        self.note_renewal(record)

    def note_renewal(self, record: SubscriptionRecord) -> None:
        """It is new, or due at another time than before."""
        for at_us in (record.next_at_us, record.ask_at_us):
            if at_us is not None:
                heapq.heappush(self.renewals, (at_us, record.account_id, record.subscription))

    def renewal_of(self, renewal: tuple[int, AccountId, str]) -> SubscriptionRecord | None:
        """The subscription that is due then; None = it has ended, or is due at another time by now."""
        at_us, account_id, subscription = renewal
        for record in self.subscribed_by.get(account_id, ()):
            if record.subscription == subscription and at_us in (record.next_at_us, record.ask_at_us):
                return record
        return None

    @property
    def renewal_due_us(self) -> int | None:
        """When a subscription is to be looked at next."""
        renewals = self.renewals
        while renewals and self.renewal_of(renewals[0]) is None:
            heapq.heappop(renewals)
        return renewals[0][0] if renewals else None

    def dunning_step(self, account_id: str, invoice: Invoice) -> Step | None:
        """What is to be done next about an invoice that isn't paid."""
        taken = {STOP: invoice.stopped_at_us, PARK: invoice.parked_at_us, CLOSE: invoice.closed_at_us}
        return next_step(
            self.plan_of(AccountId(account_id)).dunning,
            issued_at_us=invoice.issued_at_us,
            reminded=invoice.reminded,
            done=frozenset(what for what, at_us in taken.items() if at_us is not None),
        )

    def note_dunning(self) -> None:
        """Invoices were issued, paid or acted on, or the plans' terms were set."""
        invoices = [(name, each) for name, account in self.book.accounts.items() for each in account.invoices]
        steps = (step for name, each in invoices if (step := self.dunning_step(name, each)) is not None)
        self.dunning_due_us = min((step.at_us for step in steps), default=None)

    def _moment(self, job: Job) -> Moment:
        if job.state in TERMINAL:
            return Moment(at_us=self.now_us, what="ended", why=str(job.state))
        if job.state is not JobState.RUNNING:
            what = "waiting" if job.state is JobState.QUEUED else str(job.state)
            return Moment(at_us=self.now_us, what=what, why=job.reason)
        assert job.lease_id is not None
        lease = self.state.leases[job.lease_id].lease
        return Moment(
            at_us=self.now_us,
            what="running" if job.ran_us == 0 and not job.timeline else "resumed",
            on=lease.on,
        )

    def touch(self, job: Job) -> None:
        """Whoever watches this job is told."""
        self.state.revision += 1
        job.revision = self.state.revision
        self.changed.pop(job.job_id, None)  # in the order of their last change
        self.changed[job.job_id] = None


def _note_held(held: dict[str, int], whose: str, delta_uhs: int) -> None:
    if left_uhs := held.get(whose, 0) + delta_uhs:
        held[whose] = left_uhs
    else:
        del held[whose]


def _by_account(records: list[SubscriptionRecord]) -> dict[AccountId, list[SubscriptionRecord]]:
    found: dict[AccountId, list[SubscriptionRecord]] = {}
    for record in records:
        found.setdefault(record.account_id, []).append(record)
    return found


def _started_us(job: Job) -> int:
    return job.started_at_us or 0


def _set_back(state: GateState) -> list[tuple[int, JobId]]:
    """A heap of the jobs that are to be tried again later, by when."""
    found = [(until_us, job.job_id) for job in state.jobs.values() if (until_us := job.set_back_until_us) is not None]
    heapq.heapify(found)
    return found
