"""A step's gradients from its virtual ranks, summed in the fixed tree of `training.loop.fold`: the same bits in any gang."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from training.gang.members import Gang, Seat
from training.gang.replicas import Replicas
from training.loop.virtual import Plan

_PATIENCE_S = 120.0


class Folded:
    """A process alone that computes all virtual ranks of a step, one after the other."""

    def __init__(self, modules: Sequence[Any]) -> None:
        """Take the modules whose gradients are folded."""
        whole = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
        self._replicas = Replicas(whole, Gang(Seat(), timeout_s=_PATIENCE_S))

    def begin(self, _step: int, parts: int) -> None:
        self._replicas.begin(Plan.even(parts, 1))

    def forward(self, *, last: bool) -> None:
        self._replicas.forward(last=last)

    def backward(self, loss: Any, *, weight: float) -> None:
        self._replicas.backward(loss, weight=weight)

    def skip(self, *, weight: float, step: int) -> bool:
        """As in a gang: the step is made all the same."""
        self._replicas.skip(weight=weight, step=step)
        return True

    def finish(self) -> float:
        return self._replicas.finish()

    def stepped(self) -> None:
        """Nobody to tell."""
