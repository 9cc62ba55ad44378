"""Rating: from device-time in use to tokens, exactly.

A `Meter` keeps device-time and busy time apart for each band of the burn curve. Within a band the charge is linear in
both, so it is the same however time was cut into windows, and only the running total is ever rounded: what is charged
next is the new total minus the old one. The sums are whole µs, small enough for a snapshot and for a charging record,
from which anybody can reckon the charge again.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec

from fabric.charging.burn import REFERENCE_PPM, BurnCurve
from fabric.charging.rounding import half_even, up
from fabric.units import MICROS_PER_S, PPM, Fraction

_PPM_SQUARED: Final = PPM * PPM
_WHOLE: Final = (1, 1)


class Band(msgspec.Struct, array_like=True, gc=False):
    """What was metered at utilisations of one linear piece of the burn curve."""

    device_us: int = 0
    """Devices x time."""
    busy_us: int = 0
    """Device-time in use."""


class Meter(msgspec.Struct, kw_only=True, gc=False):
    """One metering stream: one weight, one curve, any number of devices."""

    weight_ppm: int
    curve: BurnCurve
    bands: list[Band] = []
    estimated_device_us: int = 0
    """Device-time of which nothing is known: rated as f = 1."""
    rated_uhs: int = 0
    """Everything that `add` and `estimate` returned, together."""
    fraction: Fraction | None = None
    """Its device is such a part of one, and so is its charge; None = whole devices."""

    def add(self, *, devices: int, window_us: int, busy_us: int) -> int:
        """What one more window adds to the charge, in µHs. More busy time than there is counts as all of it."""
        device_us = devices * max(window_us, 0)
        if device_us <= 0:
            return 0
        busy_us = min(max(busy_us, 0), device_us)
        at = self.curve.band_of(busy_us=busy_us, device_us=device_us)
        while len(self.bands) <= at:
            self.bands.append(Band())
        self.bands[at].device_us += device_us
        self.bands[at].busy_us += busy_us
        return self._rate()

    def estimate(self, *, devices: int, window_us: int) -> int:
        """What a window adds of which nothing is known: it counts as f = 1."""
        self.estimated_device_us += devices * max(window_us, 0)
        return self._rate()

    def _rate(self) -> int:
        before = self.rated_uhs
        self.rated_uhs = total_uhs(
            self.bands,
            estimated_device_us=self.estimated_device_us,
            weight_ppm=self.weight_ppm,
            curve=self.curve,
            fraction=self.fraction,
        )
        return self.rated_uhs - before


def total_uhs(
    bands: Sequence[Band],
    *,
    estimated_device_us: int,
    weight_ppm: int,
    curve: BurnCurve,
    fraction: Fraction | None = None,
) -> int:
    """The charge of everything metered, rounded once, half-even: a part of a device is charged as exactly that part."""
    unit = curve.unit
    scaled = estimated_device_us * unit
    for at, band in enumerate(bands):
        if band.device_us or band.busy_us:
            scaled += curve.scaled(at, busy_us=band.busy_us, device_us=band.device_us)
    over, under = fraction or _WHOLE
    return half_even(weight_ppm * scaled * over, PPM * unit * under)


def hold_for(
    *, devices: int, duration_us: int, weight_ppm: int, curve: BurnCurve, fraction: Fraction | None = None
) -> int:
    """The most that so many devices can burn in so long, rounded up: no metering of it ever comes to more."""
    worst = devices * max(duration_us, 0) * weight_ppm * curve.max_ppm
    return up(worst, _PPM_SQUARED) if fraction is None else up(worst * fraction[0], _PPM_SQUARED * fraction[1])


@lru_cache(maxsize=4096)
def worst_per_s(devices: int, weight_ppm: int, max_ppm: int, fraction: Fraction | None = None) -> int:
    """The most that so many devices burn in a second, rounded up, and at least 1: asked of every sample."""
    over, under = fraction or _WHOLE
    return max(up(devices * MICROS_PER_S * weight_ppm * max_ppm * over, _PPM_SQUARED * under), 1)


def burn_per_s(
    *,
    devices: int,
    weight_ppm: int,
    curve: BurnCurve,
    utilisation_ppm: int = REFERENCE_PPM,
    fraction: Fraction | None = None,
) -> int:
    """µHs a second at a steady utilisation: for people."""
    over, under = fraction or _WHOLE
    busy = min(max(utilisation_ppm, 0), PPM)
    scaled = curve.scaled(curve.band_of(busy_us=busy, device_us=PPM), busy_us=busy, device_us=PPM)
    return half_even(devices * weight_ppm * scaled * MICROS_PER_S * over, PPM * PPM * curve.unit * under)
