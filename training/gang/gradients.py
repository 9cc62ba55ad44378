"""The gradients of one step, from the micro-batches that this rank computes and those of its peers.

`bitwise`: every micro-batch's gradient is a leaf of a fixed tree (`training.gang.replicas`), so the result does not depend on
who computed what. `fast`: DDP's overlapped reduction (or FSDP2's) of losses weighted by samples: right to rounding, not to
the bit. Both see every sample once and weigh uneven shares right. Knows models and gangs; the data behind a micro-batch
are the caller's.
"""

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate import replicate  # DDP in place: state dicts keep their names
from torch.distributed.fsdp import FSDPModule

from fabric.errors import InvalidRequest
from training.gang.members import Gang
from training.gang.replicas import Replicas
from training.loop.virtual import Micro, Plan, VirtualRanks

LossOf = Callable[[Micro], Tensor]
"""The mean loss over the samples of a micro-batch: a scalar that gradients flow from."""
_OF_THE_NETWORK: Final = ("gloo", "nccl", "hccl", "connection", "process group", "timed out", "socket")


class Reproducible(StrEnum):
    """What is promised about a step's result."""

    BITWISE = "bitwise"
    FAST = "fast"


class Computed(NamedTuple):
    """What came of a step; the gradients are in `.grad`, ready for clipping and the optimizer."""

    loss: float
    """The mean over the global batch: the same on all ranks."""
    lap_us: int
    """How long this rank computed its share, without waiting for anybody; 0 = can't be told apart."""


class _Way(Protocol):
    def begin(self, plan: Plan) -> None: ...
    def forward(self, *, last: bool) -> None: ...
    def backward(self, loss: Tensor, *, weight: float) -> None: ...
    def skip(self, *, weight: float, step: int) -> None: ...
    def finish(self) -> float: ...


class Gradients:
    """Computes the steps of a model with the ranks of a gang. `plan` may be replaced between steps."""

    def __init__(
        self,
        model: nn.Module,
        *,
        virtual: VirtualRanks,
        gang: Gang,
        reproducible: Reproducible = Reproducible.BITWISE,
    ) -> None:
        """Take the model as it is: replicated (plain), or sharded by FSDP2's `fully_shard`, which needs `fast`.

        Raises:
            InvalidRequest: code `bitwise_needs_replicas` for a sharded model, `shares_invalid` for fewer virtual ranks
                than there are workers.
        """
        sharded = isinstance(model, FSDPModule)
        if sharded and reproducible is Reproducible.BITWISE:
            raise InvalidRequest(
                "a model sharded by FSDP2 reduces its gradients in an order of its own: use reproducible=fast, or "
                "replicate the model",
                code="bitwise_needs_replicas",
            )
        if virtual.count < gang.world:
            raise InvalidRequest(
                f"{virtual.count} virtual ranks can't be shared by {gang.world} workers: use at least as many",
                code="shares_invalid",
            )
        self._virtual, self._gang = virtual, gang
        self._overlaps = reproducible is Reproducible.FAST and gang.world > 1
        self.plan = Plan.even(virtual.count, gang.world)
        self._way: _Way = Replicas(model, gang) if reproducible is Reproducible.BITWISE else Overlapped(model, gang)

    def compute(self, step: int, loss_of: LossOf) -> Computed:
        """The gradients of the whole step, in `.grad`; parameters that no micro-batch used have None.

        Raises:
            PeerLost: a rank is gone. No parameter has changed, and the step can be computed again by others.
        """
        vranks = self.plan.block(self._gang.rank)
        began = time.perf_counter_ns()
        self._way.begin(self.plan)
        alone_ns = began
        for vrank in vranks:
            micro = self._virtual.micro(step, vrank)
            self._virtual.enter(step, vrank)
            last = vrank == vranks[-1]
            if last and self._overlaps:
                alone_ns = time.perf_counter_ns()
            self._way.forward(last=last)
            self._way.backward(loss_of(micro), weight=self._virtual.weight(micro))
        if not self._overlaps:
            lap_ns = time.perf_counter_ns() - began
        else:  # the last backward waits for peers: judge by those before it
            lap_ns = (alone_ns - began) * len(vranks) // max(1, len(vranks) - 1)
        loss = self._way.finish()
        self._virtual.leave(step)
        return Computed(loss, lap_ns // 1000)


class Overlapped:
    """Gradients reduced by torch while the last micro-batch still computes. Uneven shares are fine."""

    def __init__(self, model: nn.Module, gang: Gang) -> None:
        self._gang = gang
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._model: Any = model
        if gang.world > 1 and not isinstance(model, FSDPModule):
            replicate(model, process_group=gang.data, find_unused_parameters=True)
        if isinstance(model, FSDPModule):
            # A rank with more micro-batches must not gather more often: stay whole from the first forward to the last backward.
            for part in model.modules():
                if isinstance(part, FSDPModule):
                    part.set_reshard_after_forward(False, recurse=False)

    def begin(self, plan: Plan) -> None:
        """A step begins. Shares only change the weights, unless some rank has none and so no backward to reduce in."""
        self._reduces_late = self._gang.world > 1 and 0 in plan.shares
        for parameter in self._parameters:
            parameter.grad = None
        self._loss = 0.0

    def forward(self, *, last: bool) -> None:
        """A micro-batch begins; only the last one of a step reduces."""
        if self._gang.world > 1:
            self._model.set_requires_gradient_sync(last and not self._reduces_late)
            if isinstance(self._model, FSDPModule):
                self._model.set_reshard_after_backward(last)

    def backward(self, loss: Tensor, *, weight: float) -> None:
        """Add a micro-batch. Both DDP and FSDP2 divide by the world, which the weight undoes."""
        self._loss += weight * float(loss.detach())
        try:
            (loss * (weight * self._gang.world)).backward()
        except RuntimeError as error:
            if any(word in str(error).lower() for word in _OF_THE_NETWORK):
                raise self._gang.lost("reducing gradients") from error
            raise

    def skip(self, *, weight: float, step: int) -> None:  # noqa: ARG002
        """The script gave no loss for a micro-batch.

        Raises:
            InvalidRequest: `loss_missing`: peers reduce with the backward of each rank's last one, and would wait for ever.
        """
        if self._gang.world > 1:
            raise InvalidRequest(
                f"a batch of step {step} has no loss, and with reproducible=fast the other ranks wait for its backward: give "
                "run.step a loss for every batch (0 * loss where one shall not count), or use reproducible=bitwise",
                code="loss_missing",
                step=step,
            )

    def finish(self) -> float:
        """The loss over all ranks."""
        total = torch.tensor([self._loss], device=self._parameters[0].device)
        if self._gang.world > 1:
            with self._gang.guarded("reducing the loss"):
                if self._reduces_late:
                    self._reduce()
                dist.all_reduce(total, group=self._gang.data)
        return float(total)

    def _reduce(self) -> None:
        """What torch does amid the backward, once all ranks are through with theirs."""
        used = torch.tensor(
            [float(weight.grad is not None) for weight in self._parameters], device=self._parameters[0].device
        )
        dist.all_reduce(used, group=self._gang.data)
        for weight, times in zip(self._parameters, used.tolist(), strict=True):
            if times:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                dist.all_reduce(weight.grad, group=self._gang.data)
                weight.grad /= self._gang.world
