"""The micro-batches of a run as they are given out: which one the script has, and what is to become of its loss."""

from collections.abc import Iterator
from typing import Any

from fabric.errors import InvalidRequest
from training.loop.portions import Portion
from training.loop.stepping import Stepping
from training.timers import Timers


class Feeding:
    """Gives out one micro-batch after the other. All of it happens in the thread that loops."""

    def __init__(self, stepping: Stepping, timers: Timers) -> None:
        self._stepping, self._timers = stepping, timers
        self.ranks: Any = None
        """The run's virtual ranks, whose random numbers a micro-batch is computed with; None = it has none."""
        self._portion: Portion | None = None
        self._losses, self._is_fresh = 0, True

    def next(self, portions: Iterator[Portion]) -> Portion | None:
        """The next one, ready to be computed; None at the end."""
        with self._timers.within("waiting_data"):
            portion = self._portion = next(portions, None)
        if portion is None:
            return None
        if self._is_fresh:
            self._is_fresh = False
            self._stepping.way.begin(portion.step, portion.parts)
        if self.ranks is not None:
            self.ranks.enter(portion.step, portion.vrank)
        if not portion.is_idle:
            self._stepping.way.forward(last=portion.is_last)
        return portion

    def taken(self) -> Portion:
        """The one that the script has, as it gives its loss.

        Raises:
            InvalidRequest: `step_without_batch`: it has none, or gave it already.
        """
        portion, self._portion = self._portion, None
        if portion is None:
            raise InvalidRequest("run.step takes one loss for each batch of run.batches", code="step_without_batch")
        self._losses += 1
        return portion

    def passed_over(self) -> Portion | None:
        """The one that the script has given no loss for: it has no part in its step. None if it gave it.

        Raises:
            InvalidRequest: `loss_missing`: here it must have one.
        """
        portion, self._portion = self._portion, None
        if portion is not None:
            weight = portion.samples / portion.step_samples
            self._losses += portion.is_idle or self._stepping.way.skip(weight=weight, step=portion.step)
        return portion

    def end_step(self) -> bool:
        """The step has had its last one; whether there is anything to make it of."""
        losses, self._losses, self._is_fresh = self._losses, 0, True
        return losses > 0
