"""How fast a job gets on with each type, and how long it runs: measured of its account's earlier jobs of the same name.

Looked up only for a job that says which type it prefers. What was never measured is taken to be as fast as it is dear.
"""

from itertools import islice
from typing import Final

import msgspec

from fabric.gate.core import Core
from fabric.gate.hazards import loss_every_us
from fabric.gate.lifecycle import JobState
from fabric.gate.state import Job
from fabric.placement.score import RUNS_US, Wish
from fabric.units import PPM

_LOOKED_AT: Final = 500
_RUNS_MAX: Final = 50
_WORK: Final = 10**12
Speeds = tuple[tuple[str, int], ...]


class Measured(msgspec.Struct, frozen=True):
    """One earlier run on devices of one type."""

    accelerator: str
    devices: int
    rate: int
    """Steps (or runs, where it told of none) that it did in 10¹² µs."""
    took_us: int
    steps: int


def wish_of(core: Core, job: Job, burns: Speeds) -> tuple[Speeds, Wish]:
    """How much a device of each type gets done for the job, in ppm, and what its type is chosen by."""
    runs = measured(core, job)
    speeds = _speeds(runs, dict(burns))
    return tuple(speeds.items()), Wish(
        prefer=job.spec.prefer,
        runs_us=_runs_us(job, runs, speeds),
        burns=burns,
        losses=tuple(
            (pool, loss_every_us(core.state.hazards, pool, outlasts_notice=not job.saves_us)) for pool in _pools(core)
        ),
    )


def measured(core: Core, job: Job) -> list[Measured]:
    """Of the newest earlier jobs of the name that succeeded, those that ran on one type; where there are, of as many devices."""
    newest = islice(reversed(core.jobs_of.get(job.account_id, [])), _LOOKED_AT)
    same = (each for each in newest if each.spec.name == job.spec.name and each.state is JobState.SUCCEEDED)
    runs = [run for each in islice(same, _RUNS_MAX) if (run := _run(each)) is not None]
    return [run for run in runs if run.devices == job.spec.devices] or runs


def _run(job: Job) -> Measured | None:
    types = {stay.accelerator for stay in job.ran}
    took_us = sum(
        stay.ended_at_us - stay.started_at_us
        for stay in job.ran
        if stay.started_at_us is not None and stay.ended_at_us is not None
    )
    if len(types) != 1 or took_us <= 0:
        return None
    rate = max(max(job.step, 1) * _WORK // took_us, 1)
    return Measured(types.pop(), job.ran[-1].devices, rate, took_us, job.step)


def _speeds(runs: list[Measured], burns: dict[str, int]) -> dict[str, int]:
    """Where something was measured, by that, on the scale of the first type that was; else by what a device burns."""
    has_steps = [run for run in runs if run.steps]
    rates: dict[str, list[int]] = {}
    for run in has_steps or runs:
        rates.setdefault(run.accelerator, []).append(run.rate)
    medians = {name: sorted(each)[len(each) // 2] for name, each in rates.items() if name in burns}
    base = max(medians, key=lambda name: (len(rates[name]), name), default=None)
    if base is None:
        return burns
    scale = burns[base]
    return {
        name: max(medians[name] * scale // medians[base], 1) if name in medians else ppm for name, ppm in burns.items()
    }


def _runs_us(job: Job, runs: list[Measured], speeds: dict[str, int]) -> int:
    """How long it computes on devices of speed 1."""
    took = sorted(run.took_us * speeds[run.accelerator] // PPM for run in runs if run.accelerator in speeds)
    if took:
        return max(took[len(took) // 2], 1)
    return job.spec.estimate_us or RUNS_US


def _pools(core: Core) -> list[str]:
    return sorted(core.state.hazards)
