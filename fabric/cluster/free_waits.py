"""How long an account's jobs may wait on devices that nobody pays for: so much at once, and the same again in an hour.

What is done before a job burns (`preparation`) takes as long as somebody else's server wants it to, so without a bound a
tenant whose packages come slowly would have devices for nothing, again and again. Knows no job, and no Ray.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

DEVICE_S: Final = 480.0
"""For each account: four devices for two minutes, say."""
REGAINED_S: Final = 3_600.0
"""In which all of it is there again."""


class FreeWaits:
    """What is left of it, by account. One event loop's."""

    def __init__(self, *, device_s: float = DEVICE_S, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._most, self._monotonic = device_s, monotonic
        self._left: dict[str, tuple[float, float]] = {}
        """(how much was left, when); who isn't in it has all."""

    @contextmanager
    def waiting(self, account_id: str, *, devices: int, within_s: float) -> Iterator[float]:
        """Inside, a job waits: for so many seconds at most, `within_s` or what is left. They count as waited from the beginning
        on, so that jobs side by side have no more than jobs in a row.
        """
        began, left = self._monotonic(), self._now(account_id)
        seconds = max(0.0, min(within_s, left / max(1, devices)))
        self._keep(account_id, left - seconds * devices)
        try:
            yield seconds
        finally:
            waited_s = self._monotonic() - began
            self._keep(account_id, self._now(account_id) + (seconds - waited_s) * devices)

    def _now(self, account_id: str) -> float:
        now = self._monotonic()
        left, since = self._left.get(account_id, (self._most, now))
        return min(self._most, left + (now - since) * self._most / REGAINED_S)

    def _keep(self, account_id: str, left: float) -> None:
        self._left[account_id] = (left, self._monotonic())
        for name in [name for name in self._left if self._now(name) >= self._most]:
            del self._left[name]
