"""Charging data records: what one lease or one metered call used, and what that cost.

A CDR is written once, when a lease's meters are closed or a call of a language model was settled, and holds everything
needed to compute its charge again. For a lease: the devices, the tariff version and weight, the time, the device-time in
use in each band of the burn curve, and what part of it was estimated. For a call: the LLM tokens of each kind and the rate.
"""

import msgspec

from fabric.charging.clockwork import Span
from fabric.charging.packages import Tokens
from fabric.units import Fraction


class PackageUse(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a package paid for of one call."""

    asset: str
    """With the weights by which it is counted: see `fabric.charging.packages`."""
    units: int
    """Thousandths of a token of weight 1."""
    tokens: Tokens
    """The LLM tokens that it paid for."""
    lots: tuple[tuple[str, int], ...] = ()
    """Of which lots, and how many thousandths of each."""


class Cdr(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One attempt of one job, or one call, rated. Times and durations in µs, amounts in µHs.

    A call's has its own id as `cdr_id`, no `job_id`, the hold that paid as `lease_id`, and no devices.
    """

    cdr_id: str
    account_id: str
    job_id: str
    lease_id: str
    name: str
    service: str
    accelerator: str
    devices: int
    started_at_us: int
    ended_at_us: int
    metered_us: int
    busy_us: int
    """Device-time in use; utilisation = busy / (devices x metered)."""
    estimated_us: int
    tariff_version: int
    weight_ppm: int
    bands: tuple[tuple[int, int], ...] = ()
    """(devices x time, device-time in use) in each linear piece of the tariff's burn curve, without what was estimated."""
    charged_uhs: int
    refunded_uhs: int = 0
    """Lost work the platform caused, given back: already taken off `charged_uhs`."""
    absorbed_uhs: int = 0
    """Used beyond what was held, and not charged: the operator's loss. Of a call: beyond what was free, too."""
    ended: str = ""
    """How the attempt ended: succeeded | failed | saved | lost | cancelled; how a call did: stop | length |
    balance_exhausted | client_gone | error | cancelled."""
    model: str = ""
    """"" = a lease's record."""
    key_id: str = ""
    """The API key the call came with."""
    rate_version: int = 0
    rate_uhs_per_mtok: tuple[int, ...] = ()
    """What 10⁶ LLM tokens cost: prompt, cached prompt, completion, reasoning."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    fraction: Fraction | None = None
    """Its device was such a part of one: times are of that part, and the charge is that part of a device's."""
    spans: tuple[Span, ...] = ()
    """Where its weight turned while it ran: all its time, each span rated by itself, and the record has no bands of its own. The
    record's tariff version and weight are then those it ended with.
    """
    covered: bool = False
    """Ran on the account's own dedicated lease, which has paid for it: charged 0."""
    packages: tuple[PackageUse, ...] = ()
    """What packages of LLM tokens paid for of a call: `charged_uhs` is for the rest."""
    spared_uhs: int = 0
    """What the tokens that packages paid for would have cost beside."""
    tags: tuple[str, ...] = ()
    """What its job or call was tagged with, by itself, its key or its project, as cost centres are: `team=red`."""
    project: str = ""
    """Whose work it was: that of the key that it was done with. "" = the project that is called like the account."""
    member: str = ""
    """Whose key that was, then; "" = nobody's."""
