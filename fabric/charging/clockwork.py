"""What a device weighs as time goes on: hours of the day, and prices that begin on a date.

A lease follows the clock, not its start: what it burns in an hour is weighed as that hour is, and from the date of other
prices on by those. So its time is cut at each such turn, into spans of one weight, curve and version of the tariffs.
"""

from typing import Final

import msgspec

from fabric.charging.burn import BurnCurve
from fabric.charging.tariffs import HOURS_A_DAY, US_PER_HOUR, US_PER_MINUTE

DAY_US: Final = HOURS_A_DAY * US_PER_HOUR


class Terms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device of one lease weighs and how it burns, from a moment on until other terms begin."""

    since_us: int
    tariff_version: int
    curve: BurnCurve
    weights: tuple[int, ...]
    """In ppm: one, or one for each hour of the tariff's day."""
    utc_offset_minutes: int = 0
    """Of the clock by which the hours are meant."""

    def weight_ppm(self, at_us: int) -> int:
        """What it weighs at a moment."""
        if len(self.weights) == 1:
            return self.weights[0]
        return self.weights[(at_us + self.utc_offset_minutes * US_PER_MINUTE) // US_PER_HOUR % HOURS_A_DAY]

    @property
    def peak_ppm(self) -> int:
        """What it weighs at most."""
        return max(self.weights)

    def turn_us(self, at_us: int) -> int | None:
        """When it next weighs something else; None = never."""
        if len(set(self.weights)) == 1:
            return None
        shift_us = self.utc_offset_minutes * US_PER_MINUTE
        now_ppm = self.weight_ppm(at_us)
        turn_us = (at_us + shift_us) // US_PER_HOUR * US_PER_HOUR - shift_us + US_PER_HOUR
        while self.weight_ppm(turn_us) == now_ppm:
            turn_us += US_PER_HOUR
        return turn_us


class Span(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a lease's metered time with one weight, rated by itself: the charge of a lease is that of its spans together."""

    from_us: int
    """When it began: the first at the lease's start, each other where the one before ends."""
    until_us: int
    estimated_us: int = 0
    """How much of it nobody metered."""
    tariff_version: int
    weight_ppm: int
    bands: tuple[tuple[int, int], ...] = ()
    """As in a record without spans."""


def compact(weights: tuple[int, ...]) -> tuple[int, ...]:
    """The weights of all hours, as one where they are the same."""
    return weights[:1] if len(set(weights)) == 1 else weights
