"""How long a job should run between two saves, as the gate reckons it: what it gives back of lost work has that bound.

The interval is Young's and Daly's, √(2 · what a save takes · how often the pool loses a lease), as `training.state.cadence`
takes it in the job; here in integers, from what the job's own saves took and from what it was told of the pool at its start.
"""

from math import isqrt
from typing import Final

_SAVES_PER_RUN: Final = 20
"""Saving takes at most one part in so many of the time."""
_OFTEN_US: Final = 60_000_000
"""Nobody has to save more often than this."""
_SLACK: Final = 2
"""So many intervals are given back at most: a save begins late, and takes its time."""


_LOSS_EVERY_US: Final = 4 * 3_600_000_000
"""For a lease of which it wasn't told."""


def interval_us(saves_us: tuple[int, ...], *, loss_every_us: int) -> int:
    """From one save to the next. A job of which no save is known should save once before a lease is lost, on average."""
    takes_us = max(saves_us, default=loss_every_us)
    best_us = min(max(isqrt(2 * takes_us * loss_every_us), takes_us * _SAVES_PER_RUN), loss_every_us)
    return max(best_us, _OFTEN_US)


def refundable_us(saves_us: tuple[int, ...], *, loss_every_us: int | None) -> int:
    """What of the time since the last save is given back at most where it was lost."""
    return _SLACK * interval_us(saves_us, loss_every_us=loss_every_us or _LOSS_EVERY_US)
