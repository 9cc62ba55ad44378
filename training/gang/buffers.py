"""The buffers of a model that move while it trains, such as the running statistics of normalisation layers.

Which they are is seen at the first micro-batch, by their values (batch normalisation writes behind autograd's back).
Each starts every micro-batch of a step from the same value and ends the step at the weighted mean over micro-batches;
one that is not a float (a counter) ends it as the first virtual rank left it. So a step's buffers, like its weights, do
not depend on who computed what. Buffers that no state dict keeps are caches, and left alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fabric.errors import InvalidRequest
from training.gang.members import Gang


class _Place(NamedTuple):
    name: str
    module: nn.Module
    key: str

    @property
    def tensor(self) -> Tensor:
        return self.module._buffers[self.key]  # noqa: SLF001  # a module may have put another tensor there

    @property
    def normalises(self) -> bool:
        """Whether it is a running statistic in training: it moves, even where it happens to stay the same."""
        return isinstance(self.module, _NormBase) and self.module.training


class Buffers:
    """The moving buffers of a model, from the start of a step to its end."""

    def __init__(self, model: nn.Module) -> None:
        self._places = [
            _Place(f"{path}.{key}" if path else key, module, key)
            for path, module in model.named_modules()
            for key, buffer in module._buffers.items()  # noqa: SLF001
            if buffer is not None and key not in module._non_persistent_buffers_set  # noqa: SLF001
        ]
        self._moving: list[int] = []
        self._before = [place.tensor.clone() for place in self._places]
        self._counted: list[Tensor] | None = None

    def begin(self) -> None:
        """A step begins: what the buffers hold now is what each of its micro-batches starts from."""
        for before, place in zip(self._before, self._places, strict=True):
            before.copy_(place.tensor)
        self._counted = None

    def look(self) -> None:
        """A micro-batch is over: note what moved, and what counters say, if it was the first of the step.

        Raises:
            InvalidRequest: code `buffer_moved_late`: a buffer moved that had not in the first micro-batch of all.
        """
        if self._counted is not None:
            return
        moved = [at for at, place in enumerate(self._places) if place.normalises or self._differs(at)]
        self._moving = self._moving or moved
        late = [self._places[at].name for at in moved if at not in self._moving]
        if late:
            raise InvalidRequest(
                f"buffer {late[0]} changed now but not in the first micro-batch: update it from the start, or register "
                "it with persistent=False if it is no state",
                code="buffer_moved_late",
                buffer=late[0],
            )
        self._counted = [self._places[at].tensor.clone() for at in self._counters]

    def floats(self) -> list[Tensor]:
        """The moving buffers that can be averaged, as the micro-batch left them."""
        return [self._places[at].tensor for at in self._averaged]

    def rewind(self) -> None:
        """Back to the start of the step, for the next micro-batch."""
        for at in self._moving:
            self._places[at].tensor.copy_(self._before[at])

    def agree(self, gang: Gang) -> None:
        """Take the counters of rank 0, which computes the first virtual rank."""
        if self._counted is None:  # at the end of the data this rank had nothing to compute
            self._counted = [self._places[at].tensor.clone() for at in self._counters]
        if gang.world == 1 or not self._counted:
            return
        told = torch.cat([counter.reshape(-1).to(torch.int64) for counter in self._counted])
        gang.finish(dist.broadcast(told, group=gang.data, group_src=0, async_op=True), "sharing counters")
        pieces = told.split([counter.numel() for counter in self._counted])
        self._counted = [piece.view(own.shape).to(own.dtype) for piece, own in zip(pieces, self._counted, strict=True)]

    def settle(self, means: Sequence[Tensor]) -> None:
        """The step is over: these are the means, in the order of `floats`."""
        for at, value in [
            *zip(self._averaged, means, strict=True),
            *zip(self._counters, self._counted or (), strict=True),
        ]:
            self._places[at].tensor.copy_(value)

    @property
    def _averaged(self) -> list[int]:
        return [at for at in self._moving if self._places[at].tensor.is_floating_point()]

    @property
    def _counters(self) -> list[int]:
        return [at for at in self._moving if not self._places[at].tensor.is_floating_point()]

    def _differs(self, at: int) -> bool:
        return not torch.equal(self._places[at].tensor, self._before[at])
