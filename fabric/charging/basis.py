"""What a weight is reckoned from, and whether it is right: a figure of the device over the same figure of an H100.

Only figures of one kind may be divided by each other: dense by dense, never dense by sparse. So a basis names its unit, and the
H100 is looked up in that unit; a weight in a unit of its own (a measured speed) says the H100's figure itself.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from fabric.charging.rounding import half_even
from fabric.units import PPM

REFERENCE: Final = "H100"
COARSEST_PPM: Final = 10_000
"""A weight is written with at least two decimals: what is left out is less than half of a hundredth."""


class Figure(StrEnum):
    """Where a figure is from."""

    NOMINAL = "nominal"
    """From the maker's, or a provider's, specification."""
    MEASURED = "measured"


class Basis(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a weight is reckoned from. Figures are counted in 10⁻⁶ of the unit."""

    unit: str
    """What is compared: fp16_dense_tflops, or a word of the operator's own."""
    figure: Figure
    value: int
    """The device's."""
    h100: int | None = None
    """The H100's in this unit; None = as the H100's own weight says."""
    source: str
    """Who says so: what anybody can look up."""


class Weighed(Protocol):
    """A weight, as far as it is checked."""

    @property
    def accelerator(self) -> str: ...
    @property
    def ppm(self) -> int: ...
    @property
    def basis(self) -> Basis | None: ...


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What came of checking one weight."""

    accelerator: str
    ppm: int
    holds: bool | None
    """None = it names no basis, so there is nothing to check."""
    says: str
    """In a line, for people."""


def findings(weights: Sequence[Weighed]) -> tuple[Finding, ...]:
    """What came of checking each, in their order."""
    references = {
        weight.basis.unit: weight.basis.h100 or weight.basis.value
        for weight in reversed(weights)
        if weight.accelerator == REFERENCE and weight.basis is not None
    }
    return tuple(_finding(weight, references) for weight in weights)


def is_rounded(ppm: int, *, value: int, reference: int) -> bool:
    """Whether a weight is value / reference, rounded half-even to two to six decimals."""
    step = COARSEST_PPM
    while step:
        if half_even(value * PPM, reference * step) * step == ppm:
            return True
        step //= 10
    return False


def decimal(millionths: int) -> str:
    """A figure as people write it: 312 000 000 is "312"."""
    whole, rest = divmod(millionths, PPM)
    return f"{whole}.{rest:06d}".rstrip("0").rstrip(".")


def _finding(weight: Weighed, references: dict[str, int]) -> Finding:
    basis = weight.basis
    if basis is None:
        return _found(weight, "names no basis, so nobody can reckon it again", holds=None)
    reference = basis.h100 or references.get(basis.unit)
    if reference is None:
        in_units = ", ".join(sorted(references)) or "no unit"
        return _found(
            weight, f"is in {basis.unit}, and the {REFERENCE} in {in_units}: no basis that both have", holds=False
        )
    sum_ = f"{decimal(basis.value)} / {decimal(reference)} {basis.unit}, {basis.figure} ({basis.source})"
    if is_rounded(weight.ppm, value=basis.value, reference=reference):
        return _found(weight, f"= {sum_}", holds=True)
    due_ppm = half_even(basis.value * PPM, reference)
    return _found(weight, f"is not {sum_}, which makes {decimal(due_ppm)}", holds=False)


def _found(weight: Weighed, says: str, *, holds: bool | None) -> Finding:
    return Finding(accelerator=weight.accelerator, ppm=weight.ppm, holds=holds, says=says)
