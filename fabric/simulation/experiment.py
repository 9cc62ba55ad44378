"""Several policies over the same jobs, seed by seed: what a seed draws (users, tiers, failures) is the same for all of them."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from fabric.simulation.measures import Measures, measure
from fabric.simulation.money import Money, Prices, kwh, of_tasks
from fabric.simulation.tenants import stretched, with_tiers
from fabric.simulation.workload import Behaviour, Cluster, Work, load
from fabric.simulation.world import Policy, World

Tell = Callable[[str, float], None]
"""Hears which run it is, and which part of its jobs have ended."""
_TOLD_EVERY: Final = 2_000
"""Moments of a run between two words about it."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be simulated."""

    works: list[Work]
    cluster: Cluster
    behaviour: Behaviour = Behaviour()
    tiers: tuple[int, ...] = ()
    """Percent of users in each tier, Starter first; () = as the trace says."""
    users: int = 100
    """How many there are, where the trace names none."""
    load: float | None = None
    """Stretch the arrivals until this part of the cluster is asked for; None = as in the trace."""
    seeds: int = 1
    until_us: int | None = None
    prices: Prices | None = None
    """None = nothing is counted in tokens and money."""
    was: Measures | None = None
    """What happened with the same jobs, of a journal: it stands first."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    jobs: int
    devices: int
    load: float
    runs: list[Measures]

    def of(self, policy: str) -> list[Measures]:
        """The runs of one policy, by seed."""
        return [run for run in self.runs if run.policy == policy]

    @property
    def policies(self) -> list[str]:
        return list(dict.fromkeys(run.policy for run in self.runs))


def works_of(plan: Plan, seed: int) -> list[Work]:
    """The jobs as this seed has them."""
    works = plan.works
    if plan.tiers:
        works = with_tiers(works, plan.tiers, seed=seed, users=plan.users)
    if plan.load is not None:
        works = stretched(works, plan.load, devices=plan.cluster.devices)
    return works


def simulate(plan: Plan, policies: Mapping[str, Callable[[], Policy]], *, tell: Tell | None = None) -> Outcome:
    """Play each policy with each seed."""
    runs: list[Measures] = [plan.was] if plan.was is not None else []
    offered = 0.0
    for seed in range(1, plan.seeds + 1):
        works = works_of(plan, seed)
        offered = load(works, plan.cluster.devices)
        for name, make in policies.items():
            runs.append(play(plan, works, make, name=name, seed=seed, tell=tell))
    return Outcome(jobs=len(plan.works), devices=plan.cluster.devices, load=offered, runs=runs)


def play(
    plan: Plan, works: list[Work], make: Callable[[], Policy], *, name: str, seed: int, tell: Tell | None = None
) -> Measures:
    """One run."""
    with _without_gc():
        began_s = time.process_time()
        policy = make()
        policy.name = name
        world = World(works, plan.cluster, policy, behaviour=plan.behaviour, seed=seed)
        world.run(until_us=plan.until_us, tell=_now_and_then(tell, f"{name}, seed {seed}") if tell else None)
        return measure(world, seed=seed, seconds=time.process_time() - began_s, money=_money(plan, world))


def _money(plan: Plan, world: World) -> Money:
    if plan.prices is None:
        return Money(kwh=kwh(world.used_us))
    tasks = [task for task in world.tasks if not task.refused]
    return of_tasks(tasks, world.used_us, plan.prices, was=plan.was.money if plan.was is not None else None)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of the 95 % interval of it (Student's t); of one value 0."""
    count = len(values)
    mean = sum(values) / count
    if count == 1:
        return mean, 0.0
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, _T95[min(count - 2, len(_T95) - 1)] * (variance / count) ** 0.5


_T95: Final = (
    12.71,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    1.96,
)


def _now_and_then(tell: Tell, name: str) -> Callable[[World], None]:
    moments = 0

    def hear(world: World) -> None:
        nonlocal moments
        moments += 1
        if moments % _TOLD_EVERY == 0:
            tell(name, 1 - world.left / max(len(world.tasks), 1))

    return hear


@contextmanager
def _without_gc() -> Iterator[None]:
    """A run makes millions of small records and no cycles: looking for some would cost a third of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
