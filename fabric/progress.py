"""How far a job is, by its own word: for people to look at, never to bill or to decide by.

A job tells as often as it likes; what is passed on is the newest word, at a rate that doesn't depend on the job. Whole
numbers only: times in µs, a loss in millionths. Knows neither Ray nor the gate.
"""

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Final

import msgspec

TIMERS: Final = ("waiting_data", "collective", "checkpoint", "idle", "staging_saved")
"""What a job may say its time goes into, in seconds since its attempt began."""
WARNING_CHARS_MAX: Final = 1_000
_NUMBER_MAX: Final = 2.0**62
_PACE_S: Final = 60.0
"""How far back the pace reaches from which the rest is reckoned."""
_MARKS_MAX: Final = 64


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """The newest word of a job."""

    step: int = 0
    steps_total: int = 0
    loss_micro: int | None = None
    throughput_milli: int = 0
    eta_us: int | None = None
    timers: dict[str, int] = {}
    warning: str = ""
    """What its owner should see to while there is time, in the platform's words; "" = nothing."""


class Reports:
    """Takes what a job tells, and knows its pace. Not for several threads at once."""

    def __init__(self) -> None:
        self.latest = Progress()
        self.count = 0
        """How often it has told."""
        self._warning = ""
        self._marks: deque[tuple[float, int]] = deque(maxlen=_MARKS_MAX)

    def take(self, said: Mapping[str, object], *, now_s: float | None = None) -> None:
        """Take one report: step, steps_total, loss, throughput, and timers in seconds. What is no number is left out, and
        what isn't said this time stays as it was.
        """
        now_s = time.monotonic() if now_s is None else now_s
        before = self.latest
        step = _whole(said.get("step"), 1, before.step)
        total = _whole(said.get("steps_total"), 1, before.steps_total)
        if not self._marks or step != self._marks[-1][1]:
            self._mark(now_s, step)
        loss = _number(said["loss"]) if "loss" in said else None
        self.latest = Progress(
            step=step,
            steps_total=total,
            loss_micro=before.loss_micro if "loss" not in said else None if loss is None else _clipped(loss * 1e6),
            throughput_milli=_whole(said.get("throughput"), 1000, before.throughput_milli),
            eta_us=self._eta_us(step, total),
            warning=before.warning,
            timers={**before.timers, **{name: _whole(said[name], 1_000_000, 0) for name in TIMERS if name in said}},
        )
        self.count += 1

    def warn(self, message: str) -> bool:
        """From now on this is what its owner is told; "" = nothing any more. Whether that is new."""
        message, before = message[:WARNING_CHARS_MAX], self._warning
        self._warning = message
        self.latest = msgspec.structs.replace(self.latest, warning=message)
        return message != before

    def relay(self, told: Progress) -> None:
        """What another process told of the job, which knows nothing of what this one warns of."""
        self.latest = msgspec.structs.replace(told, warning=told.warning or self._warning)

    def _mark(self, now_s: float, step: int) -> None:
        marks = self._marks
        if marks and step < marks[-1][1]:
            marks.clear()
        if len(marks) > 1 and now_s - marks[-2][0] < _PACE_S / _MARKS_MAX:
            marks.pop()  # a job that tells a thousand times a second has a pace all the same
        marks.append((now_s, step))
        while len(marks) > 2 and now_s - marks[0][0] > _PACE_S:  # noqa: PLR2004
            marks.popleft()

    def _eta_us(self, step: int, total: int) -> int | None:
        if not total or len(self._marks) < 2:  # noqa: PLR2004
            return None
        (from_s, first), (until_s, last) = self._marks[0], self._marks[-1]
        if last <= first or until_s <= from_s:
            return None
        return _clipped(max(total - step, 0) * (until_s - from_s) / (last - first) * 1e6)


def _number(given: object) -> float | None:
    """Anything that is a finite number: a float, a NumPy scalar, a tensor of one element."""
    try:
        value = float(given)  # type: ignore[arg-type]  # whatever it is, it may know how to be a float
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return value if math.isfinite(value) else None


def _whole(given: object, times: int, otherwise: int) -> int:
    value = None if given is None else _number(given)
    return otherwise if value is None or value < 0 else _clipped(value * times)


def _clipped(value: float) -> int:
    return round(max(-_NUMBER_MAX, min(value, _NUMBER_MAX)))
