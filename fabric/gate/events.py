"""What can happen to the gate: the only way to change its state.

Events are plain frozen records, so that a journal of them replays anywhere. Those that come from a client carry a
`request_id`: for 32 days the same id with the same content gets its yes again; with other content it is a
conflict. Amounts are µHs, times and durations µs. Events from the cluster (nodes, leases, meters) carry the lease's id,
which names one attempt, so a late word from a dead one changes nothing. Metered inference has its own: `serving_events`.
"""

from enum import StrEnum

import msgspec

from fabric.charging.catalogue import Catalogue
from fabric.charging.tariffs import Tariffs
from fabric.gate.account_events import AnyAccountEvent
from fabric.gate.caps import Caps
from fabric.gate.event import Event
from fabric.gate.invoice_events import CreditInvoice
from fabric.gate.limit_events import AnyLimitEvent
from fabric.gate.payment_events import AnyPaymentEvent
from fabric.gate.serving_events import AnyServingEvent
from fabric.gate.share_events import SetCohort, SetQuota, SetShare
from fabric.ledger.scopes import ANYTHING, Scope, Service
from fabric.placement.locality import Dataset, Holdings
from fabric.placement.quotas import Policy
from fabric.units import AccountId, Fraction, JobId, KeyId, LeaseId, NodeId


class Pool(StrEnum):
    """Who a node is for: inference, one Enterprise account's cells, or preemptible work."""

    RESERVED = "reserved"
    DEDICATED = "dedicated"
    SPOT = "spot"


class JobKind(StrEnum):
    """How a job's payload is run."""

    FUNCTION = "function"
    """A pickled callable; the runner holds the devices."""
    SCRIPT = "script"
    """An entry point in a working directory; the runner holds the devices."""
    PROGRAM = "program"
    """Ray code that starts tasks and actors of its own, which are captured into the lease and hold the devices."""
    LEASE = "lease"
    """Nothing but the devices: the client schedules its own Ray tasks into the lease until it closes it."""


class HoldMode(StrEnum):
    """How much of a job's limit is held before it starts."""

    FULL = "full"
    """All of it: once accepted, the job can never be parked for what others spend."""
    ROLLING = "rolling"
    """A quantum at a time, renewed while it runs: a top-up extends it, an empty account parks it."""


# -- from the operator -------------------------------------------------------------------------------------------------


class Configure(Event, frozen=True, kw_only=True, tag="configure"):
    """Prices, plans and policy from now on. Journaled, so that replay never reads today's files for yesterday's bill."""

    tariffs: Tariffs
    catalogue: Catalogue
    operator: str = "op"
    payments: str = "sandbox"
    """Who says that something was paid: sandbox (whoever asks is believed) | operator (only what an operator books) | stripe |
    alipay (what that provider takes, and what an operator books).
    """
    policy: Policy | None = None
    """By which numbers jobs are placed; None = as before."""
    caps: Caps | None = None
    """How much each customer may have; None = as before."""
    by_hand: bool = False
    """Whether an operator said so while it ran, and not the cluster file: it holds until that says something new."""
    request_id: str = ""


class Grant(Event, frozen=True, kw_only=True, tag="grant"):
    """Tokens given by the operator: a promotion, a refund, a goodwill."""

    account_id: AccountId
    amount_uhs: int
    origin: str = "promotion"
    scope: Scope = ANYTHING
    lifetime_us: int | None = None
    request_id: str = ""


class VoidLot(Event, frozen=True, kw_only=True, tag="void_lot"):
    """Take back what is unused of a lot that was booked by mistake; never what is held or used."""

    account_id: AccountId
    lot_id: str
    amount_uhs: int | None = None
    """None = all that is unused."""
    reason: str
    request_id: str = ""


class ClosePeriod(Event, frozen=True, kw_only=True, tag="close_period"):
    """Seal what has been booked since the last close; postpaid debt is invoiced, and counts as credit until it is paid."""

    period: str
    request_id: str = ""


class AdoptRules(Event, frozen=True, kw_only=True, tag="adopt_rules"):
    """Newer code has taken the journal over: what follows is decided by these rules (`fabric.versions`)."""

    rules: int
    release: str
    """The first release that knows them: what the journal needs from here on."""


# -- money -------------------------------------------------------------------------------------------------------------


class TopUp(Event, frozen=True, kw_only=True, tag="top_up"):
    """Prepaid tokens at the price and life of the account's plan."""

    account_id: AccountId
    amount_uhs: int
    payment_ref: str = ""
    """What the payment is called elsewhere: unique for ever among the account's payments of this channel."""
    channel: str = "sandbox"
    """Who says that it was paid: sandbox (whoever asks) | operator."""
    request_id: str = ""


class BuyBundle(Event, frozen=True, kw_only=True, tag="buy_bundle"):
    """One purchase, several lots, in one linked transfer."""

    account_id: AccountId
    bundle: str
    payment_ref: str = ""
    channel: str = "sandbox"
    request_id: str = ""


