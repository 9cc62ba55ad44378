"""The gradients of a step over all ranks of a gang, of which each computes its share; and how long it computed."""

import time
from typing import Any, Protocol

from torch import nn

from training.gang.gradients import Overlapped, Reproducible
from training.gang.members import Gang
from training.gang.replicas import Replicas
from training.loop.virtual import Plan


class Planned(Protocol):
    """Who computes which micro-batches of a step."""

    def plan(self, step: int, parts: int) -> Plan:
        """Of a step of so many micro-batches."""


class Among:
    """Gradients over all ranks of a gang, of which this one computes its share."""

    def __init__(self, modules: list[Any], gang: Gang, shares: Planned, reproducible: Reproducible) -> None:
        whole = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
        is_bitwise = reproducible is Reproducible.BITWISE
        self._way: Replicas | Overlapped = Replicas(whole, gang) if is_bitwise else Overlapped(whole, gang)
        self._overlaps = not is_bitwise
        self.shares = shares
        self._lap_ns, self._counted, self._all, self._finish_ns = 0, 0, 0, 0
        self._since = 0

    def begin(self, step: int, parts: int) -> None:
        """A step of `parts` micro-batches over all ranks begins."""
        self._way.begin(self.shares.plan(step, parts))

    def forward(self, *, last: bool) -> None:
        """The script computes the next micro-batch from here on."""
        self._way.forward(last=last)
        self._is_last, self._since = last, time.perf_counter_ns()

    def backward(self, loss: Any, *, weight: float) -> None:
        """Add it. Reducing while the last one computes makes its time everybody's, so it is not counted then."""
        self._way.backward(loss, weight=weight)
        self._all += 1
        if not (self._overlaps and self._is_last):
            self._lap_ns += time.perf_counter_ns() - self._since
            self._counted += 1

    def skip(self, *, weight: float, step: int) -> bool:
        """Nothing to add; the others make the step, so this rank does."""
        self._way.skip(weight=weight, step=step)
        return True

    def finish(self) -> float:
        began = time.perf_counter_ns()
        loss = self._way.finish()
        self._finish_ns += time.perf_counter_ns() - began
        return loss

    def stepped(self) -> None:
        """All ranks have made the same step."""

    def take_lap_us(self) -> tuple[int, int]:
        """How long this rank computed since this was asked last (0 = can't be told), and until it had the result."""
        lap_us = self._lap_ns * self._all // max(1, self._counted) // 1000
        ended_us = lap_us + self._finish_ns // 1000
        self._lap_ns = self._counted = self._all = self._finish_ns = 0
        return lap_us, ended_us
