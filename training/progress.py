"""What a run tells of itself: to the fabric (`fabric top`), and to trackers. Cheap enough to be told at every step.

Values that lie on a device are left there and fetched together now and then, because fetching one waits for everything
the device was given before.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from training.timers import Timers

_TELL_S: Final = 1.0
"""Values on a device are fetched at most this often."""


class Progress:
    """Collects what is logged, and passes it on."""

    def __init__(
        self,
        report: Callable[[Mapping[str, object]], None],
        scalars: Callable[[int, Mapping[str, float]], None],
        timers: Timers,
    ) -> None:
        """Pass on to `report` (the fabric: step, totals, loss, throughput, timers) and `scalars` (trackers: by step)."""
        self._report, self._scalars, self._timers = report, scalars, timers
        self._waiting: list[tuple[int, dict[str, Any]]] = []
        self._told_at = time.monotonic()
        self._samples = 0
        self._counted_at = time.monotonic()
        self._loss: float | None = None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Take numbers, or tensors of one element."""
        self._waiting.append((step, {name: _detached(value) for name, value in values.items()}))
        on_device = any(not isinstance(value, int | float) for value in self._waiting[-1][1].values())
        if not on_device or time.monotonic() - self._told_at >= _TELL_S:
            self._pass_on()

    def stepped(self, step: int, *, total: int | None, samples: int) -> None:
        """A step is over."""
        self._samples += samples
        now = time.monotonic()
        facts: dict[str, object] = {"step": step} | dict(self._timers.seconds().items())
        if total is not None:
            facts["steps_total"] = total
        if self._loss is not None:
            facts["loss"] = self._loss
        if now - self._counted_at >= _TELL_S:
            facts["throughput"] = self._samples / (now - self._counted_at)
            self._samples, self._counted_at = 0, now
        self._report(facts)

    def flush(self) -> None:
        """Pass on all that waits."""
        self._pass_on()

    def _pass_on(self) -> None:
        waiting, self._waiting, self._told_at = self._waiting, [], time.monotonic()
        for step, values in waiting:
            numbers = {name: float(value) for name, value in values.items()}
            self._loss = numbers.get("loss", self._loss)
            self._scalars(step, numbers)


def _detached(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return float(value)
    return float(value.detach()) if value.device.type == "cpu" else value.detach().clone()


def say(line: str) -> None:
    """One line in the job's log."""
    sys.stderr.write(f"[fabric] {line}\n")
    sys.stderr.flush()
