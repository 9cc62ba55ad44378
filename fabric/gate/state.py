"""Everything the gate remembers, as plain data: what a snapshot holds. What changes here changes `fabric.versions.FORMAT`.

Nothing here refers to another object but by id, so that encoding and decoding it gives the same state. What can be
derived (who waits in which queue, which nodes have room) is rebuilt from it. So a record is a tree: those of which there
are many are kept out of the collector's sight (`gc=False`), which would look through all of them again and again.
"""

from dataclasses import dataclass, field
from typing import Final

import msgspec

from fabric.charging.catalogue import Catalogue
from fabric.charging.plans import Entitlement
from fabric.charging.rates import Rate
from fabric.charging.sessions import ChargingSession
from fabric.charging.tariffs import Tariffs
from fabric.gate.caps import Caps
from fabric.gate.events import JobSpec, LeaseOutcome
from fabric.gate.hazards import Hazard
from fabric.gate.instructions import Lease, Outcome
from fabric.gate.key_scopes import KeyScope
from fabric.gate.lifecycle import JobState, StopReason
from fabric.gate.limit_state import Limit
from fabric.gate.organisation_state import Organisation, Standing
from fabric.gate.payment_state import Till
from fabric.gate.periods import Zone
from fabric.gate.price_state import Announced, OfferTerms, PlanPrices
from fabric.gate.serving_events import CallUsed, ModelSpec
from fabric.gate.stays import Stay
from fabric.gate.timeline import Moment
from fabric.ledger import Book
from fabric.ledger.accounts import Priced
from fabric.placement import PlacementState
from fabric.placement.locality import Holdings
from fabric.placement.quotas import Policy
from fabric.placement.score import Chosen
from fabric.units import PPM, AccountId, JobId, KeyId, LeaseId, NodeId

BURNING: Final = ("running", "stopping")
"""States of a lease in which its devices are in use."""


@dataclass(slots=True, kw_only=True)
class Account:
    """A customer."""

    account_id: AccountId
    name: str
    plan: str
    opened_at_us: int
    entitlements: list[Entitlement] = field(default_factory=list)
    """What bundles gave besides compute tokens, each good until it expires."""
    weight_ppm: int = PPM
    cohort: str = ""
    """Who pays for it together with other accounts; "" = it is a payer of its own."""
    organisation: AccountId | None = None
    """Whose wallet it is; None = it is an organisation of its own, of which nothing else is known."""
    standing: Standing = Standing.OPEN
    standing_why: str = ""
    dunned: bool = False
    """Suspended by its plan's terms, for an invoice that isn't paid: paid, it is open again by itself."""
    refunds: bool = False
    """Of one that closes: what is left of its balance is paid back, and not forfeited."""
    outages: int = 0
    """How often nodes that were lost took work of its jobs that was given back, until it has paid for as much."""
    outage_at_us: int = 0
    """When the newest of them began."""
    outages_gave_uhs: int = 0
    outages_paid_uhs: int = 0
    """What its jobs have paid for since the first of them."""

    def entitled(self, now_us: int) -> dict[str, int]:
        """What is good now, by asset."""
        good: dict[str, int] = {}
        for each in self.entitlements:
            if each.expires_at_us > now_us:
                good[each.asset] = good.get(each.asset, 0) + each.amount
        return good


@dataclass(slots=True, kw_only=True)
class Key:
    """An API key, as far as the gate needs to know it."""

    key_id: KeyId
    account_id: AccountId
    secret_sha256: str
    name: str
    operator: bool
    limit_uhs: int | None
    expires_at_us: int | None
    requests_per_min: int = 0
    tokens_per_min: int = 0
    spent_uhs: int = 0
    held_uhs: int = 0
    revoked: bool = False
    scopes: tuple[KeyScope, ...] = ()
    project: str = ""
    """"" = that which is called like the account."""
    member: str = ""
    """Whose it is; "" = nobody's."""
    tags: tuple[str, ...] = ()
    """Of its own."""


