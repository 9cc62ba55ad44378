"""EXPERIMENTAL: a gang whose ranks form islands, one for each kind of device: `mix="islands"`.

Within an island gradients are reduced at every step over what its devices speak (NCCL, HCCL, gloo); islands only meet now
and then, over gloo (`training.gang.islands`). All count the same steps, of which each island takes a part that follows its speed
and learns from that part alone, so every sample is still seen once. Before the gang stops, the islands meet: what is saved
is what all have learned, and any gang, of one kind or several, goes on from it. An island that is lost without notice takes
what it learned since the last meeting with it.

On gloo this is tested; islands of NCCL and of HCCL beside each other were not run here.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch.distributed as dist
from torch import nn

from fabric.errors import FabricError
from training.gang.gradients import Reproducible
from training.gang.islands import Islands
from training.gang.members import Gang, PeerLost, Seat, backend_of_devices
from training.gang.reduction import Among
from training.gang.shares import Shares
from training.loop.virtual import Plan

EVERY: Final = 100
"""Steps from one meeting to the next, unless FABRIC_ISLANDS_EVERY says otherwise."""
EVERY_VARIABLE: Final = "FABRIC_ISLANDS_EVERY"
TRACKED_AS: Final = "fabric.islands"


class Island(NamedTuple):
    """Where a rank is: the island's own gang, and which ranks of the whole one it is made of."""

    kind: str
    gang: Gang
    ranks: tuple[int, ...]


class Archipelago:
    """The islands of a gang, as one rank sees them."""

    def __init__(self, gang: Gang, kinds: Sequence[str]) -> None:
        """Form the islands; all ranks call, with the kind of each rank's devices in order of rank."""
        self.kinds = dict.fromkeys(kinds)
        self._gang = gang
        self._meeting = dist.new_group(backend="gloo")
        for kind in self.kinds:
            ranks = tuple(rank for rank, own in enumerate(kinds) if own == kind)
            group = dist.new_group(list(ranks), backend=backend_of_devices())
            if gang.rank in ranks:
                seat = Seat(rank=ranks.index(gang.rank), world=len(ranks), master=gang.seat.master)
                self.island = Island(kind, gang.among(seat, group), ranks)

    @property
    def is_one(self) -> bool:
        """Whether all devices are of one kind, so that it is an ordinary gang."""
        return len(self.kinds) < 2  # noqa: PLR2004

    def islands(self, modules: list[Any], *, every: int) -> Islands:
        """The common weights of these modules."""
        return Islands(_whole(modules), self._gang.among(self._gang.seat, self._meeting), every=every)


class Apart:
    """Gradients of an island, from its part of a step, and its meetings with the others."""

    def __init__(
        self, modules: list[Any], island: Island, shares: Shares, islands: Islands, reproducible: Reproducible
    ) -> None:
        self._island, self._shares, self._islands = island, shares, islands
        self._way = Among(modules, island.gang, _Part(shares, island.ranks), reproducible)
        self._part, self._whole = 0, 1
        self.lost: FabricError | None = None
        """Another island was lost as they met: the step is this island's own, and whole."""

    def begin(self, step: int, parts: int) -> None:
        whole = self._shares.plan(step, parts)
        self._part, self._whole = sum(whole.shares[rank] for rank in self._island.ranks), whole.count
        if self._part:
            self._way.begin(step, parts)

    def forward(self, *, last: bool) -> None:
        self._way.forward(last=last)

    def backward(self, loss: Any, *, weight: float) -> None:
        """Add it; an island's mean is over its own part of the step."""
        self._way.backward(loss, weight=weight * self._whole / self._part)

    def skip(self, *, weight: float, step: int) -> bool:
        return self._way.skip(weight=weight * self._whole / self._part, step=step)

    def finish(self) -> float:
        """An island without a part in a short last step has no gradients, and changes nothing."""
        return self._way.finish() if self._part else 0.0

    def stepped(self) -> None:
        """The island's optimizer has stepped: meet the others if it is time."""
        try:
            self._islands.stepped(self._part / len(self._island.ranks))
        except PeerLost as lost:
            self.lost = lost

    def take_lap_us(self) -> tuple[int, int]:
        return self._way.take_lap_us()


class _Part(NamedTuple):
    """What an island's ranks compute of a step, as plans of their own."""

    shares: Shares
    ranks: tuple[int, ...]

    def plan(self, step: int, parts: int) -> Plan:
        whole = self.shares.plan(step, parts)
        return Plan(tuple(whole.shares[rank] for rank in self.ranks))


def _whole(modules: list[Any]) -> Any:
    return modules[0] if len(modules) == 1 else nn.ModuleList(modules)
