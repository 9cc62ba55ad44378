"""Decisions per core-second of the whole core: hold, placement, metering and settlement, on Philly-like gang sizes.

A decision is one `Submit` that was decided, its hold included. Printed are the time of those calls alone, and of the
whole life of a job (submitted, started, metered, finished, removed) for each submission. Raw numbers; run it alone:
`python tests/bench/bench_core.py`.
"""

import gc
import random
import time
from collections import deque
from dataclasses import dataclass

from fabric.charging.catalogue import Catalogue, Plan
from fabric.charging.tariffs import Tariffs, Weight
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import (
    Configure,
    HoldMode,
    JobKind,
    JobSpec,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseStarted,
    Metered,
    NodeUp,
    Pool,
    Sample,
    Submit,
    TopUp,
)
from fabric.gate.instructions import Accepted, Lease, StartLease
from fabric.units import UHS_PER_CT
from tests.bench.yardstick import print_yardstick

NODE_DEVICES = 8
SIZES = (1, 2, 4, 8, 16, 32, 64)
WEIGHTS = (80, 5, 5, 6, 2, 1, 1)
"""Most jobs of the Philly trace have one device, a few a whole node or several."""
TYPES = ("H100", "A100", "910B")
WANTED = (("H100",), ("A100",), ("910B",), TYPES, TYPES[1:] + TYPES[:1], TYPES[2:] + TYPES[:2])
"""One type, or any of them: as much of each as there is, so that nearly everybody finds room."""
ACCOUNTS = 500
S = 1_000_000
STEP_US = 50_000
FILL = 0.85


@dataclass(frozen=True)
class Run:
    """What one run measured."""

    devices: int
    decisions: int
    accepted: int
    placed: int
    submit_s: float
    cycle_s: float
    events: int

    def __str__(self) -> str:
        return (
            f"core devices={self.devices} decisions={self.decisions} accepted={self.accepted} placed={self.placed} "
            f"events={self.events} submit_s={self.submit_s:.3f} decisions_per_core_s={self.decisions / self.submit_s:.0f} "
            f"cycle_s={self.cycle_s:.3f} cycles_per_core_s={self.decisions / self.cycle_s:.0f}"
        )


def gate_of(devices: int) -> Gate:
    """A gate with so many devices of three types, and accounts of three tiers that can pay for a few jobs at a time."""
    gate = Gate()
    plans = tuple(
        Plan(name=f"tier-{rank}", tier_rank=rank, price_microcny_per_ct=500_000, lifetime_days=30) for rank in range(3)
    )
    weights = tuple(
        Weight(accelerator=name, ppm=ppm) for name, ppm in zip(TYPES, (10**6, 315_000, 259_000), strict=True)
    )
    gate.handle(Configure(tariffs=Tariffs(version=1, weights=weights), catalogue=Catalogue(version=1, plans=plans)), 0)
    for at in range(ACCOUNTS):
        gate.handle(OpenAccount(account_id=f"account-{at}", name="", plan=f"tier-{at % 3}"), 0)
        for _ in range(3):
            gate.handle(TopUp(account_id=f"account-{at}", amount_uhs=10_000_000 * UHS_PER_CT // ACCOUNTS), at)
    for at in range(devices // NODE_DEVICES):
        node = NodeUp(node_id=f"node-{at}", accelerator=TYPES[at % 3], devices=NODE_DEVICES, pool=Pool.SPOT)
        gate.handle(node, 0)
    return gate


def submissions(count: int, *, seed: int) -> list[Submit]:
    rng = random.Random(seed)
    return [
        Submit(
            job_id=f"job-{at}",
            account_id=f"account-{rng.randrange(ACCOUNTS)}",
            spec=JobSpec(
                name="train",
                kind=JobKind.SCRIPT,
                accelerators=rng.choice(WANTED),
                devices=devices,
                devices_per_node=NODE_DEVICES if devices > NODE_DEVICES else None,
                limit_uhs=devices * UHS_PER_CT,
                hold=rng.choice((HoldMode.FULL, HoldMode.ROLLING)),
            ),
            request_id=f"request-{at}",
        )
        for at, devices in enumerate(rng.choices(SIZES, WEIGHTS, k=count))
    ]


class World:
    """Does at once what the gate says, and lets jobs go when the cluster is full enough."""

    def __init__(self, gate: Gate, *, devices: int) -> None:
        self.gate, self.devices = gate, devices
        self.running: deque[Lease] = deque()
        self.used = self.placed = self.events = 0
        self.now_us = 0

    def handle(self, event: object) -> None:
        waiting = deque([event])
        while waiting:
            self.events += 1
            for instruction in self.gate.handle(waiting.popleft(), self.now_us).instructions:
                if isinstance(instruction, StartLease):
                    waiting += self.start(instruction.lease)

    def start(self, lease: Lease) -> list[object]:
        devices = sum(share.devices for share in lease.shares)
        self.placed += 1
        self.used += devices
        self.running.append(lease)
        sample = Sample(lease_id=lease.lease_id, seq=1, window_us=STEP_US, busy_us=devices * STEP_US)
        return [LeaseStarted(lease_id=lease.lease_id), Metered(samples=(sample,))]

    def make_room(self) -> None:
        while self.used > FILL * self.devices:
            lease = self.running.popleft()
            self.used -= sum(share.devices for share in lease.shares)
            self.handle(LeaseFinished(lease_id=lease.lease_id, outcome=LeaseOutcome.SUCCEEDED))
            final = Sample(lease_id=lease.lease_id, seq=2, window_us=10**12, busy_us=10**11)
            self.handle(LeaseRemoved(lease_id=lease.lease_id, final=final))


def measure(devices: int, *, jobs: int, seed: int = 1) -> Run:
    """Fill the cluster, then submit `jobs` more, each making room for itself."""
    world = World(gate_of(devices), devices=devices)
    events = submissions(jobs + devices, seed=seed)
    fill = 0
    while world.used <= FILL * devices and fill < devices:
        world.now_us += STEP_US
        world.handle(events[fill])
        fill += 1
    gc.freeze()  # What has come to stay is not looked through again and again.
    world.events = world.placed = 0
    submit_s = 0.0
    accepted = 0
    began = time.process_time()
    for event in events[fill : fill + jobs]:
        world.now_us += STEP_US
        world.make_room()
        before = time.process_time()
        decision = world.gate.handle(event, world.now_us)
        submit_s += time.process_time() - before
        world.events += 1
        accepted += isinstance(decision.outcome, Accepted)
        for instruction in decision.instructions:
            if isinstance(instruction, StartLease):
                for follows in world.start(instruction.lease):
                    world.handle(follows)
    cycle_s = time.process_time() - began
    return Run(devices, jobs, accepted, world.placed, submit_s, cycle_s, world.events)


def main() -> None:
    print_yardstick()
    for devices in (10_000, 100_000):
        print(measure(devices, jobs=20_000))


if __name__ == "__main__":
    main()
