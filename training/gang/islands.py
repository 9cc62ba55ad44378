"""EXPERIMENTAL: islands that train apart and meet now and then, for kinds of devices whose collectives don't interoperate.

Each island (a gang of one kind, or one process; `training.gang.island_gang` makes them) takes `every` optimizer steps of its
own on its own data. Then all compare: how far each has come from the last common weights, weighted by the samples it
saw, is averaged through host memory over gloo, and an outer Nesterov step moves the common weights by that. So a link
carries 1/every of the bytes, and a slower island does fewer steps between meetings instead of holding the others up.
(DiLoCo, arXiv 2311.08105; outer learning rate and momentum are its defaults.)

It is another optimizer, not the same run spread out: no bits are promised, and how well it learns depends on the model.
Weights after a meeting are the same bits on all islands. Tracked in a checkpoint, a run goes on after an eviction as it was.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fabric.errors import InvalidRequest
from training.gang.members import Gang

OUTER_LEARNING_RATE: Final = 0.7
OUTER_MOMENTUM: Final = 0.9


class Islands:
    """The common weights as an island knows them, and when it meets the others."""

    def __init__(
        self,
        model: nn.Module,
        gang: Gang,
        *,
        every: int = 100,
        learning_rate: float = OUTER_LEARNING_RATE,
        momentum: float = OUTER_MOMENTUM,
    ) -> None:
        """Begin from the model's weights, which all islands must share; `gang` has all ranks that meet.

        Where an island has several ranks, each counts its part of the island's samples.

        Raises:
            InvalidRequest: code `islands_invalid`.
        """
        if every < 1 or not 0 <= momentum < 1 or learning_rate <= 0:
            raise InvalidRequest(
                f"every={every}, learning_rate={learning_rate}, momentum={momentum}: meet after at least 1 step, with a positive "
                "rate and a momentum from 0 to below 1",
                code="islands_invalid",
            )
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._gang, self._every = gang, every
        self._learning_rate, self._momentum = learning_rate, momentum
        self._common = self._weights()
        self._speed = torch.zeros_like(self._common)
        self._steps, self._samples = 0, 0.0
        self._meets_next = self._was_loaded = False

    def begin(self) -> None:
        """The model has the weights that all islands begin with, if no checkpoint brought the common ones back."""
        if not self._was_loaded:
            self._common = self._weights()

    def meet_next(self) -> None:
        """Meet after the next step, however many there were. All islands say so before the same step."""
        self._meets_next = True

    def stepped(self, samples: float) -> bool:
        """After each optimizer step of this island, on so many samples. True if the islands met, and weights changed.

        Raises:
            PeerLost: another island is gone; the weights are this island's own.
        """
        self._steps += 1
        self._samples += samples
        if self._steps < self._every and not self._meets_next:
            return False
        self._move(self._exchanged())
        return True

    def last_meeting(self) -> Callable[[], None] | None:
        """After the last step of all: hear how far the others came, and return what brings the weights there.

        None if nothing was learned since the last meeting.

        Raises:
            PeerLost: another island is gone; nothing has changed.
        """
        if self._steps == 0:
            return None
        moved = self._exchanged()
        return lambda: self._move(moved)

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint has to bring back besides the model and its optimizer. Its tensors are never changed."""
        return {"common": self._common, "speed": self._speed, "steps": self._steps, "samples": self._samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._common, self._speed = state["common"].clone(), state["speed"].clone()
        self._steps, self._samples = int(state["steps"]), float(state["samples"])
        self._was_loaded = True

    def _exchanged(self) -> Tensor:
        """How far all have come since the last meeting. What is exchanged lies on the host, in float32."""
        moved = (self._common - self._weights()) * self._samples
        total = torch.cat([moved, torch.tensor([float(self._samples)])])
        if self._gang.world > 1:
            work = dist.all_reduce(total, group=self._gang.data, async_op=True)
            self._gang.finish(work, "meeting the other islands")
        return total[:-1] / total[-1].clamp(min=torch.finfo(total.dtype).tiny)

    def _move(self, moved: Tensor) -> None:
        """The outer step."""
        self._speed = self._momentum * self._speed + moved
        self._common = self._common - self._learning_rate * (moved + self._momentum * self._speed)
        self._give_back()
        self._steps, self._samples, self._meets_next = 0, 0.0, False

    def _weights(self) -> Tensor:
        return torch.cat([parameter.detach().float().reshape(-1).cpu() for parameter in self._parameters])

    def _give_back(self) -> None:
        sizes = [parameter.numel() for parameter in self._parameters]
        with torch.no_grad():
            for parameter, piece in zip(self._parameters, self._common.split(sizes), strict=True):
                parameter.copy_(piece.view_as(parameter))
