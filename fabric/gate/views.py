"""What the gate shows: questions and answers that change nothing. Amounts in µHs, times and durations in µs."""

from typing import Final

import msgspec

from fabric.charging.rates import Rate
from fabric.gate.instructions import Share
from fabric.gate.invoice_views import InvoiceView
from fabric.gate.limit_views import LimitView
from fabric.gate.package_views import PackageRoom, PackageView
from fabric.gate.serving_events import CallUsed
from fabric.gate.stays import Stay
from fabric.placement.score import Chosen
from fabric.placement.why import Waits
from fabric.units import PPM, Fraction

CHANGES_MAX: Final = 128
"""Jobs in one answer about what has changed: whoever wants more asks again."""


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job as its owner sees it."""

    job_id: str
    account_id: str
    name: str
    kind: str
    state: str
    """queued | starting | running | stopping | parked | succeeded | failed | cancelled"""
    reason: str
    """Why it is where it is: waiting_for_capacity, limit_reached, out_of_tokens, tokens_expired, paused, the error's first line, ..."""
    accelerator: str
    """The type it runs on, or the types it waits for, joined by '|'."""
    devices: int
    nodes: tuple[str, ...]
    """Where it is, or was when it ended."""
    limit_uhs: int
    held_uhs: int
    burned_uhs: int
    burn_uhs_per_s: int
    utilisation_ppm: int
    runway_us: int | None
    """How long it can go on at this burn with what is held and may still be held. None = not burning."""
    attempts: int
    submitted_at_us: int
    started_at_us: int | None
    ended_at_us: int | None
    settled: bool
    """Whether `burned_uhs` is the final charge."""
    error: str
    result_ref: str
    lease_id: str | None
    revision: int
    """Grows with every change: watch with `after_revision`."""
    step: int = 0
    """How far it is, by its own word; 0 = it says nothing."""
    steps_total: int = 0
    loss_micro: int | None = None
    """Its loss × 10⁶, by its own word."""
    throughput_milli: int = 0
    """What it says it does in a thousand seconds (samples, tokens, ... as it counts); 0 = it doesn't say."""
    eta_us: int | None = None
    """Until its last step at the pace of its last ones; None = not known."""
    timeline: str = ""
    """What became of it, in a line."""
    saved_step: int = 0
    saved_at_us: int | None = None
    saved_bytes: int = 0
    grace_needed_us: int | None = None
    """The notice it needs to save, learned from its saves; None until it has made one."""
    timers: dict[str, int] = {}
    """Where its time goes, by its own word, in µs: waiting_data, collective, checkpoint, idle. Explains, never bills."""
    warning: str = ""
    """What its owner should see to while there is time: that the archive takes no more of it, for instance."""
    devices_least: int | None = None
    idle_us: int | None = None
    """How long the meters have seen next to no use of its devices; None = they are in use."""
    tier: str = ""
    """The plan of its account."""
    key_id: str = ""
    """The key it was submitted with, whose limit it counts against."""
    fraction: Fraction | None = None
    """Of its one device it has such a part; None = whole devices."""
    exit_code: int | None = None
    """Of a script or command that ended by itself."""
    tags: tuple[str, ...] = ()
    project: str = ""
    """Whose work it is: that of the key it was submitted with, or that which is called like its account."""
    member: str = ""
    ran: tuple[Stay, ...] = ()
    """Where its attempts were, the first and the newest of them."""


class EvictionView(msgspec.Struct, frozen=True, kw_only=True):
    """That a job was asked to leave for another. A job of an account that whoever asks doesn't see is ""."""

    at_us: int
    job_id: str
    for_job_id: str
    why: str
    """reclaimed | quota | backfill | outranked"""
    rank: int
    """The class of the job that it was for, best first: inference, Enterprise, Professional, Starter, batch."""
    loss_us: int
    """What it was reckoned to lose, in device-µs: the least of all that could have been asked."""
    among: int
    """How many that were."""


class StartView(msgspec.Struct, frozen=True, kw_only=True):
    """When a job that waits is likely to start."""

    p50_us: int
    """From now on: by then half of such jobs have started,"""
    p90_us: int
    """by then nine of ten."""
    known: int
    """From how many guesses about others that is reckoned."""


