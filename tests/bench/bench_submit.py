"""What the gate adds to a task: `submit()` to `result()` of a function that does nothing, against the same as plain Ray.

Both run on one local cluster and take turns in one run, so that a busy machine slows both: what counts is the difference
of the medians. The plain task runs in a `fabric.lease` that is there before, as nobody holds a device without one. It finds
an idle worker of Ray's, as the function finds a runner of its account in the lease's place. Where the time goes is read
from the job itself, whose times come from this machine's clock.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray

from fabric import daemon
from fabric.client.client import new_request_id
from fabric.cluster.local import token_from
from fabric.sdk import Fabric, Job, connect
from fabric.wire import fabric_pb2 as pb
from tests.bench.yardstick import print_yardstick

ROUNDS = 250
WARM_UP = 25
GOAL_ADDED_MS = 5.0
SETTLE_S = 30.0
_US_PER_MS = 1_000


class Times(NamedTuple):
    """One gated call, in ms from its beginning to each stage of it."""

    journaled: float
    answered: float
    started: float
    ended: float
    result: float
    settled: float


def nothing() -> None:
    """The job."""


@contextmanager
def a_house() -> Iterator[daemon.Running]:
    """A fabric of its own, and this process connected to its Ray cluster."""
    with tempfile.TemporaryDirectory(prefix="fabric-bench-") as directory:
        running = daemon.up(state_dir=Path(directory), any_port=True)
        try:
            with token_from(Path(running.ray_token)):
                ray.init(address=running.ray_address, log_to_driver=False, logging_level="warning")
                try:
                    yield running
                finally:
                    ray.shutdown()
        finally:
            daemon.down(Path(directory), now=True)


def a_customer(running: daemon.Running) -> Fabric:
    """A connection of an account with tokens enough."""
    fabric = connect(running.address, daemon.operator_key(Path(running.state_dir)), running.ca, account="bench")
    request = pb.OpenAccountRequest(request_id=new_request_id(), account_id="bench", name="Bench", plan="starter")
    fabric.client.call(request, pb.Accepted)
    fabric.top_up("1000")
    return fabric


def gated(fabric: Fabric, *, settle: bool = True) -> Times:
    """One call through the gate; with `settle`, waits until its lease is given back."""
    began_us, began = time.time_ns() // 1_000, time.perf_counter()
    job = fabric.submit(nothing, tokens="0.05", accelerators="H100:1")
    answered = time.perf_counter()
    job.result(timeout=60)
    ended = time.perf_counter()
    settled = _settled(job) if settle else ended
    info = job.info()
    return Times(
        journaled=(info.submitted_at_us - began_us) / _US_PER_MS,
        answered=(answered - began) * 1_000,
        started=(info.started_at_us - began_us) / _US_PER_MS,
        ended=(info.ended_at_us - began_us) / _US_PER_MS,
        result=(ended - began) * 1_000,
        settled=(settled - began) * 1_000,
    )


def _settled(job: Job) -> float:
    for update in job.events(timeout=SETTLE_S):
        if update.settled:
            return time.perf_counter()
    raise TimeoutError(f"{job.id} is not settled after {SETTLE_S} s")


def plain(task: Any) -> float:
    """One call of the same as a plain task, in ms."""
    began = time.perf_counter()
    ray.get(task.remote())
    return (time.perf_counter() - began) * 1_000


def measure(running: daemon.Running, *, rounds: int, settle: bool = True) -> float:
    """Print the figures; the added median in ms."""
    fabric = a_customer(running)
    with fabric.lease(tokens="10", accelerators="H100:1") as lease:  # whoever holds a device without one is ended
        task = ray.remote(nothing).options(**lease.options(devices=1))
        for _ in range(WARM_UP):
            gated(fabric)
            plain(task)
        pairs = [(gated(fabric, settle=settle), plain(task)) for _ in range(rounds)]
    fabric.close()
    calls, tasks = [call for call, _ in pairs], [ms for _, ms in pairs]
    say(f"{rounds} rounds, taking turns{'' if settle else '; the next call does not wait for the last to be settled'}")
    say(f"  {'':24}{'p10':>9}{'p50':>9}{'p95':>9}{'p99':>9}  ms")
    show("plain Ray task", tasks)
    show("through the gate", [call.result for call in calls])
    say("  of which")
    for name, stage in STAGES.items():
        show(f"  {name}", [stage(call) for call in calls])
    added = statistics.median(call.result for call in calls) - statistics.median(tasks)
    ratio = statistics.median(call.result / ms for call, ms in pairs)
    say(f"  added p50 {added:.2f} ms (goal {GOAL_ADDED_MS:g}), ratio {ratio:.1f}\n")
    return added


STAGES: dict[str, Callable[[Times], float]] = {
    "until the gate decides": lambda call: call.journaled,
    "until submit answers": lambda call: call.answered,
    "decided → started": lambda call: call.started - call.journaled,
    "started → ended": lambda call: call.ended - call.started,
    "ended → result here": lambda call: call.result - call.ended,
    "result → settled": lambda call: call.settled - call.result,
}


def show(name: str, values: Sequence[float]) -> None:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    say(f"  {name:24}{cuts[9]:9.2f}{cuts[49]:9.2f}{cuts[94]:9.2f}{cuts[98]:9.2f}")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--back-to-back", action="store_true", help="don't wait until a call's lease is given back")
    given = parser.parse_args()
    print_yardstick()
    with a_house() as running:
        measure(running, rounds=given.rounds, settle=not given.back_to_back)


if __name__ == "__main__":
    main()
