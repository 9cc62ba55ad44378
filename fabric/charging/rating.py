"""From device-time to µHs, exactly.

`Meter` carries the exact sum of what was used as an integer over a fixed denominator, and charges the difference of its
rounded totals: however an interval is split into windows of the same utilisation, the charges add up to the same.
Charges round half-even, holds round up, so a hold for the worst case is never less than what it will be charged.
"""

import msgspec

from fabric.charging.burn import BurnCurve
from fabric.units import MICROS_PER_S, PPM

_SCALE: Final = PPM * PPM


class Meter(msgspec.Struct):
    """What one stream of samples adds up to."""

    numerator: int = 0
    """µHs × denominator × 10¹²."""
    charged_uhs: int = 0

    def add(self, *, devices: int, window_us: int, busy_us: int, weight_ppm: int, curve: BurnCurve) -> int:
        """Count one window; what is newly due, in µHs (never negative, often 0 for tiny windows)."""
        self.numerator += curve.scaled(capacity_us=devices * window_us, busy_us=busy_us) * weight_ppm
        total = half_even(self.numerator, curve.denominator * _SCALE)
        due, self.charged_uhs = total - self.charged_uhs, total
        return due


def hold_for(*, devices: int, duration_us: int, weight_ppm: int, curve: BurnCurve) -> int:
    """The most that can be burned in so long, in µHs, rounded up."""
    return -(-devices * duration_us * weight_ppm * curve.max_ppm // _SCALE)


def burn_per_s(*, devices: int, weight_ppm: int, curve: BurnCurve, utilisation_ppm: int) -> int:
    """µHs a second at a steady utilisation, for people: rounded half-even."""
    busy_us = devices * utilisation_ppm * MICROS_PER_S // PPM
    exact = curve.scaled(capacity_us=devices * MICROS_PER_S, busy_us=busy_us) * weight_ppm
    return half_even(exact, curve.denominator * _SCALE)


def half_even(numerator: int, denominator: int) -> int:
    """Integer division, rounded to the nearest, ties to the even one."""
    quotient, rest = divmod(numerator, denominator)
    twice = 2 * rest
    return quotient + (twice > denominator or (twice == denominator and quotient % 2 == 1))
