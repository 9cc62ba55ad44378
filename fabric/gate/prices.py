"""The tariffs in force, ready to be looked up thousands of times a second: derived, never part of a snapshot."""

from typing import Final

from fabric.charging.burn import BurnCurve
from fabric.charging.tariffs import Tariffs

_HOUR_US: Final = 3_600_000_000


class PriceList:
    """Weights as they were found before. Every type has a line without conditions, so none is ever without a price."""

    __slots__ = ("_found", "_operator", "_tariffs", "_varies_by_hour", "accelerators", "curve")

    def __init__(self, tariffs: Tariffs, *, operator: str) -> None:
        self._tariffs = tariffs
        self._operator = operator
        self._varies_by_hour = any(weight.hours is not None for weight in tariffs.weights)
        self._found: dict[tuple[str, str, str, int], int] = {}
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
            if self._varies_by_hour:
                self._found.clear()
            self._found[key] = weight
        return weight


def unpriced(tariffs: Tariffs) -> tuple[str, ...]:
    """Types that have a weight under conditions only."""
    always = {
        weight.accelerator
        for weight in tariffs.weights
        if weight.service is None and weight.operator is None and weight.tier is None and weight.hours is None
    }
    return tuple(name for name in tariffs.accelerators if name not in always)
