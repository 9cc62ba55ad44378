"""Tariffs: what a device of each type weighs against an H100, and how it burns.

A weight is in ppm of an H100. The most specific weight wins: one for this service, operator, tier or hour before one
for all. A tariff is a version; what was rated with one version is never rated again with another.
"""

from typing import Final

import msgspec

from fabric.charging.burn import BurnCurve

_HOUR_US: Final = 3_600_000_000
_ALIASES: Final = {
    "nvidiah100": "H100",
    "h100": "H100",
    "nvidiaa100": "A100",
    "a100": "A100",
    "910b": "910B",
    "ascend910b": "910B",
    "npu": "910B",
}


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a tariff."""

    accelerator: str
    ppm: int
    service: str | None = None
    operator: str | None = None
    tier: str | None = None
    hours: tuple[int, int] | None = None
    """From this hour of the UTC day to before that one; 22 to 6 goes over midnight."""


class Tariffs(msgspec.Struct, frozen=True, kw_only=True):
    """A version of all weights, with the burn curve."""

    version: int
    weights: tuple[Weight, ...]
    curve: BurnCurve = BurnCurve()
    note: str = ""

    @property
    def accelerators(self) -> tuple[str, ...]:
        """Every type that has a weight, in the order of the tariff."""
        return tuple(dict.fromkeys(weight.accelerator for weight in self.weights))

    def weight_ppm(
        self, accelerator: str, *, service: str, operator: str = "", tier: str | None = None, at_us: int
    ) -> int | None:
        """The weight in force for this use at this time; None for an unknown type."""
        best: Weight | None = None
        best_score = -1
        for weight in self.weights:
            if weight.accelerator != accelerator:
                continue
            score = _score(weight, service=service, operator=operator, tier=tier, at_us=at_us)
            if score > best_score:
                best, best_score = weight, score
        return None if best is None else best.ppm


def canonical_accelerator(name: str) -> str:
    """The name the tariff has for a type that people write in many ways: "ascend-910b" is 910B."""
    plain = "".join(char for char in name.lower() if char.isalnum())
    return _ALIASES.get(plain, name)


def _score(weight: Weight, *, service: str, operator: str, tier: str | None, at_us: int) -> int:
    """How specific a weight is for this use; -1 where it doesn't apply."""
    score = 0
    for wanted, given in ((weight.service, service), (weight.operator, operator), (weight.tier, tier)):
        if wanted is not None:
            if wanted != given:
                return -1
            score += 2
    if weight.hours is not None:
        if not _within(weight.hours, at_us // _HOUR_US % 24):
            return -1
        score += 1
    return score


def _within(hours: tuple[int, int], hour: int) -> bool:
    start, end = hours
    return start <= hour < end if start < end else hour >= start or hour < end