class Subscribe(Event, frozen=True, kw_only=True, tag="subscribe"):
    """Pays a cycle, and starts the subscription with it. Booked by an operator for one that runs, it pays the next cycle."""

    account_id: AccountId
    subscription: str
    payment_ref: str = ""
    channel: str = "sandbox"
    request_id: str = ""


class RecordPayment(Event, frozen=True, kw_only=True, tag="record_payment"):
    """Money that an operator has received for a postpaid account's invoices: the oldest are paid first."""

    account_id: AccountId
    amount_microcny: int
    payment_ref: str
    channel: str = "operator"
    request_id: str = ""


class Unsubscribe(Event, frozen=True, kw_only=True, tag="unsubscribe"):
    """Ends the subscription at the end of its current cycle."""

    account_id: AccountId
    subscription: str
    request_id: str = ""


# -- the cluster -------------------------------------------------------------------------------------------------------


class NodeUp(Event, frozen=True, kw_only=True, tag="node_up"):
    """A node joined, or came back. Saying it again changes nothing."""

    node_id: NodeId
    accelerator: str
    devices: int
    pool: Pool
    dedicated_to: AccountId | None = None
    notice_us: int | None = None
    """How long before it goes it says so. None = as long as any job needs."""
    units: int = 1
    """A device of it may be had whole, or in so many equal units; 1 = only whole."""
    fraction: Fraction | None = None
    """What `devices` counts are such parts of devices, which are divided for good. None = whole ones."""
    division: str = ""
    """How its devices are divided, for people: `mig 1g.10gb`."""


class NodeDown(Event, frozen=True, kw_only=True, tag="node_down"):
    """A node is gone and everything on it: its leases are lost."""

    node_id: NodeId


class NodeHolds(Event, frozen=True, kw_only=True, tag="node_holds"):
    """What a node's cache has of datasets now, and how fast it reads the rest."""

    node_id: NodeId
    holdings: Holdings


class NodeDrain(Event, frozen=True, kw_only=True, tag="node_drain"):
    """Nothing new here; what runs saves and leaves by the deadline. `closing`: the fabric goes down. `cordon`: what runs stays.
    `undo`: as you were.
    """

    node_id: NodeId
    grace_us: int
    closing: bool = False
    cordon: bool = False
    undo: bool = False


# -- jobs --------------------------------------------------------------------------------------------------------------


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a job needs. The payload is opaque to the gate."""

    name: str
    kind: JobKind
    service: Service = Service.TRAINING
    accelerators: tuple[str, ...] = ()
    """Types in order of preference; () = any. The whole gang gets one type, unless `mix` lets it have several."""
    devices: int = 1
    devices_per_node: int | None = None
    """None = on one node where one is that large, else packed on as few as fit."""
    limit_uhs: int
    hold: HoldMode = HoldMode.FULL
    preemptible: bool = True
    grace_us: int = 30_000_000
    time_limit_us: int | None = None
    max_retries: int = 0
    """How often the job's own failure is tried again. Loss of a node is never counted."""
    payload: str = ""
    """JSON for the runner: which callable or entry point, its environment. The gate never looks inside."""
    devices_least: int | None = None
    """An elastic job: it takes the most it gets at each start, from so many up to `devices`. None = exactly `devices`."""
    auto_park_us: int | None = None
    """Park it when its devices have been idle for so long: checkpoint, release, burn nothing. None = never."""
    data: tuple[Dataset, ...] = ()
    """What it reads: nodes that hold it already are better."""
    estimate_us: int | None = None
    """How long its owner thinks it runs: bounds how long it waits for a warmer node. None = it never waits for one."""
    tags: tuple[str, ...] = ()
    """Words that its owner finds it by."""
    mix: str = "never"
    """Of what its gang may be where no type alone has room: never (one type) | same-vendor | islands (any types)."""
    fraction: Fraction | None = None
    """It has, and pays for, such a part of its one device; None = whole devices."""
    prefer: str = ""
    """Of the types that have room: tokens (on which it burns fewest) | soonest (on which it is done first) | "" (in order)."""


class Submit(Event, frozen=True, kw_only=True, tag="submit"):
    job_id: JobId
    account_id: AccountId
    spec: JobSpec
    key_id: KeyId | None = None
    request_id: str = ""


class Cancel(Event, frozen=True, kw_only=True, tag="cancel"):
    job_id: JobId
    account_id: AccountId
    save: bool = False
    """Whether its last state is worth a checkpoint: then it gets its grace to write one."""
    at_once: bool = False
    """Whether it ends without a notice, as nobody wants what it would save. Older cancellations gave all of the grace."""
    request_id: str = ""


class Pause(Event, frozen=True, kw_only=True, tag="pause"):
    """Ask the job to checkpoint, and park it until `Resume`."""

    job_id: JobId
    account_id: AccountId
    request_id: str = ""


class RolledBack(Event, frozen=True, kw_only=True, tag="rolled_back"):
    """The job's checkpoints after this step are void: it resumes from there."""

    job_id: JobId
    account_id: AccountId
    step: int
    bytes: int = 0
    request_id: str = ""


