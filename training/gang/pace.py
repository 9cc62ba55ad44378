"""How fast each kind of device was found to be at this very run: what a mixed gang is judged by once it has run.

Before the first step there are only the makers' figures (`fabric.accelerators.REFERENCE_SPEEDS`); afterwards what was measured
goes with the checkpoint, so that the next attempt, on whatever it gets, is judged by it. What a result took besides the
slowest rank's computing is the exposed communication of gangs that are mixed as this one is. Pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fabric.accelerators import REFERENCE_SPEEDS
from fabric.errors import InvalidRequest
from training.gang.mixing import Forecast, Member, Mix, admit

_SMOOTHING: Final = 0.3
_FORGETTING: Final = 1.02
"""By so much a step the least communication that was seen grows, until it is seen again."""

_QUICK_US: Final = 20_000
"""Steps are quick while so much time holds several: ranks then agree once in it."""
_SILENT_STEPS_MAX: Final = 15


class Pace:
    """What is known of the kinds that a gang is made of."""

    def __init__(self, kinds: Sequence[str]) -> None:
        """`kinds` are the ranks' devices, in order of rank."""
        self._kinds = tuple(kinds)
        self._speeds: dict[str, float] = {}
        """By kind, in micro-batches a second of one rank."""
        self._exposed_s: dict[str, float] = {}
        """By what a gang is made of."""

    @property
    def _name(self) -> str:
        return "+".join(sorted(set(self._kinds)))

    def note(self, laps_us: Sequence[int], *, shares: Sequence[int], ended_us: int) -> None:
        """How long each rank computed its share of a step (0 = can't be told), and when this one had the result.

        Ranks also wait for each other's data and for whatever else a script does, which no other gang would spare them: so
        the least of late counts as communication.
        """
        if len(laps_us) != len(shares) or not all(laps_us):
            return
        for kind in set(self._kinds):
            own = [share * 1e6 / lap for at, share, lap in zip(self._kinds, shares, laps_us, strict=True) if at == kind]
            self._speeds[kind] = _smoothed(self._speeds.get(kind), sum(own) / len(own))
        exposed_s = max(0.0, (ended_us - max(laps_us)) / 1e6)
        self._exposed_s[self._name] = min(exposed_s, self._exposed_s.get(self._name, exposed_s) * _FORGETTING)

    def told(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {"speeds": dict(self._speeds), "exposed_s": dict(self._exposed_s)}

    def take(self, told: Mapping[str, Any]) -> None:
        """What an earlier attempt has learned; all ranks take the same."""
        self._speeds = {str(kind): float(speed) for kind, speed in told.get("speeds", {}).items() if speed > 0}
        self._exposed_s = {str(name): float(took) for name, took in told.get("exposed_s", {}).items() if took >= 0}

    def check(self, *, mix: Mix, count: int) -> None:
        """Whether such a gang may be at all, however fast: nobody knows yet whether it resumes, and how it shares its work.

        Raises:
            InvalidRequest: `mix_not_asked` or `mix_across_vendors`.
        """
        try:
            self.admit(mix=mix, count=count)
        except InvalidRequest as refused:
            if refused.code != "mix_inefficient":
                raise

    def admit(self, *, mix: Mix, count: int) -> Forecast | None:
        """Whether such a gang is worth it, by what is known; None if all devices are of one kind.

        Raises:
            InvalidRequest: `mix_not_asked`, `mix_across_vendors` or `mix_inefficient`, with the better alternative.
        """
        if len(set(self._kinds)) < 2:  # noqa: PLR2004
            return None
        measured = set(self._kinds) <= self._speeds.keys()
        speeds = self._speeds if measured else REFERENCE_SPEEDS
        members = [Member(accelerator=kind, speed=speeds.get(kind, 1.0)) for kind in self._kinds]
        exposed_s = self._exposed_s.get(self._name, 0.0) if measured else 0.0
        return admit(members, mix=mix, count=count, exposed_s=exposed_s)


def silent_steps(laps_us: Sequence[int]) -> int:
    """How many steps to make before agreeing again: none, unless they are so quick that agreeing would be felt."""
    slowest_us = max(laps_us)
    return min(_QUICK_US // slowest_us, _SILENT_STEPS_MAX) if slowest_us and min(laps_us) else 0


def _smoothed(before: float | None, measured: float) -> float:
    return measured if before is None else before + _SMOOTHING * (measured - before)
