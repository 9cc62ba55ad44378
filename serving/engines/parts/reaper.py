"""Ends an engine's processes when the process that started them is gone, however it went.

vLLM's worker processes ignore SIGTERM and can outlive a parent that was killed, with the device's memory in their
hands. `watch` starts a small process of its own session that reads the pids over a pipe; when the pipe breaks, it kills
those that are still the same processes. What was there before is not the engine's. It is also run as a command, by `watch`.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import psutil


@dataclass(slots=True)
class Reaper:
    """The watching process, who was there before it, and which processes it has been told of."""

    process: subprocess.Popen[bytes]
    spared: frozenset[psutil.Process]
    told: set[int]

    def tell(self) -> None:
        """Name every process below this one: those that were there before, and what they have started, and the reaper left out."""
        pipe = self.process.stdin
        assert pipe is not None
        for child in self._begun():
            if child.pid not in self.told:
                pipe.write(f"{child.pid} {child.create_time()}\n".encode())
                self.told.add(child.pid)
        pipe.flush()

    def _begun(self) -> Iterator[psutil.Process]:
        for child in psutil.Process().children():
            if child.pid != self.process.pid and child not in self.spared:
                yield child
                with suppress(psutil.NoSuchProcess):
                    yield from child.children(recursive=True)

    def close(self) -> None:
        """End what is left of them now, and the reaper."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def watch() -> Reaper:
    """Start a reaper for this process, before what it is to end."""
    spared = frozenset(psutil.Process().children())
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and words
        [sys.executable, "-S", "-c", _SCRIPT, *(path for path in sys.path if path)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    return Reaper(process, spared, set())


def reap(lines: list[str]) -> int:
    """Kill the processes named "pid start-time", if they still are those; how many were."""
    killed = 0
    for line in lines:
        pid, started = line.split()
        try:
            process = psutil.Process(int(pid))
            if abs(process.create_time() - float(started)) < 1:
                process.kill()
                killed += 1
        except psutil.Error:
            continue
    return killed


def main() -> None:
    """Read until the other end is gone, then kill."""
    reap(list(sys.stdin))


_SCRIPT = "import sys; sys.path[:0] = sys.argv[1:]; from serving.engines.parts.reaper import main; main()"


if __name__ == "__main__":
    main()