class SaveNow(Event, frozen=True, kw_only=True, tag="save_now"):
    """Ask a job that runs for a checkpoint. It goes on."""

    job_id: JobId
    account_id: AccountId
    request_id: str = ""


class Resume(Event, frozen=True, kw_only=True, tag="resume"):
    job_id: JobId
    account_id: AccountId
    request_id: str = ""


class RaiseLimit(Event, frozen=True, kw_only=True, tag="raise_limit"):
    """A new `tokens=` for a job; a job parked at its limit resumes."""

    job_id: JobId
    account_id: AccountId
    limit_uhs: int
    request_id: str = ""


# -- leases and meters (from the adapter, never from a tenant) ---------------------------------------------------------


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What the node agents saw of one lease in one window, all its nodes together.

    `window_us` is wall time by the agent's monotonic clock; `busy_us` is device-time in use within it, at most
    devices × window. `seq` counts the lease's samples from 1: a repeated one is not charged twice.
    """

    lease_id: LeaseId
    seq: int
    window_us: int
    busy_us: int
    estimated: bool = False


class LeaseStarted(Event, frozen=True, kw_only=True, tag="lease_started"):
    """The job's code is about to run on its devices."""

    lease_id: LeaseId


class LeaseOutcome(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The job's own code raised, exited non-zero or died."""
    SAVED = "saved"
    """By the word of the job's own process what it had done is durable. Where nobody had asked it to stop, it is queued anew
    as long as it gets on; one that has made no checkpoint, as the gate saw it, only once; else it is parked.
    """
    LOST = "lost"
    """The platform took it away, and saw so itself: a node died, a deadline passed, the lease could not be built."""
    INTERRUPTED = "interrupted"
    """By the word of the job's own process the platform failed it: its storage refused. Tried again, and not refunded."""
    NO_ROOM = "no_room"
    """What it had to save is more than its account may keep. Parked with what it saved before, and not refunded."""


class LeaseFinished(Event, frozen=True, kw_only=True, tag="lease_finished"):
    """The job's code has ended; its processes may still be there."""

    lease_id: LeaseId
    outcome: LeaseOutcome
    error: str = ""
    result_ref: str = ""
    """Where the pickled result is: a key of the archive, or the small result itself."""
    step: int = 0
    """The last step the job reported: what a loss is reckoned from. The job's own word, good for telling only."""
    again: bool = False
    """It ended of its own will, saved, and asks to be queued anew (exit code 75). Told only: whether anybody had asked it to
    end, the gate knows itself.
    """
    exit_code: int | None = None
    """Of a script or command that ended by itself, as a shell tells it."""


class LeaseSaved(Event, frozen=True, kw_only=True, tag="lease_saved"):
    """A checkpoint is durable: what was burned up to here is never refunded as lost work."""

    lease_id: LeaseId
    step: int = 0
    write_us: int = 0
    bytes: int = 0
    restore_us: int = 0
    """From the attempt's start to its first step, as its runner saw it; 0 = not known."""


class LeaseTooLarge(Event, frozen=True, kw_only=True, tag="lease_too_large"):
    """What an attempt has on a node's disk is more than others can spare: it is asked to save, and parked."""

    lease_id: LeaseId
    error: str = ""


class LeaseRemoved(Event, frozen=True, kw_only=True, tag="lease_removed"):
    """Nothing of the lease is left: its devices may be leased again. Carries the last sample, if there was one."""

    lease_id: LeaseId
    final: Sample | None = None
    step: int = 0
    """The last step that was heard of, also from a job that never told its end."""


class Metered(Event, frozen=True, kw_only=True, tag="metered"):
    samples: tuple[Sample, ...]


class ForgetJobs(Event, frozen=True, kw_only=True, tag="forget_jobs"):
    """Of an account's jobs that ended without ever having run, all but the newest go: nothing was charged for them, and they
    left nothing.
    """

    account_id: AccountId
    keep: int


class Tick(Event, frozen=True, kw_only=True, tag="tick"):
    """Time has passed: deadlines, expiry, subscriptions, waiting bounds."""


AnyEvent = (
    Configure
    | AdoptRules
    | AnyAccountEvent
    | SetShare
    | SetCohort
    | SetQuota
    | Grant
    | VoidLot
    | ClosePeriod
    | TopUp
    | BuyBundle
    | Subscribe
    | Unsubscribe
    | RecordPayment
    | AnyLimitEvent
    | CreditInvoice
    | AnyPaymentEvent
    | AnyServingEvent
    | NodeUp
    | NodeDown
    | NodeDrain
    | NodeHolds
    | Submit
    | Cancel
    | Pause
    | SaveNow
    | RolledBack
    | Resume
    | RaiseLimit
    | LeaseStarted
    | LeaseFinished
    | LeaseSaved
    | LeaseTooLarge
    | ForgetJobs
    | LeaseRemoved
    | Metered
    | Tick
)
