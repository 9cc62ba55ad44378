"""How often a pool takes devices away: learned from the leases that ended there, and told to the jobs that start there.

A job saves beside its work as often as Young and Daly find worth it (`training.state.cadence`), for which it must know how often
it would lose what it has not saved. A lease that was evicted and saved within its grace lost nothing; it counts only for a
job whose save takes longer than the notice it would get. Nothing is known of a new pool: it counts as one loss in four
hours of lease time, and the longer it is known, the less that matters.
"""

from typing import Final

import msgspec

from fabric.gate.events import LeaseOutcome
from fabric.gate.lifecycle import StopReason

_FIRST_US: Final = 4 * 3_600_000_000
"""What a loss is expected after where nobody has seen one; the same as of a run outside the fabric."""
_REMEMBERED_US: Final = 90 * 86_400_000_000
"""Of lease time: when it is exceeded, all of it counts half, so that a pool that has changed is soon known as it is."""
_EVERY_US_MIN: Final = 1_000_000


class Hazard(msgspec.Struct, kw_only=True):
    """What has happened to the leases of one pool and type."""

    leased_us: int = 0
    taken: int = 0
    """Leases that were asked to leave, and had saved by then."""
    lost: int = 0
    """Leases that ended without a word, or too late."""


def note(
    hazards: dict[str, Hazard], pool: str, *, ran_us: int, outcome: LeaseOutcome, reason: StopReason | None
) -> None:
    """A lease has ended after so long. What its own code or its owner ended tells nothing of the pool but time."""
    known = hazards.get(pool)
    if known is None:
        known = hazards[pool] = Hazard()
    known.leased_us += ran_us
    if outcome is LeaseOutcome.LOST and reason in (None, StopReason.EVICTED, StopReason.DRAINED):
        known.lost += 1
    elif reason in (StopReason.EVICTED, StopReason.DRAINED):
        known.taken += 1
    if known.leased_us > _REMEMBERED_US:
        known.leased_us, known.taken, known.lost = known.leased_us // 2, known.taken // 2, known.lost // 2


def loss_every_us(hazards: dict[str, Hazard], pool: str, *, outlasts_notice: bool) -> int:
    """How long a lease there lasts, on average, until what it has not saved is lost.

    `outlasts_notice`: the job's save takes longer than the notice it gets, so that every eviction is a loss.
    """
    known = hazards.get(pool)
    if known is None:
        return _FIRST_US
    losses = known.lost + (known.taken if outlasts_notice else 0)
    return max((_FIRST_US + known.leased_us) // (1 + losses), _EVERY_US_MIN)