class WhyView(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job is where it is, in facts."""

    job_id: str
    state: str
    reason: str
    error: str
    now_us: int
    preemptible: bool
    accelerators: tuple[str, ...]
    waits: Waits | None
    """None = it doesn't wait for devices."""
    leaving_until_us: int | None
    """When the last of those that leave for it is gone, at the latest."""
    until_us: int | None
    """When it must have left itself."""
    starts: StartView | None
    """None = it doesn't wait for its turn, or too little is known of others."""
    again_us: int | None
    """When it is queued for devices again, as its attempts came to nothing; None = it needn't wait for that."""
    setbacks: int
    """How many in a row did."""
    evictions: tuple[EvictionView, ...]
    because: Chosen | None = None
    """Of a job that is on devices and says what it prefers: what they were chosen by."""


class LotView(msgspec.Struct, frozen=True, kw_only=True):
    lot_id: str
    origin: str
    granted_uhs: int
    free_uhs: int
    held_uhs: int
    effective_at_us: int
    expires_at_us: int | None
    scope: str
    price_microcny: int


class UnitsView(msgspec.Struct, frozen=True, kw_only=True):
    """Units of something else than compute tokens, such as minutes of 5G edge."""

    asset: str
    amount: int
    expires_at_us: int


class BalanceView(msgspec.Struct, frozen=True, kw_only=True):
    """Settled and held apart, so that a balance doesn't jump when a job starts."""

    account_id: str
    name: str
    plan: str
    tier: str
    posted_uhs: int
    """What is owned: free + held."""
    free_uhs: int
    held_uhs: int
    debt_uhs: int
    credit_limit_uhs: int
    burn_uhs_per_s: int
    runway_us: int | None
    """How long what is held, and free for what runs, lasts at this burn. None = nothing burns."""
    lots: tuple[LotView, ...]
    bound_uhs: int = 0
    """Of what is free: good for some uses only."""
    receivable_microcny: int = 0
    """Invoiced and not paid."""
    invoiced_uhs: int = 0
    charged_back_uhs: int = 0
    """What that was used for: it counts against the credit limit until it is paid."""
    units: tuple[UnitsView, ...] = ()
    """What bundles gave besides compute tokens, as far as it is still good."""
    weight_ppm: int = PPM
    cohort: str = ""
    """Who pays for it together with other accounts: the share is theirs together."""
    packages: tuple[PackageView, ...] = ()
    """Of LLM tokens."""
    invoices: tuple[InvoiceView, ...] = ()
    """Those that aren't paid in full, oldest first."""
    standing: str = "open"
    """open | suspended | closing | closed"""
    standing_why: str = ""


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    node_id: str
    accelerator: str
    pool: str
    devices: int
    free: int
    state: str
    """up | draining | down"""
    dedicated_to: str | None
    leases: tuple[str, ...]
    units: int = 1
    """A device of it may be had in so many equal units; 1 = only whole."""
    fraction: Fraction | None = None
    """What is counted as its devices are such parts of devices."""
    free_units: tuple[int, ...] = ()
    """Of each device that is divided now, how many units are free."""
    division: str = ""
    """How its devices are divided."""


class LeaseView(msgspec.Struct, frozen=True, kw_only=True):
    lease_id: str
    job_id: str
    account_id: str
    accelerator: str
    shares: tuple[Share, ...]
    state: str
    """starting | running | stopping | removing"""
    fraction: Fraction | None = None
    """Of its one device it has such a part; None = whole devices."""
    sampled: int = 0
    """The last sample of it that was charged: meters that were lost go on counting from there."""


class OpenUsageView(msgspec.Struct, frozen=True, kw_only=True):
    """A call that was used and is neither charged nor written off."""

    account_id: str
    hold_id: str
    call: CallUsed
    code: str
    """What its report was refused with."""
    reason: str
    kept_at_us: int


class QuoteView(msgspec.Struct, frozen=True, kw_only=True):
    """What a job would cost, before it exists."""

    accelerator: str
    """The type the worst case is reckoned with."""
    devices: int
    fraction: Fraction | None = None
    burn_uhs_per_s: int
    """At the reference utilisation of 80 %."""
    burn_max_uhs_per_s: int
    burn_idle_uhs_per_s: int
    hold_uhs: int
    """What would be held to start."""
    runtime_us: int
    """How long the limit lasts at the reference burn."""
    cost_microcny: int
    """The limit at the price of the account's plan."""
    free_uhs: int
    """What this job could get: free, good for it, and within the limit of the key."""
    affordable: bool
    placeable_now: bool
    refusal: str
    """Why it would be refused, "" if it wouldn't be."""
    runs: int = 0
    """How many jobs of the same name have succeeded: what follows is known of them."""
    burned_p50_uhs: int = 0
    burned_p90_uhs: int = 0
    took_p50_us: int = 0
    took_p90_us: int = 0
    attempts_p90: int = 0
    starts_known: int = 0
    """When it would start is reckoned from so many guesses about others; 0 = it isn't known, or it would at once."""
    starts_p50_us: int = 0
    starts_p90_us: int = 0


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is offered. Which replicas there are the gate doesn't know."""

    name: str
    source: str
    parent: str = ""
    """The model that it is an adapter of."""
    accelerators: tuple[str, ...]
    devices: int
    replicas_min: int
    replicas_max: int
    ttft_objective_us: int | None
    dedicated_to: str | None
    max_context: int | None
    engine: str
    engine_args: tuple[tuple[str, str], ...]
    rates: tuple[Rate, ...]
    """In force: one for each type of accelerator, or one for any."""
    rate_version: int
    price_microcny_per_ct: int
    """What a token costs on the plan of the account that asks; 0 for the operator."""
    offered_at_us: int
    changed: int
    """Grows whenever it is offered again or scaled."""


class Entitlement(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller has for one model."""

    model: str
    free_uhs: int
    """What a hold for it could get now, by the account's lots and the key's limit."""
    covered: bool
    """Whether it is the account's own: its lease pays."""
    packaged: bool = False
    """Whether there is something free of a package of LLM tokens that is good for it."""


class RoomView(msgspec.Struct, frozen=True, kw_only=True):
    """What a client's hold could be given more."""

    free_uhs: int = 0
    within_key: bool = False
    """What bounds it is the limit of the hold's key, and not what the account has free."""
    packages: tuple[PackageRoom, ...] = ()
    """Of packages of LLM tokens, in the order in which they pay."""


class CallerView(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever calls with a key, as a gateway must know them."""

    key_id: str
    account_id: str
    secret_sha256: str
    operator: bool
    revoked: bool
    expires_at_us: int | None
    limited: bool
    """Whether the key has a limit of its own, and so needs slices of its own."""
    may_call: bool = True
    """Whether the key is for calling models."""
    role: str = ""
    """Its member's; of a key of nobody's, that which its scopes come to."""
    project: str = ""
    member: str = ""
    dead: str = ""
    """Why it will never count again: revoked | account_closed | member_left | project_closed; "" = it does."""
    suspended: str = ""
    """Why its account is suspended; "" = it isn't."""
    plan: str
    tier_rank: int
    """0 standard, 1 priority, 2 dedicated: who goes first under load."""
    price_microcny_per_ct: int = 0
    """What a token costs on the account's plan."""
    name: str = ""
    tags: tuple[str, ...] = ()
    limit_uhs: int | None = None
    spent_uhs: int = 0
    requests_per_min: int = 0
    tokens_per_min: int = 0
    free_uhs: int
    """Whatever it is good for, within the key's limit."""
    models: tuple[Entitlement, ...]
    packages: tuple[PackageRoom, ...] = ()
    """What the account has free of packages of LLM tokens."""
    held_uhs: int = 0
    limits: tuple[LimitView, ...] = ()
    """Those that reset, of the key and of its account."""


class LogChunk(msgspec.Struct, frozen=True, kw_only=True):
    """Some lines of a job, from one rank of one attempt."""

    rank: int
    attempt: int
    offset: int
    """Where the chunk starts in that rank's log, in bytes."""
    data: bytes
