"""The catalogue: what can be bought. Plans, bundles and subscriptions, as plain values.

Says what is for sale and at what price; what a purchase then grants is in `plans`. Does not know accounts or lots.
"""

from enum import StrEnum
from typing import Final

import msgspec

SETTLEMENT_HOURS: Final = 24
SETTLEMENT_HOURS_MAX: Final = 96
COMPUTE: Final = "CT"
"""The asset that is compute tokens, counted in µHs; every other asset is counted in units of its own."""


class Mode(StrEnum):
    """When a plan's tokens are paid for."""

    PREPAID = "prepaid"
    POSTPAID = "postpaid"
    """After use, up to a credit limit, by invoice at the close of a period."""


class Cycle(StrEnum):
    """How often a subscription grants."""

    MONTH = "month"
    DAYS = "days"


class Overflow(StrEnum):
    """What happens when a subscription's own tokens are used up."""

    BLOCK = "block"
    """Nothing more until the next cycle."""
    WALLET = "wallet"
    """The account's other tokens."""
    POSTPAID = "postpaid"
    """The account's other tokens, then its credit."""


class Restriction(msgspec.Struct, frozen=True, kw_only=True):
    """What tokens that are sold may be spent on; () is no restriction."""

    services: tuple[str, ...] = ()
    accelerators: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()


UNRESTRICTED: Final = Restriction()


class Dunning(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of an invoice that isn't paid, in days."""

    due_days: int
    """After it was issued."""
    remind_days: tuple[int, ...] = ()
    """After it was due, each later than the one before: its account is reminded."""
    stop_days: int | None = None
    """After it was due: nothing more is held on credit until it is paid. None = never."""
    park_days: int | None = None
    """After it was due: its account is suspended, and what runs is saved and parked, until it is paid. None = never."""
    close_days: int | None = None
    """After it was due: its account is closed, and what is left of its tokens is forfeited. None = never."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an account is on: the price and life of its tokens, and its place in the queue."""

    name: str
    title: str = ""
    tier_rank: int
    """Place in the queue: 0 goes first."""
    price_microcny_per_ct: int
    lifetime_days: int
    queue: str = "standard"
    """standard | priority"""
    dedicated: bool = False
    """Whether it may have nodes of its own."""
    non_preemptible: bool | None = None
    """Whether its jobs may ask never to be evicted. None, as in all plans of before: those of rank 0 may."""
    mode: Mode = Mode.PREPAID
    credit_limit_uhs: int = 0
    """How far a new account on this plan may go into debt, unless it is opened with a limit of its own."""
    dunning: Dunning | None = None
    """None = invoices have no due date."""

    @property
    def may_stay(self) -> bool:
        """Whether a job on it may ask never to be evicted: while it runs, nobody else gets its devices."""
        return self.tier_rank == 0 if self.non_preemptible is None else self.non_preemptible


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a bundle. The shares of all parts add up to the bundle's price."""

    asset: str
    amount: int
    """µHs of compute tokens, thousandths of LLM tokens of weight 1, or whole units of any other asset."""
    share_microcny: int
    lifetime_days: int
    restriction: Restriction = UNRESTRICTED


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """One purchase, several lots."""

    name: str
    title: str = ""
    price_microcny: int
    components: tuple[Component, ...]


class Ends(msgspec.Struct, frozen=True, kw_only=True):
    """When an offer ends, and what becomes then of those who have it."""

    at_us: int
    """Nobody begins it from then on, and no cycle of it begins."""
    then: str = ""
    """The subscription that its subscribers go on with; "" = none, theirs stops."""
    keeps_rollover: bool = False
    """Whether what would be carried over into the next cycle is good for as long as that would have been; else it expires."""


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens granted every cycle."""

    name: str
    title: str = ""
    plan: str
    price_microcny: int
    """Of one cycle."""
    amount_uhs: int
    """Granted each cycle."""
    cycle: Cycle = Cycle.MONTH
    cycle_days: int = 0
    """How long a cycle is, where it is not a calendar month."""
    lifetime_days: int | None = None
    """How long a cycle's tokens are good. None = until the next cycle starts."""
    rollover_min_uhs: int = 0
    rollover_max_uhs: int = 0
    overflow: Overflow = Overflow.WALLET
    restriction: Restriction = UNRESTRICTED
    asset: str = COMPUTE
    """What it grants; of LLM tokens, the amounts here are in thousandths of one of weight 1 (`fabric.charging.packages`)."""
    ends: Ends | None = None
    """None = nobody has said that it does."""

    def is_over(self, at_us: int) -> bool:
        """Whether no cycle of it begins any more."""
        return self.ends is not None and self.ends.at_us <= at_us


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is for sale. Names are unique within their kind."""

    version: int
    effective_from_us: int = 0
    """From when on it holds; 0 = from when it is said."""
    plans: tuple[Plan, ...]
    bundles: tuple[Bundle, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()
    settlement_hours: int = SETTLEMENT_HOURS
    """How long what a client's hold held stays set aside for its report, once the hold has lapsed."""

    def plan(self, name: str) -> Plan | None:
        return next((plan for plan in self.plans if plan.name == name), None)

    def bundle(self, name: str) -> Bundle | None:
        return next((bundle for bundle in self.bundles if bundle.name == name), None)

    def subscription(self, name: str) -> Subscription | None:
        return next((subscription for subscription in self.subscriptions if subscription.name == name), None)
