"""Everything the planner knows, as plain data that encodes and decodes.

Nothing here is an index: bitsets, lanes and heaps are rebuilt from it. Records refer to each other by id.
"""

from dataclasses import dataclass, field

import msgspec

from fabric.placement.jobs import Request, Shares
from fabric.placement.quotas import Account, Policy
from fabric.units import AccountId, Fraction, JobId, NodeId


class Node(msgspec.Struct, frozen=True):
    """A machine with devices of one type."""

    node_id: NodeId
    accelerator: str
    devices: int
    pool: str
    """reserved | dedicated | spot"""
    dedicated_to: AccountId | None = None
    notice_us: int | None = None
    """How long before it goes it says so; None = long enough for anybody."""
    units: int = 1
    """A device of it may be had whole, or in so many equal units; 1 = only whole."""
    fraction: Fraction | None = None
    """What is counted as its devices are such parts of devices, divided for good; None = whole ones."""
    division: str = ""
    """How, for people."""


class Divided(msgspec.Struct):
    """A device that is given away in units. free + Σ jobs = the node's units of a device, always."""

    free: int
    jobs: dict[JobId, int] = {}
    """Who has how many."""
    closed: bool = False
    """It is being left: nobody new comes onto it."""


class NodeState(msgspec.Struct):
    """A node and who is on it. free + Σ shares + held = devices, always.

    A divided device is a share of one device, of a job that stands for all that have units of it.
    """

    node: Node
    slot: int
    """Its bit in the bitsets of its group."""
    free: int
    status: str = "up"
    """up | draining | down"""
    shares: dict[JobId, int] = {}
    held: int = 0
    """Devices already set aside for claims."""
    owed: dict[JobId, int] = {}
    """Devices that go to these claims when they are released, first come first served."""
    divided: dict[JobId, Divided] = {}
    """By the share's name."""
    kept_until_us: int = 0
    """Until when what is free here is not lent: reserved inference has just left it, and may ask for it again."""


class Queued(msgspec.Struct, gc=False):
    """A job that waits."""

    request: Request
    seq: int
    rank: int
    queued_at_us: int
    preemptible: bool
    """As asked for."""
    order: tuple[int, int] = (0, 0)
    """(submitted_at_us, seq): the line within one account."""


class Running(msgspec.Struct, gc=False):
    """A job that owns devices."""

    request: Request
    seq: int
    rank: int
    group: str
    """Of a gang of several types: that of its first part."""
    shares: Shares
    preemptible: bool
    placed_at_us: int
    started_at_us: int | None = None
    saved_at_us: int | None = None
    write_us: int = 0
    restore_us: int = 0
    pinned_at_us: int | None = None
    """When it was pinned, if it was placed from a reservation."""
    evicting: bool = False
    groups: tuple[str, ...] = ()
    """Of a gang of several types: those of all its parts."""
    fee: int = 0
    """What its start was counted with, as usage is (`Fairness`), as far as it isn't used."""
    every_us: int = 0
    """Between its last two checkpoints, or from its start to its first one; 0 while it has none."""
    within: JobId | None = None
    """It has units of this divided device; it is one, if that is its own name."""

    @property
    def is_divided(self) -> bool:
        """Whether it is no job, but a divided device, which stands for all that are on it."""
        return self.within is not None and self.within == self.request.job_id

    @property
    def since_us(self) -> int:
        """Since when it has run, or had its devices if its code doesn't run yet."""
        return self.placed_at_us if self.started_at_us is None else self.started_at_us

    @property
    def passed_us(self) -> int:
        """Of its class, only who was pinned no later than this may take its place: before it was pinned itself, or started."""
        return self.placed_at_us if self.pinned_at_us is None else self.pinned_at_us - 1


class Claim(msgspec.Struct):
    """Devices a job will get: some set aside already, the rest when their evicted owners are released."""

    group: str
    shares: Shares
    owed: int
    pinned_at_us: int | None = None
    """When the job was pinned, if it was."""


class Pin(msgspec.Struct):
    """A reservation: of a job that has waited long enough."""

    group: str
    nodes: list[NodeId]
    """Nobody who can't be evicted starts there, but of a better class."""
    at_us: int
    """Who started since may be evicted for it."""
    retry_at_us: int = 0
    """Not before this are victims looked for again,"""
    enough: int = 0
    """unless so many devices are free, or are being left."""


class GroupState(msgspec.Struct):
    """A pool's nodes of one type, and how many jobs of each class were ever placed there."""

    pool: str
    accelerator: str
    owner: AccountId | None
    placed: list[int]
    fraction: Fraction | None = None
    """Its nodes' devices are such parts of devices."""


class Blocked(msgspec.Struct):
    """A lane whose first job does not fit."""

    passed_from: int | None = None
    """How many jobs of its own class or lower its groups had placed when it was blocked; None when it isn't any more."""
    retry_at_us: int = 0
    """Not before this are victims looked for again."""
    payer: str = ""
    """Of the lane's oldest job then."""
    own_from: int = 0
    """How many of these were that payer's own."""


@dataclass(slots=True)
class PlacementState:
    """The planner's whole memory."""

    policy: Policy = field(default_factory=Policy)
    nodes: dict[NodeId, NodeState] = field(default_factory=dict)
    accelerators: list[str] = field(default_factory=list)
    """Every type that was ever seen, in order of appearance: the order of preference of who has none."""
    queue: dict[JobId, Queued] = field(default_factory=dict)
    running: dict[JobId, Running] = field(default_factory=dict)
    claims: dict[JobId, Claim] = field(default_factory=dict)
    pins: dict[JobId, Pin] = field(default_factory=dict)
    blocked: dict[str, Blocked] = field(default_factory=dict)
    groups: dict[str, GroupState] = field(default_factory=dict)
    """By name; one that was ever there stays."""
    accounts: dict[AccountId, Account] = field(default_factory=dict)
    cohorts: dict[str, Account] = field(default_factory=dict)
    """What the accounts of each cohort have used together."""
    starts: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """By payer that has jobs here, by group, by class: how many of its jobs were placed. Nobody is passed by his own."""
    evictions: dict[JobId, list[int]] = field(default_factory=dict)
    """When each job was evicted, within the last day."""
    planned_at_us: int = -1
    epoch_us: int = -1
    """What decayed usage is reckoned from."""
    seq: int = 0
    divided: int = 0
    """How often a device was divided: names them apart."""
