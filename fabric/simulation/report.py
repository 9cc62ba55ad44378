"""A simulation's outcome as tables and as JSON."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from fabric.simulation.experiment import Outcome, spread
from fabric.simulation.measures import ALL, Measures
from fabric.simulation.workload import SIZES, TIERS

Value = Callable[[Measures], float | None]
NOTHING: Final = "-"


def wait_of(tier: str, size: str, what: str) -> Value:
    """A wait of one class of jobs: mean_h, p50_h, p99_h or max_h."""

    def value(run: Measures) -> float | None:
        waits = run.waits.get(tier, {}).get(size)
        return None if waits is None else float(getattr(waits, what))

    return value


TOTALS: Final[tuple[tuple[str, Value], ...]] = (
    ("mean wait", wait_of(ALL, ALL, "mean_h")),
    ("mean JCT", lambda run: run.jct.mean_h),
    ("wait × device-h", lambda run: run.weighted_wait_h),
    ("evictions", lambda run: float(run.evictions)),
    ("/1000 device-h", lambda run: run.evictions_per_1000),
    ("lost device-h", lambda run: run.lost_device_h),
    ("restores", lambda run: float(run.restores)),
    ("useful device-h", lambda run: run.useful_device_h),
    ("utilisation", lambda run: run.utilisation),
    ("worst ρ", lambda run: run.worst_rho),
    ("unfair", lambda run: run.unfair),
    ("not ended", lambda run: float(run.jobs - run.refused - run.ended)),
    ("refused", lambda run: float(run.refused)),
    ("seconds", lambda run: run.seconds),
)
"""A column each: a policy's sums over all its jobs."""
MONEY: Final[tuple[tuple[str, Value], ...]] = (
    ("burned CT", lambda run: run.money.burned_ct or None),
    ("revenue CNY", lambda run: run.money.revenue_cny or None),
    ("breakage CNY", lambda run: run.money.breakage_cny or None),
    ("kWh", lambda run: run.money.kwh or None),
)
CLASSES: Final = (ALL, "reserved", *TIERS)
COLUMNS: Final = (ALL, *(name for _, name in SIZES))
KINDS: Final = (("mean", "mean_h"), ("p50", "p50_h"), ("p99", "p99_h"), ("max", "max_h"))


def totals(outcome: Outcome) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows: a policy a row. Waits are in hours."""
    rows = [
        (policy, *(cell([value(run) for run in outcome.of(policy)]) for _, value in TOTALS))
        for policy in outcome.policies
    ]
    return ("policy", *(name for name, _ in TOTALS)), rows


def money(outcome: Outcome) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows: what a policy comes to in tokens, money and energy."""
    rows = [
        (policy, *(cell([value(run) for run in outcome.of(policy)]) for _, value in MONEY))
        for policy in outcome.policies
    ]
    return ("policy", *(name for name, _ in MONEY)), rows


def waits(outcome: Outcome, kind: str = "mean_h") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of one kind of wait (mean, p50, p99 or maximum, in hours): a policy and tier a row, a size a column."""
    sizes = [size for size in COLUMNS if any(size in row for run in outcome.runs for row in run.waits.values())]
    rows = []
    for tier in CLASSES:
        for policy in outcome.policies:
            runs = outcome.of(policy)
            if any(tier in run.waits for run in runs):
                cells = (cell([wait_of(tier, size, kind)(run) for run in runs]) for size in sizes)
                rows.append((tier, policy, *cells))
    return ("tier", "policy", *sizes), rows


def ranges(outcome: Outcome) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows: which part of the jobs started by the p90 that they were told; a policy and tier a row, a size a column."""
    found = [(policy, outcome.of(policy)) for policy in outcome.policies]
    sizes = [size for size in COLUMNS if any(size in row for run in outcome.runs for row in run.ranges.values())]
    rows = [
        (tier, policy, *(cell([started_in_time(tier, size)(run) for run in runs]) for size in sizes))
        for tier in CLASSES
        for policy, runs in found
        if any(tier in run.ranges for run in runs)
    ]
    return ("tier", "policy", *sizes), rows


def started_in_time(tier: str, size: str) -> Value:
    """Which part of the jobs of a class that waited started by the p90 that they were told."""

    def value(run: Measures) -> float | None:
        found = run.ranges.get(tier, {}).get(size)
        return None if found is None else found.by_p90

    return value


def cell(values: list[float | None]) -> str:
    """Mean of the seeds, and half of its interval where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    mean, half = spread(known)
    return number(mean) if half == 0 else f"{number(mean)} ±{number(half)}"


def number(value: float) -> str:
    """Three digits that count."""
    size = abs(value)
    if size >= 1000:  # noqa: PLR2004
        return f"{value:,.0f}"
    for least, digits in ((100, 0), (10, 1), (1, 2)):
        if size >= least:
            return f"{value:.{digits}f}"
    return f"{value:.3f}" if value else "0"


def text(outcome: Outcome) -> Iterator[str]:
    """All tables, in Markdown."""
    yield f"{outcome.jobs:,} jobs on {outcome.devices:,} devices, load {outcome.load:.3f}; waits in hours"
    yield ""
    yield from markdown(*totals(outcome))
    yield ""
    yield from markdown(*money(outcome))
    for name, kind in KINDS:
        yield ""
        yield f"Wait, {name}:"
        yield ""
        yield from markdown(*waits(outcome, kind))


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """One table."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    yield "| " + " | ".join(word.ljust(width) for word, width in zip(head, widths, strict=True)) + " |"
    yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    for row in rows:
        yield "| " + " | ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) + " |"


def as_json(outcome: Outcome) -> dict[str, Any]:
    """All that was measured, run by run."""
    found: dict[str, Any] = msgspec.to_builtins(outcome)
    return found
