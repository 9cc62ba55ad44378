"""How far the CPU stand-in's reading is from the truth, quiet and beside hogs, and beside what CPU time alone would say.

    python tests/bench/bench_burn.py [WINDOWS]

Each worker is busy, five times in a window, from a moment on for a part of a second by the clock, and says how long it was
until it could see that it was done: that is the truth, whoever else wants the cores. The meter is read at the end of each
window, while all of them pause. Errors are parts of a device over the window.
"""

import os
import subprocess
import sys
import time

import psutil

from fabric.node.meters import CpuMeter
from tests.bench.yardstick import print_yardstick

WORKER = """
import sys, time
part = float(sys.argv[1])
for line in sys.stdin:
    at = float(line)
    time.sleep(max(0.0, at - time.monotonic()))
    while time.monotonic() < at + part:
        pass
    print(time.monotonic() - at, flush=True)
"""
HOG = "while True: pass"
PARTS = (0.2, 0.5, 0.8)
SPELLS = 5


def errors(*, hogs, windows):
    """Of each window and worker: how far the meter, and CPU time alone, were from the truth."""
    started = [subprocess.Popen([sys.executable, "-c", HOG]) for _ in range(hogs)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    workers = {part: subprocess.Popen([sys.executable, "-c", WORKER, str(part)], **pipes) for part in PARTS}
    try:
        meter = CpuMeter()
        for part, worker in workers.items():
            meter.attach(str(part), devices=("0",), roots=(worker.pid,))
        ours, theirs = [], []
        for window in range(windows + 1):
            began = time.monotonic()
            used = {part: -cpu_s(worker) for part, worker in workers.items()}
            truth = dict.fromkeys(PARTS, 0.0)
            for _ in range(SPELLS):
                at = time.monotonic() + 0.2
                for worker in workers.values():
                    worker.stdin.write(f"{at}\n")
                for part, worker in workers.items():
                    truth[part] += float(worker.stdout.readline())
            took = time.monotonic() - began
            for part, worker in workers.items():
                read_s = meter.read(str(part)) / 1e6
                if window:  # the first one has the interpreter's start in it
                    ours.append(abs(read_s - truth[part]) / took)
                    theirs.append(abs(used[part] + cpu_s(worker) - truth[part]) / took)
        return sorted(ours), sorted(theirs)
    finally:
        for process in (*started, *workers.values()):
            process.kill()
            process.communicate()


def cpu_s(worker):
    return sum(psutil.Process(worker.pid).cpu_times()[:2])


def p99(values):
    return values[min(len(values) - 1, int(len(values) * 0.99))]


def main(windows):
    print_yardstick()
    for hogs in (0, 2 * (os.cpu_count() or 1)):
        ours, theirs = errors(hogs=hogs, windows=windows)
        print(
            f"{hogs} hogs on {os.cpu_count()} cores, {len(ours)} readings: run + run-queue wait p50"
            f" {ours[len(ours) // 2]:.4f} p99 {p99(ours):.4f} max {ours[-1]:.4f}; CPU time alone p50"
            f" {theirs[len(theirs) // 2]:.4f} p99 {p99(theirs):.4f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
