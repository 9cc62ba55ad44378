"""Tariffs: what a device of each type weighs in H100-equivalents, and how it burns.

A weight may hold for one class of service, operator, tier or part of the day only; of those that match the most specific
one counts. Tariffs are immutable and versioned; what a lease weighs as time goes on is in `clockwork`.
"""

from typing import Final

import msgspec

from fabric.charging.basis import Basis
from fabric.charging.burn import BurnCurve
from fabric.charging.rates import Rate
from fabric.units import MICROS_PER_S

HOURS_A_DAY: Final = 24
US_PER_MINUTE: Final = 60 * MICROS_PER_S
US_PER_HOUR: Final = 60 * US_PER_MINUTE


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a tariff. None = whatever it is."""

    accelerator: str
    ppm: int
    service: str | None = None
    operator: str | None = None
    tier: str | None = None
    hours: tuple[int, int] | None = None
    """From (included) to (excluded), in hours of the tariff's own day; (22, 6) goes over midnight."""
    basis: Basis | None = None
    """What it is reckoned from; None = it doesn't say, as in all tariffs of before."""

    @property
    def restrictions(self) -> tuple[bool, bool, bool, bool]:
        """Which of operator, tier, service and hours it says, in the order of their rank."""
        return self.operator is not None, self.tier is not None, self.service is not None, self.hours is not None

    def matches(self, accelerator: str, *, service: str, operator: str | None, tier: str | None, hour: int) -> bool:
        return (
            self.accelerator == accelerator
            and self.service in (None, service)
            and self.operator in (None, operator)
            and self.tier in (None, tier)
            and (self.hours is None or within(self.hours, hour))
        )


class Tariffs(msgspec.Struct, frozen=True, kw_only=True):
    """Every weight, and the burn curve."""

    version: int
    effective_from_us: int = 0
    """From when on they hold; 0 = from when they are said."""
    name: str = ""
    notes: str = ""
    utc_offset_minutes: int = 0
    """Of the clock by which `hours` are meant."""
    weights: tuple[Weight, ...]
    curve: BurnCurve = BurnCurve()
    rates: tuple[Rate, ...] = ()
    """Of language models that are offered without rates of their own."""

    def weight_ppm(
        self,
        accelerator: str,
        *,
        service: str,
        operator: str | None = None,
        tier: str | None = None,
        at_us: int = 0,
    ) -> int | None:
        """The weight in parts per million of an H100, None for an accelerator that has no price here.

        The line with the most restrictions counts; among equals operator goes before tier before service before hours.
        """
        hour = (at_us + self.utc_offset_minutes * US_PER_MINUTE) // US_PER_HOUR % HOURS_A_DAY
        best: Weight | None = None
        for weight in self.weights:
            if not weight.matches(accelerator, service=service, operator=operator, tier=tier, hour=hour):
                continue
            if best is None or _rank(weight) > _rank(best):
                best = weight
        return None if best is None else best.ppm

    def weights_by_hour(
        self, accelerator: str, *, service: str, operator: str | None = None, tier: str | None = None
    ) -> tuple[int, ...] | None:
        """The weight in each hour of the tariff's day, None for an accelerator that has no price here."""
        shift_us = self.utc_offset_minutes * US_PER_MINUTE
        found = [
            self.weight_ppm(
                accelerator, service=service, operator=operator, tier=tier, at_us=hour * US_PER_HOUR - shift_us
            )
            for hour in range(HOURS_A_DAY)
        ]
        return tuple(ppm for ppm in found if ppm is not None) if None not in found else None

    @property
    def accelerators(self) -> tuple[str, ...]:
        """Every type that has a price, in the order of the file."""
        return tuple(dict.fromkeys(weight.accelerator for weight in self.weights))


def within(hours: tuple[int, int], hour: int) -> bool:
    """Whether an hour of the day lies in a range that may go over midnight."""
    start, end = hours
    return start <= hour < end if start < end else hour >= start or hour < end


def _rank(weight: Weight) -> tuple[int, tuple[bool, bool, bool, bool]]:
    return sum(weight.restrictions), weight.restrictions
