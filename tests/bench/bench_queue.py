"""What a full queue costs: the whole gate with many jobs that wait in many lanes, beside the same gate with none waiting.

A cluster of 10,000 devices is full; 100,000 jobs of more than 500 shapes wait. Then one job after another ends and another is
submitted. Printed: submissions a core-second (`decisions`), events a core-second, the time of one event (p50, p99, the
longest), what a tick with nothing to do costs, and those that have to stop thousands at once (holds that have run out). Each
beside the gate of `bench_core`, where nobody waits. CPU time, raw numbers; run it alone: `python tests/bench/bench_queue.py`.
"""

import argparse
import gc
import random
import time
from collections import deque
from dataclasses import dataclass, field

import msgspec

from fabric.gate import Gate
from fabric.gate.events import (
    AnyEvent,
    HoldMode,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseStarted,
    Sample,
    Submit,
    Tick,
)
from fabric.gate.instructions import Accepted, Lease, StartLease, StopLease
from fabric.units import UHS_PER_CT
from tests.bench import bench_core
from tests.bench.bench_core import NODE_DEVICES, STEP_US, gate_of, measure
from tests.bench.yardstick import print_yardstick

HOUR_US = 3_600_000_000


@dataclass
class World:
    """Does at once what the gate says; a job that runs ends when it is told to, or when its turn has come."""

    gate: Gate
    now_us: int = 0
    running: deque[Lease] = field(default_factory=deque)
    gone: set[str] = field(default_factory=set)
    spent_s: list[float] = field(default_factory=list)
    placed: int = 0

    def handle(self, event: AnyEvent) -> None:
        """One event, and what it leads to. Counts the CPU time of each."""
        waiting: deque[AnyEvent] = deque([event])
        while waiting:
            one = waiting.popleft()
            before = time.process_time()
            decision = self.gate.handle(one, self.now_us)
            self.spent_s.append(time.process_time() - before)
            assert isinstance(decision.outcome, Accepted), decision.outcome
            for instruction in decision.instructions:
                if isinstance(instruction, StartLease):
                    self.placed += 1
                    self.running.append(instruction.lease)
                    waiting.append(LeaseStarted(lease_id=instruction.lease.lease_id))
                elif isinstance(instruction, StopLease):
                    self.gone.add(instruction.lease_id)
                    waiting.append(LeaseFinished(lease_id=instruction.lease_id, outcome=LeaseOutcome.SAVED))
                    waiting.append(LeaseRemoved(lease_id=instruction.lease_id, final=_final(instruction.lease_id)))

    def end_one(self) -> None:
        """The job that runs for the longest is done."""
        while (lease := self.running.popleft()).lease_id in self.gone:
            pass
        self.handle(LeaseFinished(lease_id=lease.lease_id, outcome=LeaseOutcome.SUCCEEDED))
        self.handle(LeaseRemoved(lease_id=lease.lease_id, final=_final(lease.lease_id)))


def _final(lease_id: str) -> Sample:
    return Sample(lease_id=lease_id, seq=1, window_us=10**9, busy_us=10**8)


def submissions(count: int, *, seed: int) -> list[Submit]:
    """Jobs as in `bench_core`, but half of any size up to 64, each of which waits in a lane of its own; half end after an hour."""
    rng = random.Random(seed)
    return [_as_one_of_many(job, seed, rng) for job in bench_core.submissions(count, seed=seed)]


def _as_one_of_many(job: Submit, seed: int, rng: random.Random) -> Submit:
    devices = rng.randint(1, 64) if rng.random() < 0.5 else job.spec.devices
    is_even = devices > NODE_DEVICES and not devices % NODE_DEVICES
    spec = msgspec.structs.replace(
        job.spec,
        devices=devices,
        devices_per_node=NODE_DEVICES if is_even else None,
        limit_uhs=devices * UHS_PER_CT,
        hold=HoldMode.ROLLING,
        time_limit_us=None if rng.random() < 0.5 else HOUR_US,
    )
    return msgspec.structs.replace(
        job, job_id=f"job-{seed}-{job.job_id}", request_id=f"{seed}-{job.request_id}", spec=spec
    )


def share(spent_s: list[float], of: float) -> float:
    """The time within which so many of the events stayed, in ms."""
    return sorted(spent_s)[min(int(len(spent_s) * of), len(spent_s) - 1)] * 1000


def told(name: str, spent_s: list[float]) -> str:
    return (
        f"{name:34} n={len(spent_s):7,}  {len(spent_s) / max(sum(spent_s), 1e-9):9,.0f}/core-s"
        f"  p50 {share(spent_s, 0.5):7.3f}  p99 {share(spent_s, 0.99):8.3f}  longest {max(spent_s) * 1000:9.2f} ms"
    )


def filled(devices: int, pending: int, *, seed: int) -> World:
    """A cluster that is full, and so many jobs that wait for it."""
    world = World(gate_of(devices))
    for event in submissions(pending + devices, seed=seed)[: pending + devices // 8]:
        world.now_us += STEP_US // 100
        world.handle(event)
    return world


def run(devices: int, *, pending: int, turns: int) -> None:
    world = filled(devices, pending, seed=1)
    gc.freeze()  # as `bench_core` does
    queued = len(world.gate.state.placement.queue)
    lanes = len(
        {(job.rank, job.request.devices, job.request.accelerators) for job in world.gate.state.placement.queue.values()}
    )
    print(told(f"filling to {queued:,} in {lanes} lanes", world.spent_s))
    world.spent_s, idle_s, submit_s, placed = [], [], [], world.placed
    for turn, event in enumerate(submissions(turns, seed=2)):
        world.now_us += STEP_US
        world.end_one()
        at = len(world.spent_s)
        world.handle(event)
        submit_s.append(world.spent_s[at])
        if turn % 10 == 0:
            before = time.process_time()
            world.gate.handle(Tick(), world.now_us)
            idle_s.append(time.process_time() - before)
    print(told("submissions", submit_s))
    print(told(f"all events, {world.placed - placed:,} placed", world.spent_s))
    print(told("ticks between them", idle_s))
    world.spent_s = []
    world.now_us += HOUR_US + STEP_US
    ticks = 1
    world.handle(Tick())
    while (due_us := world.gate.next_due_us()) is not None and due_us <= world.now_us + STEP_US:
        world.now_us = max(world.now_us, due_us)
        world.handle(Tick())
        ticks += 1
    print(told(f"an hour later, {len(world.gone):,} stopped in {ticks} ticks", world.spent_s))
    world.gate.check()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--pending", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=5_000)
    options = parser.parse_args()
    print_yardstick()
    print("nobody waits:", measure(options.devices, jobs=min(options.turns * 4, 20_000)))
    run(options.devices, pending=options.pending, turns=options.turns)


if __name__ == "__main__":
    main()
