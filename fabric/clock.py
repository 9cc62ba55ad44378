"""Time as a parameter: the core is handed `now_us`, and only the shells own a clock.

`SteadyClock` reads the wall once and then counts monotonic time, so that a wall clock that is set back or jumps ahead
while the gate runs neither un-expires a lot nor charges anybody for the jump. After a restart it goes on from the
journal's last time, if the wall says less: time neither runs backwards in a journal nor stands still in it until the
wall has caught up, or whatever runs would be free until then and no deadline would come.
"""

import time
from typing import Protocol

from fabric.units import Micros


class Clock(Protocol):
    """Anything that tells the time."""

    def now_us(self) -> Micros:
        """Microseconds since the Unix epoch, never less than the last answer."""


class SteadyClock:
    """Wall time at the start plus monotonic time since."""

    def __init__(self) -> None:
        self._origin_us = _wall_us() - time.monotonic_ns() // 1000

    def read_anew(self) -> None:
        """Begin with the wall as it is now. Only for a clock that nobody has gone by yet."""
        self._origin_us = _wall_us() - time.monotonic_ns() // 1000

    def wall_ahead_us(self) -> int:
        """How far the wall is ahead of this clock: what it was set, or has jumped, since this one began."""
        return _wall_us() - self.now_us()

    def now_us(self) -> Micros:
        return Micros(self._origin_us + time.monotonic_ns() // 1000)

    def go_on_from(self, at_us: int) -> None:
        """It is this late already, if not later."""
        self._origin_us = max(self._origin_us, at_us - time.monotonic_ns() // 1000)


def _wall_us() -> int:
    return time.time_ns() // 1000


class VirtualClock:
    """A clock that moves only when it is told to: for tests and simulations."""

    def __init__(self, now_us: int = 0) -> None:
        self._now_us = now_us

    def now_us(self) -> Micros:
        return Micros(self._now_us)

    def advance(self, *, seconds: float = 0, us: int = 0) -> None:
        self._now_us += round(seconds * 1_000_000) + us
