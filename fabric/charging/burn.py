"""The burn curve: how fast tokens burn at which utilisation.

`burn = devices x weight x f(utilisation)`. f is piecewise linear through given points, all in parts per million, never
falls, and is 1 at 80 %, the utilisation at which a token is defined. It starts above 0, because an idle device is still
occupied, and ends in its cap. Between two points f is linear, so the charge of any number of windows that lie between
the same two points depends only on their sums: that is what makes a charge independent of how time is cut.
"""

import math
from functools import cached_property
from itertools import pairwise
from typing import Final

import msgspec

from fabric.charging.rounding import half_even
from fabric.units import PPM

REFERENCE_PPM: Final = 800_000
"""The utilisation at which one device of weight 1 burns one token an hour."""
CAP_PPM: Final = 1_250_000
"""The most that any contract may let a device burn: a quarter above the reference."""
DEFAULT_POINTS: Final = ((0, 250_000), (REFERENCE_PPM, PPM), (PPM, PPM))


class Flaw(msgspec.Struct, frozen=True):
    """What is wrong with a list of points: where, what was found, what is allowed."""

    at: int | None
    """Index of the point, None where it is the list as a whole."""
    found: str
    allowed: str


class BurnCurve(msgspec.Struct, frozen=True, dict=True):
    """f as points (utilisation_ppm, f_ppm), from 0 to 100 % utilisation.

    Raises:
        ValueError: the points have a flaw; `flaws_of` says all of them.
    """

    points: tuple[tuple[int, int], ...] = DEFAULT_POINTS

    def __post_init__(self) -> None:
        for flaw in flaws_of(self.points):
            where = "points" if flaw.at is None else f"points[{flaw.at}]"
            raise ValueError(f"{where}: found {flaw.found}; allowed: {flaw.allowed}")

    def f_ppm(self, utilisation_ppm: int) -> int:
        """Evaluate f to the nearest ppm: for people. Charges are reckoned without this rounding."""
        utilisation_ppm = min(max(utilisation_ppm, 0), PPM)
        band = self.band_of(busy_us=utilisation_ppm, device_us=PPM)
        return half_even(self.scaled(band, busy_us=utilisation_ppm, device_us=PPM), self.unit)

    @property
    def floor_ppm(self) -> int:
        """What an idle device burns."""
        return self.points[0][1]

    @cached_property
    def max_ppm(self) -> int:
        """What a device burns at most: the rate that holds are reckoned with."""
        return self.points[-1][1]

    @property
    def bands(self) -> int:
        """How many linear pieces there are."""
        return len(self.points) - 1

    @cached_property
    def unit(self) -> int:
        """The least common denominator of device x f, whatever the utilisation."""
        return self._lines[0]

    @cached_property
    def _lines(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """The unit, and of each band how many of it a µs of a device adds, and a µs of its use."""
        widths = math.lcm(*(right - left for (left, _), (right, _) in pairwise(self.points)))
        lines: list[tuple[int, int]] = []
        for (left, low), (right, high) in pairwise(self.points):
            times = widths // (right - left)
            lines.append(((low * (right - left) - (high - low) * left) * times, (high - low) * times * PPM))
        common = math.gcd(widths * PPM, *(factor for line in lines for factor in line))
        return widths * PPM // common, tuple((device // common, busy // common) for device, busy in lines)

    def band_of(self, *, busy_us: int, device_us: int) -> int:
        """The linear piece that busy / device lies in; on a border the lower one (both give the same f there)."""
        points, busy = self.points, busy_us * PPM
        last = len(points) - 2
        at = 0
        while at < last and points[at + 1][0] * device_us < busy:
            at += 1
        return at

    def scaled(self, band: int, *, busy_us: int, device_us: int) -> int:
        """Exactly device x f(busy / device) x `unit`, for windows of one band taken together."""
        per_device, per_busy = self._lines[1][band]
        return per_device * device_us + per_busy * busy_us


def flaws_of(points: tuple[tuple[int, int], ...]) -> tuple[Flaw, ...]:
    """Everything that keeps these points from being a burn curve; () if nothing does."""
    if len(points) < 2:  # noqa: PLR2004 - a line has two ends
        return (Flaw(None, f"{len(points)} points", "at least two, from utilisation 0 to 1"),)
    flaws: list[Flaw] = []
    last = len(points) - 1
    if points[0][0] != 0:
        flaws.append(Flaw(0, f"utilisation {ratio(points[0][0])}", "the first point at utilisation 0"))
    if points[0][1] <= 0:
        flaws.append(Flaw(0, f"f {ratio(points[0][1])}", "f of more than 0: an idle device is still occupied"))
    for at in range(1, len(points)):
        flaws.extend(_flaws_of_step(at, points[at - 1], points[at]))
    if points[last][0] != PPM:
        flaws.append(Flaw(last, f"utilisation {ratio(points[last][0])}", "the last point at utilisation 1"))
    if points[last][1] > CAP_PPM:
        flaws.append(Flaw(last, f"f {ratio(points[last][1])}", f"f of at most {ratio(CAP_PPM)}"))
    return tuple(flaws) or _flaws_of_reference(points)


def ratio(ppm: int) -> str:
    """Parts per million as people write ratios: 250 000 is "0.25"."""
    whole, rest = divmod(abs(ppm), PPM)
    text = f"{whole}.{rest:06d}".rstrip("0").rstrip(".")
    return f"-{text}" if ppm < 0 else text


def _flaws_of_step(at: int, before: tuple[int, int], point: tuple[int, int]) -> list[Flaw]:
    flaws: list[Flaw] = []
    if point[0] <= before[0]:
        found = f"utilisation {ratio(point[0])} after {ratio(before[0])}"
        flaws.append(Flaw(at, found, "utilisations that rise from point to point"))
    if point[1] < before[1]:
        found = f"f {ratio(point[1])} after {ratio(before[1])}"
        flaws.append(Flaw(at, found, "f that never falls: a busier device never burns less"))
    return flaws


def _flaws_of_reference(points: tuple[tuple[int, int], ...]) -> tuple[Flaw, ...]:
    """f(0.8) must be 1, compared without division, so that a near miss is a miss."""
    left, low, right, high = next(
        (left, low, right, high) for (left, low), (right, high) in pairwise(points) if right >= REFERENCE_PPM
    )
    width = right - left
    scaled = low * width + (high - low) * (REFERENCE_PPM - left)
    if scaled == PPM * width:
        return ()
    near = half_even(scaled, width)
    found = "f(0.8) just beside 1" if near == PPM else f"f(0.8) = {ratio(near)}"
    return (Flaw(None, found, "f(0.8) = 1: that is what a token is"),)