class Eviction(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """That a job was asked to leave for another."""

    at_us: int
    job_id: JobId
    for_job_id: JobId
    why: str
    """reclaimed | quota | backfill | outranked"""
    rank: int
    """The class of the job that it was for."""
    loss_us: int
    """What it was reckoned to lose, in device-µs."""
    among: int
    """How many could have been asked."""


class Job(msgspec.Struct, kw_only=True, gc=False):
    """A job from its submission on; kept after its end, for its owner to look at."""

    job_id: JobId
    account_id: AccountId
    key_id: KeyId | None
    spec: JobSpec
    limit_uhs: int
    submitted_at_us: int
    state: JobState = JobState.QUEUED
    reason: str = ""
    hold_id: str | None = None
    holds: int = 0
    held_uhs: int = 0
    burned_uhs: int = 0
    attempts: int = 0
    failures: int = 0
    losses: int = 0
    """Attempts in a row that were lost or interrupted, but those that the platform could not even start: until one gets on."""
    unstarted: int = 0
    """Attempts in a row that the platform lost before they had started."""
    unstarted_since_us: int = 0
    """When the first of them was."""
    waits_until_us: int | None = None
    """It is queued for devices only then, as its attempts came to nothing; of a parked one: a limit that resets leaves it
    tokens only then. None = it is, or isn't to go on.
    """
    given_back_uhs: int = 0
    """What was refunded for them."""
    lost_step: int = 0
    """The last step that was saved before the first of them."""
    ran_us: int = 0
    parked_limit_uhs: int = 0
    """The limit it was last stopped at: it goes on only with a higher one."""
    resume_asked: bool = False
    lease_id: LeaseId | None = None
    """The lease it is on, until nothing of that is left: after the job's end, until `settled`."""
    stopping_for: StopReason | None = None
    started_at_us: int | None = None
    ended_at_us: int | None = None
    settled: bool = False
    error: str = ""
    result_ref: str = ""
    exit_code: int | None = None
    """Of a script or command that has ended by itself, in the newest attempt."""
    accelerator: str = ""
    nodes: tuple[NodeId, ...] = ()
    revision: int = 0
    timeline: list[Moment] = []
    """What became of it, for people."""
    ran: list[Stay] = []
    """Where its attempts were."""
    step: int = 0
    """The last step it told of, by the end of its last attempt."""
    saved_step: int = 0
    saved_bytes: int = 0
    saved_at_us: int | None = None
    saved_on: tuple[NodeId, ...] = ()
    """Where the last checkpoint was written: its bytes may still lie there."""
    again_step: int = -1
    """The farthest step at which an attempt ended by itself to be queued anew, and how many since then got no farther."""
    again_in_a_row: int = 0
    on_credit: list[Priced] = []
    """What of its use became debt, at which prices, the newest last; without what was given back of it."""
    saves_us: tuple[int, ...] = ()
    """How long its last saves took: what its grace is learned from."""
    restore_us: int = 0
    """From its last start to the first step, as its runner saw it; 0 = not known."""
    evictions: tuple[Eviction, ...] = ()
    """The newest of those that made room: it for others, and others for it."""

    @property
    def set_back_until_us(self) -> int | None:
        """Until when it waits for nothing but to be tried again; None = it doesn't."""
        return self.waits_until_us if self.lease_id is None else None

    @property
    def has_ended_unrun(self) -> bool:
        """Whether it is over, and never ran: it cost nothing, and left nothing."""
        return self.settled and self.started_at_us is None


class LeaseRecord(msgspec.Struct, kw_only=True, gc=False):
    """A lease from its placement until nothing of it is left."""

    lease: Lease
    account_id: AccountId
    weight_ppm: int
    state: str = "starting"
    """starting | running | stopping | removing"""
    started_at_us: int | None = None
    ended_at_us: int | None = None
    deadline_us: int | None = None
    stop_reason: StopReason | None = None
    outcome: LeaseOutcome | None = None
    stop_asked_at_us: int | None = None
    stop_unsaved: bool = False
    """It was asked to end without a checkpoint."""
    saved: bool = False
    """Whether this attempt has made a checkpoint."""
    pool: str = ""
    """Where it is, as its hazards are counted: "spot/H100"."""
    idle_since_us: int | None = None
    """Since when the meters have seen next to nothing; None = they see work."""
    because: Chosen | None = None
    """What its place was chosen by, of a job that says what it prefers."""


@dataclass(slots=True, kw_only=True)
class SubscriptionRecord:
    """A subscription that grants tokens every cycle."""

    account_id: AccountId
    subscription: str
    started_at_us: int
    index: int
    """The cycle that was last granted, from 0."""
    next_at_us: int
    ending: bool = False
    lots: list[str] = field(default_factory=list)
    """What the current cycle granted: what is left of these at its end may be carried over."""
    ahead: list[str] = field(default_factory=list)
    """Lots of the cycles to come that are paid already, in their order."""
    is_renewed: bool = False
    """Whether its next cycle is asked for by itself: it was paid through a provider."""
    ask_at_us: int | None = None
    """When that is; None = not as things stand."""
    payment_id: str = ""
    """The payment of the next cycle that is under way; "" = none."""
    failures: int = 0
    """How many of them in a row came to nothing."""
    past_due_at_us: int | None = None
    """Since when its cycle isn't paid: it ends at `next_at_us` if it stays so. None = it is."""
    terms: int = 0
    """Which of the terms of its offer its cycle has, as they are kept in `offers`."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model's rates."""

    version: int
    since_us: int
    rates: tuple[Rate, ...]
    dated: bool = False
    """Whether its moment had been announced: no call that began since then has an older version, whatever its replica had heard."""


@dataclass(slots=True, kw_only=True)
class Model:
    """A language model that is, or was, offered: kept, because calls may be settled long after it was withdrawn."""

    spec: ModelSpec
    offered_at_us: int
    withdrawn: bool = False
    follows_tariffs: bool = False
    """Whether it has no rates of its own: other tariffs change its price, and an adapter's its parent's price."""
    prices: list[Price] = field(default_factory=list)
    """Every version, oldest first."""
    changed: int = 1
    """Counts the times it was offered, scaled or withdrawn."""


@dataclass(slots=True, kw_only=True)
class SettledCalls:
    """Ids of one account's calls that were charged, in two generations, so that forgetting the oldest costs nothing."""

    recent: dict[str, None] = field(default_factory=dict)
    older: dict[str, None] = field(default_factory=dict)
    since_us: int = 0
    """When `recent` was begun."""
    known_since_us: int = 0
    """Every id that was charged since then is here."""


class OpenUsage(msgspec.Struct, frozen=True, kw_only=True):
    """A call that was used and is neither charged nor written off yet."""

    account_id: AccountId
    hold_id: str
    call: CallUsed
    code: str
    reason: str
    kept_at_us: int


class Answered(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The yes that a request id got, what it asked, and when."""

    digest: bytes
    outcome: Outcome
    at_us: int = 0


@dataclass(slots=True, kw_only=True)
class GateState:
    """The whole of it."""

    book: Book
    placement: PlacementState
    rules: int = 0
    """By which rules version it is decided."""
    tariffs: Tariffs | None = None
    catalogue: Catalogue | None = None
    operator: str = "op"
    payments: str = "sandbox"
    """Who says that something was paid, as the last `Configure` has it."""
    announced: list[Announced] = field(default_factory=list)
    """Prices that begin later, the first first."""
    plan_prices: list[PlanPrices] = field(default_factory=list)
    """What tokens cost on each plan, since when; the last is in force. None of it as long as nothing has changed."""
    offers: dict[str, list[OfferTerms]] = field(default_factory=dict)
    """Of subscriptions whose terms have changed, or will, all terms: their subscribers have the one that they were told of."""
    filed: Policy | None = None
    """What the cluster file said of the policy last; None = nothing yet."""
    now_us: int = 0
    revision: int = 0
    leases_made: int = 0
    lots_made: int = 0
    accounts: dict[AccountId, Account] = field(default_factory=dict)
    cohorts: dict[str, int] = field(default_factory=dict)
    """The weights of payers that were given one, in ppm."""
    organisations: dict[AccountId, Organisation] = field(default_factory=dict)
    """Those that have projects, members or several wallets, by the account that was their first."""
    closing: dict[AccountId, None] = field(default_factory=dict)
    """Accounts that are being closed, of which something is held or runs."""
    caps: Caps | None = None
    """How much each customer may have; None = nobody has said."""
    keys: dict[KeyId, Key] = field(default_factory=dict)
    jobs: dict[JobId, Job] = field(default_factory=dict)
    leases: dict[LeaseId, LeaseRecord] = field(default_factory=dict)
    sessions: dict[LeaseId, ChargingSession] = field(default_factory=dict)
    parked: dict[AccountId, list[JobId]] = field(default_factory=dict)
    """Jobs that wait for tokens, by account, in the order they were parked."""
    subscriptions: list[SubscriptionRecord] = field(default_factory=list)
    models: dict[str, Model] = field(default_factory=dict)
    calls: SettledCalls = field(default_factory=SettledCalls)
    """Of all accounts together, as it was before each had its own: asked, and never added to."""
    calls_of: dict[AccountId, SettledCalls] = field(default_factory=dict)
    """By account, in the order in which their `recent` was begun."""
    open_usage: dict[str, OpenUsage] = field(default_factory=dict)
    """Calls that were used and could not be charged, by account and call, oldest first."""
    answered: dict[str, Answered] = field(default_factory=dict)
    paid: dict[str, Answered] = field(default_factory=dict)
    """What each payment has booked, by account, channel and reference: for ever."""
    till: Till = field(default_factory=Till)
    """Payments that providers take."""
    hazards: dict[str, Hazard] = field(default_factory=dict)
    """How often leases are taken away or lost, by pool and type."""
    holdings: dict[NodeId, Holdings] = field(default_factory=dict)
    """What nodes hold of datasets, as they said last."""
    limits: dict[str, list[Limit]] = field(default_factory=dict)
    """Those that reset, by whose they are (`limits.named`)."""
    zones: dict[str, Zone] = field(default_factory=dict)
    """What clocks show where limits are counted by them; UTC needs none."""
