"""What is asked for, and what is answered: requests, placements, evictions and the reasons a job can never run.

Knows nothing of nodes or of who waits. A gang is all-or-nothing: every share at once, and of one accelerator type in one
pool unless the job asked for a mixture.
"""

from typing import Final

import msgspec

from fabric.placement.score import Chosen, Wish
from fabric.units import PPM, AccountId, Fraction, JobId, NodeId

INFERENCE: Final = 0
ENTERPRISE: Final = 1
PROFESSIONAL: Final = 2
STARTER: Final = 3
SPOT: Final = 4
RANKS: Final = 5
"""Classes of service, best first. Nothing is ever evicted for a class that is not better than its own, but a pinned job's backfill."""

Shares = tuple[tuple[NodeId, int], ...]
"""(node, devices on it), each node once."""


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A gang that wants to run. Handing the same request in again after an eviction keeps its place in line."""

    job_id: JobId
    account_id: AccountId
    devices: int
    devices_per_node: int | None = None
    """None = on one node where any is that large, else packed on as few as fit; else exactly so many on each node, and
    `devices` is a multiple of it."""
    accelerators: tuple[str, ...] = ()
    """Types in order of preference; () = any. The whole gang gets one of them."""
    tier_rank: int = 2
    """0 Enterprise, 1 Professional, 2 Starter."""
    service: str = "training"
    """inference | training | batch"""
    preemptible: bool = True
    weight_ppm: int = PPM
    """The account's share against others of its class, in ppm; with a cohort, that one's counts."""
    cohort: str = ""
    """Whoever pays for the account together with others: the share is theirs together. "" = its own."""
    cohort_weight_ppm: int = PPM
    grace_us: int = 30_000_000
    """How long the job gets to save when it is evicted: decides what its eviction would lose."""
    submitted_at_us: int
    devices_least: int | None = None
    """The gang is elastic: it takes the most it gets, from so many up to `devices`. None = exactly `devices`."""
    speeds: tuple[tuple[str, int], ...] = ()
    """How much a device of each type gets done, in ppm: decides between 3 of these and 2 of those for an elastic gang, and
    between idle types for one that may have any.
    """
    prefers: tuple[NodeId, ...] = ()
    """Nodes where it would rather be, because what it needs lies there already."""

    patience_us: int = 0
    """How long it would rather wait for a preferred node than run anywhere else."""
    notice_us: int = 0
    """It goes only to pools whose nodes of the type all give at least so much notice before they go."""
    mixtures: tuple[tuple[str, ...], ...] = ()
    """Types that may be one gang, where no type alone has room for it; () = a gang is of one type."""
    fraction: Fraction | None = None
    """It has so much of its one device; None = whole devices."""
    wish: Wish | None = None
    """By what a type is chosen of those that have room; None = in the order of its types, or by speed where it has none."""

    @property
    def least(self) -> int:
        """The fewest devices it runs on."""
        return self.devices if self.devices_least is None else self.devices_least

    def is_movable(self, preemptible: bool) -> bool:
        """Whether somebody may have to wait until it has left."""
        return preemptible and self.service != "inference"

    @property
    def may_be_strewn(self) -> bool:
        """Whether it takes devices of several nodes though one node could have them all: where it takes what it gets."""
        return self.devices_least is not None or bool(self.mixtures)


class Placed(msgspec.Struct, frozen=True, gc=False):
    """The job owns these devices until it is released."""

    job_id: JobId
    accelerator: str
    """Of the first share; of all of them, unless `kinds` says otherwise."""
    shares: Shares
    pool: str
    kinds: tuple[str, ...] = ()
    """Of a gang of several types: that of each share."""
    because: Chosen | None = None
    """What it was chosen by, of a job with a wish."""


class Evict(msgspec.Struct, frozen=True, gc=False):
    """Ask `job_id` to leave; what it frees is earmarked to `for_job_id`."""

    job_id: JobId
    for_job_id: JobId
    reason: str
    """reclaimed (a borrower of reserved nodes) | quota (it ran on what somebody's quota has) | backfill (it ran on a pinned job's nodes) | outranked"""
    rank: int = 0
    """The class of the job that it is for."""
    loss_us: int = 0
    """What it was reckoned to lose, in device-µs,"""
    among: int = 1
    """and among how many that could have been asked it was chosen for that."""


class Unplaceable(msgspec.Struct, frozen=True):
    """Why a request can never run here as it is written.

    `unknown_accelerator` {given, known} · `no_such_fraction` {fraction, offered} ·
    `only_parts` {offered} · `gang_too_large` {devices, largest, accelerator}, and {devices_per_node,
    on_a_node} if no node has so many · `no_pool_for` {service,
    preemptible, pools} · `uneven_gang` {devices, devices_per_node} · `over_quota` {devices, most, accelerator} · `grace_too_long` {grace_us, longest_us}.
    """

    code: str
    facts: dict[str, str | int]


def rank_of(request: Request) -> int:
    """The class of a request."""
    return class_of(request.service, request.tier_rank)


def class_of(service: str, tier_rank: int) -> int:
    """Inference first, then by tier; batch work waits behind everything."""
    if service == "inference":
        return INFERENCE
    if service == "batch":
        return SPOT
    return min(tier_rank, 2) + 1
