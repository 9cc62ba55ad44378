"""Where a run's time goes, by its own account: waiting for data, checkpoints, collectives, and computing, which is the rest.

These numbers explain a bill, they never make one: that is done from the devices' counters.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

Part = Literal["waiting_data", "checkpoint", "collective", "idle"]
PARTS: Final[tuple[Part, ...]] = ("waiting_data", "checkpoint", "collective", "idle")


class Timers:
    """Seconds by part since the run began in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._seconds: dict[Part, float] = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def within(self, part: Part) -> Iterator[None]:
        """Count the time inside for `part`."""
        began = self._clock()
        try:
            yield
        finally:
            self.add(part, self._clock() - began)

    def add(self, part: Part, seconds: float) -> None:
        self._seconds[part] += seconds

    @property
    def total_s(self) -> float:
        return self._clock() - self._began

    @property
    def computing_s(self) -> float:
        """What is left when all that is known is taken off."""
        return max(0.0, self.total_s - sum(self._seconds.values()))

    def seconds(self) -> dict[Part, float]:
        """A copy of the counts."""
        return dict(self._seconds)
