"""The burn curve: how fast a device burns at a given utilisation, as integers.

f is monotone and piecewise linear. f(0) is the floor (an idle device is still occupied), f(80 %) = 1 by the definition of
the token, and it is capped above. Where busy and window are known in µs, f is never rounded: `scaled` gives it over a
denominator that depends on the curve alone.
"""

from math import lcm
from typing import Final

import msgspec

from fabric.units import PPM

REFERENCE_PPM: Final = 800_000
"""The utilisation at which a device of weight 1 burns one token an hour."""
CAP_MAX_PPM: Final = 1_250_000
POINTS_MIN: Final = 2


class BurnCurve(msgspec.Struct, frozen=True):
    """Points (utilisation, factor) in ppm, from (0, floor) to (1 000 000, cap), utilisation rising."""

    points: tuple[tuple[int, int], ...] = ((0, 250_000), (REFERENCE_PPM, PPM), (PPM, PPM))

    @property
    def floor_ppm(self) -> int:
        return self.points[0][1]

    @property
    def max_ppm(self) -> int:
        return self.points[-1][1]

    @property
    def denominator(self) -> int:
        """What `scaled` is over: the least common multiple of the segments' widths."""
        return lcm(*(right[0] - left[0] for left, right in pairwise(self.points)))

    def scaled(self, *, capacity_us: int, busy_us: int) -> int:
        """capacity × f(busy / capacity) in ppm-µs, times `denominator`: an integer, exactly.

        Args:
            capacity_us: devices × window.
            busy_us: device-time in use; more than the capacity counts as all of it.
        """
        busy_us = min(max(busy_us, 0), capacity_us)
        whole = self.denominator
        for (left_u, left_f), (right_u, right_f) in pairwise(self.points):
            if busy_us * PPM <= right_u * capacity_us:
                beyond = busy_us * PPM - left_u * capacity_us
                return capacity_us * left_f * whole + beyond * (right_f - left_f) * (whole // (right_u - left_u))
        return capacity_us * self.max_ppm * whole

    def f_ppm(self, utilisation_ppm: int) -> int:
        """f for people: rounded down to ppm."""
        return self.scaled(capacity_us=PPM, busy_us=utilisation_ppm) // (self.denominator * PPM)


def problem_of(points: tuple[tuple[int, int], ...]) -> str | None:
    """What is wrong with a curve's points, in words; None if nothing is."""
    if len(points) < POINTS_MIN or points[0][0] != 0 or points[-1][0] != PPM:
        return "the curve must go from utilisation 0 to 1"
    for (left_u, left_f), (right_u, right_f) in pairwise(points):
        if right_u <= left_u:
            return f"utilisation must rise from point to point: {right_u} ppm after {left_u}"
        if right_f < left_f:
            return f"the factor must never fall: {right_f} ppm after {left_f}"
    if points[0][1] <= 0:
        return "an idle device is still occupied: the floor must be more than 0"
    if points[-1][1] > CAP_MAX_PPM:
        return f"the factor is capped at {CAP_MAX_PPM} ppm"
    if BurnCurve(points).f_ppm(REFERENCE_PPM) != PPM:
        return "the factor at utilisation 0.80 must be 1: that is what a token is"
    return None
