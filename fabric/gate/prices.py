"""The tariffs in force, ready to be looked up thousands of times a second: derived, never part of a snapshot."""

from typing import Final

from msgspec.structs import replace

from fabric.charging.burn import BurnCurve
from fabric.charging.clockwork import Terms, compact
from fabric.charging.tariffs import HOURS_A_DAY, Tariffs

_HOUR_US: Final = 3_600_000_000
_KEPT: Final = 4096


class PriceList:
    """Weights as they were found before. Every type has a line without conditions, so none is ever without a price."""

    __slots__ = (
        "_dearest",
        "_found",
        "_operator",
        "_tariffs",
        "_terms",
        "_varies_by_hour",
        "_worst",
        "accelerators",
        "curve",
    )

    def __init__(self, tariffs: Tariffs, *, operator: str) -> None:
        self._tariffs = tariffs
        self._operator = operator
        self._varies_by_hour = any(weight.hours is not None for weight in tariffs.weights)
        self._found: dict[tuple[str, str, str, int], int] = {}
        self._terms: dict[tuple[tuple[tuple[str, int], ...], str, str], Terms] = {}
        self._worst: dict[tuple[tuple[str, ...], str, str], int] = {}
        self._dearest: dict[tuple[tuple[str, ...], str, str, int], tuple[str, int]] = {}
        self.accelerators: dict[str, None] = dict.fromkeys(tariffs.accelerators)
        self.curve: BurnCurve = tariffs.curve

    def weight_ppm(self, accelerator: str, *, service: str, tier: str, at_us: int) -> int:
        """What a device of this type weighs for such an account, now."""
        hour = at_us // _HOUR_US if self._varies_by_hour else 0
        key = (accelerator, service, tier, hour)
        weight = self._found.get(key)
        if weight is None:
            weight = self._tariffs.weight_ppm(
                accelerator, service=service, operator=self._operator, tier=tier, at_us=at_us
            )
            assert weight is not None, f"{accelerator} has no price"
            self._found[key] = weight
        return weight

    def dearest(self, types: tuple[str, ...], *, service: str, tier: str, at_us: int) -> tuple[str, int]:
        """Of these types (() = of all) the one that burns most, and its weight."""
        hour = at_us // _HOUR_US if self._varies_by_hour else 0
        key = (types, service, tier, hour)
        found = self._dearest.get(key)
        if found is None:
            if len(self._dearest) > _KEPT:
                self._dearest.clear()
                self._found.clear()
            weights = {
                name: self.weight_ppm(name, service=service, tier=tier, at_us=at_us)
                for name in types or self.accelerators
            }
            name = max(weights, key=weights.__getitem__)
            found = self._dearest[key] = (name, weights[name])
        return found

    def terms(
        self, kinds: tuple[tuple[str, int], ...], *, service: str, tier: str, since_us: int, alone: bool = False
    ) -> Terms:
        """What a device of a lease weighs by the clock: of several types, each with its devices, the mean of all, rounded down.

        Args:
            kinds: the types, and how many devices there are of each.
            service: of the lease.
            tier: its account's plan.
            since_us: when the terms begin.
            alone: the lease has no others, so of one weight it asks not since when it holds.
        """
        key = (kinds, service, tier)
        found = self._terms.get(key)
        if found is None:
            if len(self._terms) > _KEPT:
                self._terms.clear()
            total = sum(devices for _, devices in kinds)
            by_hour = [(self._by_hour(name, service=service, tier=tier), devices) for name, devices in kinds]
            means = tuple(sum(of[hour] * devices for of, devices in by_hour) // total for hour in range(HOURS_A_DAY))
            tariffs = self._tariffs
            found = self._terms[key] = Terms(
                since_us=0,
                tariff_version=tariffs.version,
                curve=tariffs.curve,
                weights=compact(means),
                utc_offset_minutes=tariffs.utc_offset_minutes,
            )
        return found if alone and len(found.weights) == 1 else replace(found, since_us=since_us)

    def worst_ppm(self, types: tuple[str, ...], *, service: str, tier: str) -> int:
        """What a device of the heaviest of these types (() = of all) weighs at its dearest hour."""
        key = (types, service, tier)
        found = self._worst.get(key)
        if found is None:
            if len(self._worst) > _KEPT:
                self._worst.clear()
            hours = (self._by_hour(name, service=service, tier=tier) for name in types or self.accelerators)
            found = self._worst[key] = max(max(of) for of in hours)
        return found

    def _by_hour(self, accelerator: str, *, service: str, tier: str) -> tuple[int, ...]:
        if not self._varies_by_hour:
            return (self.weight_ppm(accelerator, service=service, tier=tier, at_us=0),) * HOURS_A_DAY
        found = self._tariffs.weights_by_hour(accelerator, service=service, operator=self._operator, tier=tier)
        assert found is not None, f"{accelerator} has no price"
        return found


def unpriced(tariffs: Tariffs) -> tuple[str, ...]:
    """Types that have a weight under conditions only."""
    always = {
        weight.accelerator
        for weight in tariffs.weights
        if weight.service is None and weight.operator is None and weight.tier is None and weight.hours is None
    }
    return tuple(name for name in tariffs.accelerators if name not in always)
