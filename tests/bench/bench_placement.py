"""Placements per core-second: enqueue + plan + release at a given size of cluster, on Philly-like gang sizes.

Raw numbers; run it alone: `python tests/bench/bench_placement.py`.
"""

import random
import time
from dataclasses import dataclass

from fabric.placement import Node, Placed, PlacementState, Planner, Request
from tests.bench.yardstick import print_yardstick

NODE_DEVICES = 8
SIZES = (1, 2, 4, 8, 16, 32, 64)
WEIGHTS = (80, 5, 5, 6, 2, 1, 1)
"""Most jobs of the Philly trace have one device, a few a whole node or several."""
US_PER_PLACEMENT = 50_000


@dataclass(frozen=True)
class Run:
    """What one run measured."""

    devices: int
    story: str
    placed: int
    seconds: float
    slowest_ms: float

    def __str__(self) -> str:
        rate = self.placed / self.seconds
        return (
            f"placement devices={self.devices} story={self.story} placed={self.placed} "
            f"seconds={self.seconds:.3f} placements_per_core_s={rate:.0f} slowest_ms={self.slowest_ms:.3f}"
        )


def requests(count: int, *, seed: int, accounts: int = 100) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request(
            job_id=f"job-{at}",
            account_id=f"account-{rng.randrange(accounts)}",
            devices=devices,
            devices_per_node=NODE_DEVICES if devices > NODE_DEVICES else None,
            tier_rank=rng.choice((1, 2, 2)),
            submitted_at_us=at * US_PER_PLACEMENT,
        )
        for at, devices in enumerate(rng.choices(SIZES, WEIGHTS, k=count))
    ]


def cluster_of(devices: int) -> Planner:
    planner = Planner(PlacementState())
    for at in range(devices // NODE_DEVICES):
        planner.add_node(Node(f"node-{at}", "H100", NODE_DEVICES, "spot"), now_us=0)
    return planner


def steady(devices: int, *, jobs: int, fill: float = 0.85, seed: int = 1) -> Run:
    """Room for nearly everybody: each job is queued and placed, and beyond `fill` a random one is released for it."""
    planner, rng = cluster_of(devices), random.Random(seed)
    work = requests(jobs, seed=seed)
    running: list[Request] = []
    used = placed = 0
    slowest = 0.0
    started = time.process_time()
    for request in work:
        now_us = request.submitted_at_us
        before = time.perf_counter()
        planner.enqueue(request, now_us=now_us)
        for step in planner.plan(now_us=now_us):
            if isinstance(step, Placed):
                placed += 1
        slowest = max(slowest, time.perf_counter() - before)
        running.append(request)
        used += request.devices
        while used > devices * fill:
            at = int(rng.random() * len(running))
            running[at], running[-1] = running[-1], running[at]
            leaver = running.pop()
            used -= leaver.devices
            planner.release(leaver.job_id, now_us=now_us) or planner.withdraw(leaver.job_id)
    return Run(devices, "steady", placed, time.process_time() - started, slowest * 1000)


def backlog(devices: int, *, jobs: int, waiting: int, seed: int = 2) -> Run:
    """A full cluster and a long line: every release is followed by a plan that lets the next ones in."""
    planner, rng = cluster_of(devices), random.Random(seed)
    work = requests(waiting + jobs, seed=seed)
    running: list[str] = []
    evicted: set[str] = set()

    def plan(now_us: int) -> int:
        count = 0
        for step in planner.plan(now_us=now_us):
            if isinstance(step, Placed):
                running.append(step.job_id)
                count += 1
            else:
                planner.release(step.job_id, now_us=now_us)
                evicted.add(step.job_id)
        return count

    for request in work[:waiting]:
        planner.enqueue(request, now_us=0)
    plan(0)
    placed = 0
    slowest = 0.0
    started = time.process_time()
    for request in work[waiting:]:
        now_us = request.submitted_at_us - waiting * US_PER_PLACEMENT
        before = time.perf_counter()
        at = int(rng.random() * len(running))
        running[at], running[-1] = running[-1], running[at]
        leaver = running.pop()
        if leaver not in evicted:
            planner.release(leaver, now_us=now_us)
        planner.enqueue(request, now_us=now_us)
        placed += plan(now_us)
        slowest = max(slowest, time.perf_counter() - before)
    return Run(devices, f"backlog-of-{waiting}", placed, time.process_time() - started, slowest * 1000)


def main() -> None:
    print_yardstick()
    for devices in (10_000, 100_000):
        print(steady(devices, jobs=100_000))  # the numbers are what it is for
    for devices in (10_000, 100_000):
        print(backlog(devices, jobs=20_000, waiting=devices))  # the numbers are what it is for


if __name__ == "__main__":
    main()
