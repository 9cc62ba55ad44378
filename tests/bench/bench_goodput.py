"""What spot capacity is worth: goodput on recorded offers of nodes, as a curve over how long a restart takes.

Goodput is useful node-seconds of those offered. An elastic job runs on what is offered; it gives way at once, and takes
more when what it left unused would have paid for a restart. `resume` loses nothing but the restart (notice or a survivor,
as the tests show); `periodic` loses what it did since its last checkpoint at every drop, and pays for each; `fixed` is a gang
of half the most nodes ever offered, all or nothing, with the same resume. Save and restart times of a gang on this machine
are measured in the same run and marked; how fast work goes with more nodes is not modelled: it counts as in proportion.

Traces are CSV files `t_s,nodes`, a step function: ../shared/traces/spot_unified, or files named as arguments.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from tests.bench.yardstick import print_yardstick
from tests.training.gang import crew
from tests.training.gang.crew import ROOT, Crew
from tests.training.gang.work import Order

TRACES = ROOT.parent / "shared" / "traces" / "spot_unified"
RESTARTS_S = (1, 3, 10, 30, 60, 120, 300)
NO_TRACES = f"there are no spot traces in {TRACES}: name your own files, python tests/bench/bench_goodput.py FILE..."


@dataclass
class Job:
    """An elastic job that follows an offer of nodes; all times in seconds."""

    restart_s: float
    save_s: float
    every_s: float | None = None
    """Between checkpoints; None = the state is always safe, because a stop saves it."""
    fixed: int | None = None
    nodes: int = 0
    stalled_until: float = 0.0
    useful: float = 0.0
    offered: float = 0.0
    unused: float = 0.0
    worked_s: float = 0.0
    """Since the last checkpoint."""
    changes: int = field(default=0)

    def offer(self, start: float, stop: float, nodes: int) -> None:
        """From `start` to `stop` there are so many nodes."""
        self.offered += nodes * (stop - start)
        wanted = nodes if self.fixed is None else self.fixed * (nodes >= self.fixed)
        if wanted < self.nodes:
            if self.every_s is not None:
                self.useful -= self.nodes * self.worked_s
            self._change(start, wanted)
        now = start
        while now < stop and wanted:
            if now < self.stalled_until:
                till = min(stop, self.stalled_until)
            elif self.nodes == 0 or self.unused > self.nodes * (self.restart_s + self.save_s):
                self._change(now, wanted)
                continue
            else:
                till = self._work(now, stop, more=wanted - self.nodes)
            self.unused += (wanted - self.nodes) * (till - now)
            now = till

    def _change(self, now: float, nodes: int) -> None:
        """Stop, with what was done safe by now, and go on with other nodes."""
        self.changes += 1
        saving_s = self.save_s if self.nodes and self.every_s is None else 0.0
        self.stalled_until = max(now, self.stalled_until) + saving_s + self.restart_s
        self.nodes, self.unused, self.worked_s = nodes, 0.0, 0.0

    def _work(self, now: float, stop: float, *, more: int) -> float:
        """Work until something is due; until when."""
        till = stop
        if more:
            due = (self.nodes * (self.restart_s + self.save_s) - self.unused) / more
            till = min(till, now + max(due, 0.0) + 1e-3)
        if self.every_s is not None:
            till = min(till, now + max(self.every_s - self.worked_s, 1e-3))
        self.useful += self.nodes * (till - now)
        self.worked_s += till - now
        if self.every_s is not None and self.worked_s >= self.every_s:
            self.worked_s, self.stalled_until = 0.0, till + self.save_s
        return till


def goodput(trace: list[tuple[float, int]], **how: float | None) -> float:
    job = Job(**how)
    for (start, nodes), (stop, _) in pairwise(trace):
        job.offer(start, stop, nodes)
    return max(0.0, job.useful) / job.offered


def read(path: Path) -> list[tuple[float, int]]:
    with path.open() as file:
        return [(float(row["t_s"]), int(row["nodes"])) for row in csv.DictReader(file)]


@dataclass(frozen=True)
class Measured:
    """A gang of two on this machine, in seconds: medians."""

    save_s: float
    warm_s: float
    cold_s: float


def measure(*, rounds: int = 5) -> Measured:
    """Asked to stop → all ended; started from a warm process → first step; and what importing torch adds to that."""
    ended, started = [], []
    with tempfile.TemporaryDirectory(prefix="fabric-bench-") as folder:
        order = Order(folder=Path(folder), steps=0, epochs=1000, pause_s=0.002)
        crew.run(order, world=1, doing="nothing")
        for _ in range(rounds):
            began, pids = time.monotonic(), [order.path(f"pid-{rank}") for rank in (0, 1)]
            for path in pids:
                path.unlink(missing_ok=True)
            gang = Crew(order, world=2, doing="script")
            while not all(path.exists() for path in pids):
                time.sleep(0.005)
            started.append(time.monotonic() - began)
            time.sleep(0.1)
            asked = time.monotonic()
            gang.kill(1, 15)
            gang.end()
            ended.append(time.monotonic() - asked)
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, torch._dynamo"], check=True, cwd=ROOT)
    cold_s = time.monotonic() - began
    warm_s = statistics.median(started)
    return Measured(save_s=statistics.median(ended), warm_s=warm_s, cold_s=warm_s + cold_s)


def table(paths: list[Path], measured: Measured) -> None:
    say(
        f"measured here, a gang of 2: asked to stop → saved and ended {measured.save_s:.2f} s, start → first step "
        f"{measured.warm_s:.2f} s warm, {measured.cold_s:.1f} s cold"
    )
    save_s = measured.save_s
    say(f"\n{'resume, restart of':28}" + "".join(f"{r:>7} s" for r in RESTARTS_S) + f"{'warm':>9}{'cold':>9}")
    for path in paths:
        trace = read(path)
        row = [goodput(trace, restart_s=r, save_s=save_s) for r in (*RESTARTS_S, measured.warm_s, measured.cold_s)]
        say(f"{path.stem:28}" + "".join(f"{share:9.1%}" for share in row))
    most = {path: max(nodes for _, nodes in read(path)) for path in paths}
    say(
        f"\n{'':28}{'periodic 30 min':>17}{'periodic 5 min':>17}{'fixed, half':>17}{'resume':>17}   at a restart of 120 s; 10 s"
    )
    for path in paths:
        cells = []
        for how in ({"every_s": 1800.0}, {"every_s": 300.0}, {"fixed": max(1, most[path] // 2)}, {}):
            shares = (goodput(read(path), restart_s=restart_s, save_s=save_s, **how) for restart_s in (120, 10))
            cells.append("; ".join(f"{share:.1%}" for share in shares))
        say(f"{path.stem:28}" + "".join(f"{cell:>17}" for cell in cells))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def traces() -> list[Path]:
    found = sorted(TRACES.glob("*.csv"))
    if not found:
        pytest.skip(NO_TRACES)
    return found


def test_quicker_restarts_are_worth_more_and_losing_nothing_beats_periodic_checkpoints():
    for path in traces():
        trace = read(path)
        curve = [goodput(trace, restart_s=restart_s, save_s=1.0) for restart_s in RESTARTS_S]
        assert curve == sorted(curve, reverse=True), path.stem
        assert all(0 <= share <= 1 for share in curve)
        for restart_s in (10, 120):
            resume = goodput(trace, restart_s=restart_s, save_s=1.0)
            assert resume > goodput(trace, restart_s=restart_s, save_s=1.0, every_s=300.0), path.stem


def test_a_steady_offer_is_used_but_for_the_first_start():
    assert goodput([(0, 4), (100, 4), (1000, 4)], restart_s=10, save_s=1) == pytest.approx(0.99)
    assert goodput([(0, 4), (1000, 2), (2000, 2)], restart_s=10, save_s=0) == pytest.approx((4 * 990 + 2 * 990) / 6000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", type=Path, nargs="*", default=sorted(TRACES.glob("*.csv")))
    given = parser.parse_args()
    print_yardstick()
    if not given.traces:
        say(f"skipped: {NO_TRACES}")
        return
    table(given.traces, measure())


if __name__ == "__main__":
    main()
