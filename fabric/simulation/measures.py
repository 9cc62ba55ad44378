"""What is measured of a simulation that was run: one definition each, in hours.

A wait is all the time that a job is in the queue: before its first start, and after each time it was sent away.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import msgspec

from fabric.placement import forecast
from fabric.placement.forecast import Fact
from fabric.placement.jobs import class_of as rank_of_class
from fabric.simulation.money import Money
from fabric.simulation.workload import HOUR_US, SIZES, TIERS, Cluster, size_class
from fabric.simulation.world import Task

ALL: Final = "all"


class Named(Protocol):
    """Whoever decided."""

    name: str


class Played(Protocol):
    """What can be measured: a world that was played, or what happened to a fabric."""

    tasks: list[Task]
    began_us: int
    now_us: int
    last_arrival_us: int
    busy_at_last_arrival_us: int
    events: int

    @property
    def policy(self) -> Named: ...
    @property
    def cluster(self) -> Cluster: ...


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one class of jobs, in hours."""

    jobs: int
    mean_h: float
    p50_h: float
    p99_h: float
    max_h: float


class Covered(msgspec.Struct, frozen=True, kw_only=True):
    """Of jobs that waited for more than a minute, and could be told when they were likely to start: how true that was."""

    jobs: int
    by_p50: float
    """The part that had started by then."""
    by_p90: float
    p90_h: float
    """What they were told, on average,"""
    took_h: float
    """and what it took from then on."""


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """All that is measured of one run."""

    policy: str
    seed: int
    jobs: int
    ended: int
    refused: int
    never_started: int
    jct: Waits
    """From its submission to its end, of those that have ended."""
    waits: dict[str, dict[str, Waits]]
    """By tier, then by size; "all" of each."""
    first_start: Waits
    """From its submission to its first start."""
    ranges: dict[str, dict[str, Covered]]
    """How true the ranges are in which jobs are likely to start, as `fabric why` tells them, by tier, then by size; "all" of each."""
    weighted_wait_h: float
    """Mean wait, each job counted by the device-hours that it computes."""
    evictions: int
    evictions_per_1000: float
    """For each 1,000 device-hours of what can be evicted."""
    failures: int
    lost_device_h: float
    """What had been computed when it was sent away, and nobody saved."""
    restores: int
    restored_device_h: float
    useful_device_h: float
    worst_rho: float
    """Finish-time fairness: how much longer the worst off took than with its part of the cluster for itself."""
    unfair: float
    """The part of the jobs that took longer than that."""
    utilisation: float
    """Devices in use, of all there are, from the first arrival to the last."""
    makespan_h: float
    money: Money = Money()
    seconds: float = 0.0
    """How long the simulation itself took."""
    events: int = 0


def measure(world: Played, *, seed: int, seconds: float = 0.0, money: Money | None = None) -> Measures:
    """Measure a world that has been played."""
    tasks = [task for task in world.tasks if not task.refused]
    ended = [task for task in tasks if task.ended_us is not None]
    open_tasks = [task for task in tasks if not task.work.is_reserved]
    useful = sum((task.work.duration_us - task.left_us) * task.work.devices for task in tasks)
    movable = sum((task.work.duration_us - task.left_us) * task.work.devices for task in open_tasks)
    rhos = rhos_of(ended, devices=world.cluster.devices)
    span_us = max(world.last_arrival_us - world.began_us, 1)
    evictions = sum(task.evictions for task in tasks)
    return Measures(
        policy=world.policy.name,
        seed=seed,
        jobs=len(world.tasks),
        ended=len(ended),
        refused=len(world.tasks) - len(tasks),
        never_started=sum(task.first_us is None for task in tasks),
        jct=waits_of([(task.ended_us or 0) - task.work.submit_us for task in ended]),
        waits=_by_class(tasks),
        first_start=waits_of([task.first_us - task.work.submit_us for task in tasks if task.first_us is not None]),
        ranges=ranges_of(tasks, until_us=world.now_us),
        weighted_wait_h=_weighted(tasks),
        evictions=evictions,
        evictions_per_1000=evictions * 1000 / max(movable / HOUR_US, 1e-9),
        failures=sum(task.failures for task in tasks),
        lost_device_h=sum(task.lost_us for task in tasks) / HOUR_US,
        restores=sum(task.restores for task in tasks),
        restored_device_h=sum(task.restored_us for task in tasks) / HOUR_US,
        useful_device_h=useful / HOUR_US,
        worst_rho=max(rhos, default=0.0),
        unfair=sum(rho > 1 for rho in rhos) / max(len(rhos), 1),
        utilisation=world.busy_at_last_arrival_us / (span_us * world.cluster.devices),
        makespan_h=(world.now_us - world.began_us) / HOUR_US,
        money=money or Money(),
        seconds=seconds,
        events=world.events,
    )


