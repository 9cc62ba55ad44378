"""A report as one HTML file: the tables, and plots drawn as SVG. It needs nothing else, and nothing from elsewhere."""

import math
from collections.abc import Iterator
from html import escape
from typing import Final

from fabric.simulation import report
from fabric.simulation.experiment import Outcome, spread
from fabric.simulation.measures import Measures

WIDTH: Final = 720
ROW: Final = 18
LEFT: Final = 130
RIGHT: Final = 70
COLOURS: Final = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#222;background:#fff}"
    "table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}"
    "td,th{padding:.2em .7em;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child,td.name,th.name{text-align:left}.plots{display:flex;flex-wrap:wrap;gap:1em}"
)


def page(outcome: Outcome, *, name: str) -> str:
    """The whole file."""
    return "\n".join(_lines(outcome, name))


def _lines(outcome: Outcome, name: str) -> Iterator[str]:
    title = f"{name}: {outcome.jobs:,} jobs on {outcome.devices:,} devices"
    yield "<!doctype html>"
    yield f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head><body>'
    yield f"<h1>{escape(title)}</h1>"
    seeds = max(run.seed for run in outcome.runs)
    spread_of = f", {seeds} seeds with 95 % intervals" if seeds > 1 else ""
    yield f"<p>Load {outcome.load:.3f}{spread_of}. Waits are in hours, of all times in the queue together.</p>"
    yield '<div class="plots">'
    for label, value in PLOTS:
        yield from bars(outcome, label, value)
    yield "</div>"
    yield from table("All jobs", *report.totals(outcome))
    yield from table("Tokens, money and energy", *report.money(outcome))
    for label, kind in report.KINDS:
        yield from table(f"Wait by tier and size, {label}", *report.waits(outcome, kind))
    yield from table("Part of the jobs that started by the p90 that they were told", *report.ranges(outcome))
    yield "</body></html>"


PLOTS: Final[tuple[tuple[str, report.Value], ...]] = (
    ("Enterprise: wait, 99th percentile (h)", report.wait_of("enterprise", "all", "p99_h")),
    ("Professional: wait, 99th percentile (h)", report.wait_of("professional", "all", "p99_h")),
    ("Starter: wait, mean (h)", report.wait_of("starter", "all", "mean_h")),
    ("Reserved: wait, maximum (h)", report.wait_of("reserved", "all", "max_h")),
    ("Gangs of 8: wait, mean (h)", report.wait_of("all", "8", "mean_h")),
    ("Gangs of 16 and more: wait, maximum (h)", report.wait_of("all", "16+", "max_h")),
    ("Wait weighted by device-hours (h)", lambda run: run.weighted_wait_h),
    ("Lost device-hours", lambda run: run.lost_device_h),
    ("Evictions per 1,000 device-hours", lambda run: run.evictions_per_1000),
    ("Utilisation to the last arrival", lambda run: run.utilisation),
)


def table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """One table; columns in which nothing stands are left out."""
    kept = [at for at in range(len(head)) if any(row[at] not in ("", report.NOTHING) for row in rows)]
    if len(kept) <= 1:
        return
    yield f"<h2>{escape(title)}</h2><table><thead><tr>"
    yield "".join(f"<th>{escape(head[at])}</th>" for at in kept)
    yield "</tr></thead><tbody>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{escape(row[at])}</td>" for at in kept) + "</tr>"
    yield "</tbody></table>"


def bars(outcome: Outcome, title: str, value: report.Value) -> Iterator[str]:
    """A bar for each policy with its interval; nothing where none of them has such jobs."""
    found = [(policy, _spread(outcome.of(policy), value)) for policy in outcome.policies]
    known = [(policy, each) for policy, each in found if each is not None]
    most = max((mean + half for _, (mean, half) in known), default=0.0)
    if not most:
        return
    height = ROW * len(known) + 30
    scale = (WIDTH - LEFT - RIGHT) / _round_up(most)
    yield (
        f'<svg role="img" aria-label="{escape(title)}" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="system-ui,sans-serif" font-size="12">'
    )
    yield f'<text x="0" y="15" font-weight="bold">{escape(title)}</text>'
    for at, (policy, (mean, half)) in enumerate(known):
        y = 24 + ROW * at
        colour = COLOURS[outcome.policies.index(policy) % len(COLOURS)]
        yield f'<text x="{LEFT - 6}" y="{y + 12}" text-anchor="end">{escape(policy)}</text>'
        yield f'<rect x="{LEFT}" y="{y}" width="{max(mean * scale, 0.5):.1f}" height="{ROW - 4}" fill="{colour}"/>'
        if half:
            low, high = LEFT + max(mean - half, 0) * scale, LEFT + (mean + half) * scale
            yield f'<path d="M{low:.1f} {y + 7}H{high:.1f}" stroke="#222" stroke-width="1.5"/>'
        x = LEFT + (mean + half) * scale + 4
        yield f'<text x="{x:.1f}" y="{y + 12}">{report.number(mean)}</text>'
    yield "</svg>"


def _spread(runs: list[Measures], value: report.Value) -> tuple[float, float] | None:
    values = [found for run in runs if (found := value(run)) is not None]
    return spread(values) if values else None


def _round_up(value: float) -> float:
    """The next number with one digit and a half."""
    size = math.pow(10, math.floor(math.log10(value)))
    return math.ceil(value / size * 2) / 2 * size
