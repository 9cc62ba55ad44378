"""A yardstick of this machine, printed by every bench before its own figures, so that those of two machines compare.

    python -m tests.bench.yardstick

A fixed loop of pure Python (CPU time, the best of a few) and an appended and synced block of 4 KiB (the median of many), in
the folder for temporary files, where the benches keep theirs. What a figure of another machine would be here is about the
figure times the ratio of the two loops, or of the two syncs for what waits for a disk.
"""

import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

LOOP_ROUNDS: Final = 1_000_000
LOOPS: Final = 5
SYNCS: Final = 50
BLOCK: Final = b"\0" * 4096
_MODULUS: Final = 1_000_003


def loop_ms() -> float:
    """CPU milliseconds of a million rounds of a linear congruence: the best of five, which neighbours disturb least."""
    return min(_one_loop_ms() for _ in range(LOOPS))


def _one_loop_ms() -> float:
    began, value = time.process_time(), 1
    for each in range(LOOP_ROUNDS):
        value = (value * 48_271 + each) % _MODULUS
    assert 0 <= value < _MODULUS
    return (time.process_time() - began) * 1_000


def sync_ms() -> float:
    """Milliseconds by the clock to append 4 KiB to a file and have it synced: the median of fifty."""
    took = []
    with tempfile.NamedTemporaryFile(prefix="fabric-yardstick-") as file:
        for _ in range(SYNCS):
            began = time.perf_counter()
            file.write(BLOCK)
            file.flush()
            os.fsync(file.fileno())
            took.append((time.perf_counter() - began) * 1_000)
    return statistics.median(took)


def yardstick() -> str:
    """The line, with what else tells one machine from another."""
    load = os.getloadavg()[0]
    return (
        f"yardstick: loop {loop_ms():.1f} ms, fsync {sync_ms():.2f} ms; {os.cpu_count()} × {_processor()},"
        f" Python {platform.python_version()}, {platform.system()} {platform.release().partition('-')[0]}, load {load:.1f}"
    )


def print_yardstick() -> None:
    print(yardstick(), flush=True)


def _processor() -> str:
    """As Linux names it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part")))
    return next(named, platform.processor() or platform.machine())


if __name__ == "__main__":
    print_yardstick()
