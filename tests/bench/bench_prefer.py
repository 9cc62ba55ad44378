"""Which type a job gets that may have several: mean completion times on 64 devices of three types, by what jobs prefer.

    .venv/bin/python -m tests.bench.bench_prefer [--jobs 600] [--seeds 5] [--load 0.7]

Jobs are of four sorts that gain differently from a fast device, three of which may have any type; the fourth must have an H100. The
same jobs, seed by seed, are played through the gate five times: with the types named in an order, so that the first with room is taken
(first fit); with any type and no preference; with prefer="tokens"; with prefer="soonest"; each on the one type that suits it best, as if
somebody knew (by hand). What is known of a sort's speeds is what the gate has measured of its earlier runs.
"""

import argparse
import random
from collections.abc import Iterator

import msgspec

from fabric.simulation import options
from fabric.simulation.experiment import Plan, play, spread
from fabric.simulation.gate_policy import GatePolicy
from fabric.simulation.measures import Measures
from fabric.simulation.workload import HOUR_US, Behaviour, Work
from tests.bench.yardstick import print_yardstick

NODES = ("2x8:H100", "3x8:A100", "3x8:910B")
ORDER = ("H100", "A100", "910B")
USUAL = (("H100", 1_000_000), ("A100", 320_000), ("910B", 260_000))
SORTS = (
    ("dense", 4, (("H100", 1_000_000), ("A100", 320_000), ("910B", 260_000))),
    ("memory", 4, (("H100", 500_000), ("A100", 420_000), ("910B", 150_000))),
    ("small", 4, (("H100", 300_000), ("A100", 280_000), ("910B", 270_000))),
    ("h100", 1, (("H100", 1_000_000),)),
)
"""Name, weight in the draw, and how fast on which type."""
SUITS = {"dense": ("H100",), "memory": ("A100",), "small": ("910B",)}
WAYS = ("first fit", "any", "tokens", "soonest", "by hand")


def works(count: int, seed: int, load: float) -> list[Work]:
    """Jobs of all sorts, so many that `load` of the cluster's devices would be in use if each ran on what suits it."""
    draw, now_us, found = random.Random(seed), 0, []
    sorts = [sort for sort in SORTS for _ in range(sort[1])]
    for at in range(count):
        name, _, speeds = draw.choice(sorts)
        devices = draw.choice((1, 1, 2, 4, 8))
        took_us = min(int(draw.lognormvariate(0, 1) * HOUR_US), 12 * HOUR_US) + HOUR_US // 20
        mean_ppm = sum(ppm for _, ppm in speeds) // len(speeds)
        now_us += 1 + int(draw.expovariate(1) * devices * took_us / (64 * load))
        found.append(
            Work(
                work_id=f"{name}-{at}", name=name, submit_us=now_us, duration_us=took_us * mean_ppm // 1_000_000,
                devices=devices, user=f"{name}-{devices}", speeds=speeds, types=("H100",) if name == "h100" else (),
            )
        )  # fmt: skip
    return found


def as_way(work: Work, way: str) -> Work:
    if work.types:
        return work
    if way == "first fit":
        return msgspec.structs.replace(work, types=ORDER)
    if way == "by hand":
        return msgspec.structs.replace(work, types=SUITS[work.name])
    return msgspec.structs.replace(work, prefer="" if way == "any" else way)


def runs(count: int, seeds: int, load: float) -> Iterator[tuple[str, Measures]]:
    for seed in range(1, seeds + 1):
        jobs = works(count, seed, load)
        plan = Plan(works=jobs, cluster=options.nodes(list(NODES)), behaviour=Behaviour(speeds=USUAL))
        for way in WAYS:
            yield way, play(plan, [as_way(work, way) for work in jobs], GatePolicy, name=way, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--load", type=float, default=0.7)
    asked = parser.parse_args()
    print_yardstick()
    found: dict[str, list[Measures]] = {way: [] for way in WAYS}
    for way, run in runs(asked.jobs, asked.seeds, asked.load):
        found[way].append(run)
    first = [run.jct.mean_h for run in found["first fit"]]
    print(f"{asked.jobs} jobs on 64 devices of three types, load {asked.load}, {asked.seeds} seeds")
    for way, measured in found.items():
        jct, wait = (spread([value(run) for run in measured]) for value in (_jct, _wait))
        ratio = spread([each.jct.mean_h / base for each, base in zip(measured, first, strict=True)])
        tokens = spread([run.money.kwh for run in measured])
        print(
            f"{way:10} mean JCT {jct[0]:.2f} ±{jct[1]:.2f} h, {ratio[0]:.3f} ±{ratio[1]:.3f} of first fit;"
            f" mean wait {wait[0]:.2f} ±{wait[1]:.2f} h; {tokens[0]:,.0f} kWh"
        )


def _jct(run: Measures) -> float:
    return run.jct.mean_h


def _wait(run: Measures) -> float:
    return run.waits["all"]["all"].mean_h


if __name__ == "__main__":
    main()
