"""How many replicas a model should have now: pure arithmetic over what the board says.

Not by calls alone: a replica that is full makes its next caller wait, so it is what waits, and how long first tokens
take against their objective, that adds a replica; only quiet takes one away, one at a time.
"""

from dataclasses import dataclass
from typing import Final

FULL_PERCENT: Final = 80
"""A replica counts as full from here on: the rest is for what comes while another one starts."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of a model now."""

    running: int
    """Calls in the engines."""
    waiting: int
    """Calls that wait in engines and gateways."""
    replicas: int
    """Those that are ready or on their way."""
    capacity: int
    """Calls that one replica takes at once."""
    ttft_us: int | None = None
    """Median time to the first token of late."""
    quiet_us: int = 0
    """Since more than the fewer replicas would do was asked for."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an offer allows and aims at.

    Args:
        keep_us: so long it must be quiet before a replica goes.
    """

    least: int
    most: int
    ttft_objective_us: int | None = None
    keep_us: int = 60_000_000


def replicas_for(demand: Demand) -> int:
    """The fewest replicas that hold what is asked for without being full."""
    calls = demand.running + demand.waiting
    return -(-calls * 100 // max(1, demand.capacity * FULL_PERCENT))


def wanted(demand: Demand, bounds: Bounds) -> int:
    """How many replicas there should be, within the bounds."""
    needed = replicas_for(demand)
    if _is_late(demand, bounds):
        needed = max(needed, demand.replicas + 1)
    if needed < demand.replicas:
        needed = demand.replicas - 1 if demand.quiet_us >= bounds.keep_us else demand.replicas
    return max(bounds.least, min(bounds.most, needed))


def _is_late(demand: Demand, bounds: Bounds) -> bool:
    objective = bounds.ttft_objective_us
    busy = demand.running + demand.waiting > 0
    return objective is not None and demand.ttft_us is not None and demand.ttft_us > objective and busy