def rhos_of(tasks: list[Task], *, devices: int) -> list[float]:
    """How long each took, by how long it would have with its part of the cluster: what it computes, times how often over all
    devices were asked for while it was here, and at least once.
    """
    changes: list[tuple[int, int]] = []
    for task in tasks:
        changes += ((task.work.submit_us, task.work.devices), (task.ended_us or 0, -task.work.devices))
    changes.sort()
    times: list[int] = []
    asked: list[int] = []
    total_us = here = last_us = 0
    for at_us, change in changes:
        total_us += here * (at_us - last_us)
        here, last_us = here + change, at_us
        times.append(at_us)
        asked.append(total_us)
    found = []
    for task in tasks:
        work, ended_us = task.work, task.ended_us or 0
        took_us = max(ended_us - work.submit_us, 1)
        if work.alone_us is None:
            demand_us = asked[bisect_right(times, ended_us) - 1] - asked[bisect_right(times, work.submit_us) - 1]
            alone_us = work.duration_us * max(demand_us / (took_us * devices), 1.0)
        else:
            alone_us = work.alone_us
        found.append(took_us / max(alone_us, 1))
    return found


def waits_of(times_us: Iterable[int]) -> Waits:
    """Mean, median, 99th percentile (nearest rank) and maximum; of none all 0."""
    ordered = sorted(times_us)
    if not ordered:
        return Waits(jobs=0, mean_h=0, p50_h=0, p99_h=0, max_h=0)
    return Waits(
        jobs=len(ordered),
        mean_h=sum(ordered) / len(ordered) / HOUR_US,
        p50_h=quantile(ordered, 50) / HOUR_US,
        p99_h=quantile(ordered, 99) / HOUR_US,
        max_h=ordered[-1] / HOUR_US,
    )


def quantile(ordered: Sequence[int], percent: int) -> int:
    """By nearest rank, of values in order."""
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)]


def class_of(task: Task) -> str:
    """The row of tables that it is in."""
    return "reserved" if task.work.is_reserved else TIERS[task.work.tier]


def _by_class(tasks: list[Task]) -> dict[str, dict[str, Waits]]:
    rows: dict[str, dict[str, list[int]]] = {}
    for task in tasks:
        for tier in (ALL, class_of(task)):
            sizes = rows.setdefault(tier, {})
            for size in (ALL, size_class(task.work.devices)):
                sizes.setdefault(size, []).append(task.waited_us)
    names = (ALL, "reserved", *TIERS)
    columns = (ALL, *(name for _, name in SIZES))
    return {
        tier: {size: waits_of(rows[tier][size]) for size in columns if size in rows[tier]}
        for tier in names
        if tier in rows
    }


def ranges_of(tasks: list[Task], *, until_us: int) -> dict[str, dict[str, Covered]]:
    """Tell each job that waits when it is likely to start, with what was known by then, and look how true it was."""
    facts = [
        Fact(_kind(task), task.work.submit_us, task.first_us, task.ended_us if task.first_us is None else None)
        for task in tasks
    ]
    _, judged = forecast.learn(facts, until_us=until_us)
    rows: dict[str, dict[str, list[forecast.Judged]]] = {}
    for each in judged:
        if each.age == 0:
            task = tasks[each.job]
            for tier in (ALL, class_of(task)):
                for size in (ALL, size_class(task.work.devices)):
                    rows.setdefault(tier, {}).setdefault(size, []).append(each)
    return {tier: {size: _covered(found) for size, found in sizes.items()} for tier, sizes in rows.items()}


def _covered(judged: list[forecast.Judged]) -> Covered:
    count = len(judged)
    return Covered(
        jobs=count,
        by_p50=sum(each.took_us <= each.range.p50_us for each in judged) / count,
        by_p90=sum(each.took_us <= each.range.p90_us for each in judged) / count,
        p90_h=sum(each.range.p90_us for each in judged) / count / HOUR_US,
        took_h=sum(each.took_us for each in judged) / count / HOUR_US,
    )


def _kind(task: Task) -> forecast.Kind:
    work = task.work
    return forecast.kind_of(rank_of_class(work.service, work.tier), work.types, work.devices)


def _weighted(tasks: list[Task]) -> float:
    weights = [(task.work.devices * task.work.duration_us, task.waited_us) for task in tasks]
    total = sum(weight for weight, _ in weights)
    return sum(weight * waited for weight, waited in weights) / max(total, 1) / HOUR_US
