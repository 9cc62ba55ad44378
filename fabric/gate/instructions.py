"""What the gate tells the world to do, and what it answers.

`Decision` is all that comes out of one event: an answer for the caller, the transfers and charging records that the
journal keeps beside the event, and instructions for the adapter. Instructions are carried out only after the journal has
the decision, and are safe to repeat: after a restart the gate says the outstanding ones again.
"""

import msgspec

from fabric.charging.records import Cdr
from fabric.gate.events import JobKind
from fabric.ledger.transfers import Transfer
from fabric.units import AccountId, Fraction, JobId, LeaseId, NodeId, format_fraction


class Share(msgspec.Struct, frozen=True, gc=False):
    """So many devices of one node."""

    node_id: NodeId
    devices: int
    accelerator: str = ""
    """Where it isn't the lease's: of a gang of several types."""


class Lease(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Devices for one attempt of one job: what a placement group is made from."""

    lease_id: LeaseId
    job_id: JobId
    account_id: AccountId
    name: str
    kind: JobKind
    epoch: int
    """Counts the job's attempts from 1: a checkpoint of an older epoch must never replace a newer one's."""
    accelerator: str
    """Of all shares; of a gang of several types their names, as in "H100+A100"."""
    shares: tuple[Share, ...]
    payload: str
    data: tuple[str, ...] = ()
    """The prefixes of the datasets that the job reads."""
    mix: str = "never"
    """What the job's own code may train on at once: never | same-vendor | islands."""
    loss_every_us: int | None = None
    """How long a lease like this lasts, on average, until what it has not saved is lost. None = nobody knows."""
    fraction: Fraction | None = None
    """Of its one device it has such a part; None = whole devices."""

    @property
    def devices(self) -> int:
        """All of them together."""
        shares = self.shares
        return shares[0].devices if len(shares) == 1 else sum([share.devices for share in shares])

    @property
    def on(self) -> str:
        """`3 × A100`, or `2 × H100 + 1 × A100`, or `1/4 × H100`."""
        if self.fraction is not None:
            return f"{format_fraction(self.fraction)} × {self.accelerator}"
        if len(self.shares) == 1:
            return f"{self.shares[0].devices} × {self.shares[0].accelerator or self.accelerator}"
        counts: dict[str, int] = {}
        for share in self.shares:
            kind = share.accelerator or self.accelerator
            counts[kind] = counts.get(kind, 0) + share.devices
        return " + ".join(f"{devices} × {kind}" for kind, devices in counts.items())


class Instruction(msgspec.Struct, frozen=True, kw_only=True, tag_field="instruction"):
    """Something for the adapter to do."""


class StartLease(Instruction, frozen=True, kw_only=True, tag="start_lease"):
    """Build the lease and run the job in it; report LeaseStarted, then LeaseFinished."""

    lease: Lease


class StopLease(Instruction, frozen=True, kw_only=True, tag="stop_lease"):
    """Ask the job to checkpoint and end by `deadline_us`. The gate itself says RemoveLease when the deadline passes."""

    lease_id: LeaseId
    reason: str
    """evicted | limit_reached | out_of_tokens | cancelled | paused | drained | fabric_down | time_limit | idle"""
    deadline_us: int
    save: bool = True
    """Whether a checkpoint is wanted. Not of a job that is cancelled, unless its owner says so."""


class SaveLease(Instruction, frozen=True, kw_only=True, tag="save_lease"):
    """Ask the job for a checkpoint; it goes on. Not said again after a restart: whoever asked looks for the checkpoint."""

    lease_id: LeaseId


class RemoveLease(Instruction, frozen=True, kw_only=True, tag="remove_lease"):
    """End whatever is left, read the meters a last time, free the devices; report LeaseRemoved."""

    lease_id: LeaseId
    lease: Lease | None = None
    """Said again after a restart, to whoever may not have heard of it: what it has left on its machines is kept all the same."""


AnyInstruction = StartLease | StopLease | SaveLease | RemoveLease


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="refused"):
    """An expected no, as a value: the state has not changed. `code` is an error code of `fabric.errors`."""

    code: str
    http_status: int
    message: str
    facts: dict[str, str | int | bool | None] = {}


class Accepted(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="accepted", gc=False):
    """Yes. For holds: how much was granted, and whether that was the last of it."""

    granted_uhs: int = 0
    held_uhs: int = 0
    final: bool = False
    facts: dict[str, str | int | bool | None] = {}


Outcome = Accepted | Refusal


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """All that one event leads to."""

    outcome: Outcome
    transfers: tuple[Transfer, ...] = ()
    records: tuple[Cdr, ...] = ()
    instructions: tuple[AnyInstruction, ...] = ()
    kept: bool = True
    """False = nothing has changed, not even what time it is: the journal needs nothing of it."""
