"""One optimizer step from the losses of its micro-batches: backward, weights, scaler, clipping, schedule.

A mean loss over part of a step counts by its share of the step's samples, so that uneven parts add up to the mean over
all of them. A loss that isn't finite ends the run before anything is changed by it. On a device that computes ahead the
loss is looked at one step later, because waiting for it would idle the device; what it spoiled is not saved.
"""

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from fabric.errors import JobFailed

_LEFT_OUT_MAX: Final = 30
"""So many steps in a row a scaler may leave out: from 65,536 it has halved itself to nothing by then."""


class Way(Protocol):
    """How gradients come about: alone, or with the other ranks of a gang."""

    def begin(self, step: int, parts: int) -> None:
        """A step of `parts` micro-batches begins, over all processes."""

    def forward(self, *, last: bool) -> None:
        """The script computes the next micro-batch of this process, its `last` one of the step or not."""

    def backward(self, loss: Any, *, weight: float) -> None:
        """Add the next micro-batch."""

    def skip(self, *, weight: float, step: int) -> bool:
        """The script gave no loss for the micro-batch. Whether the step is to be made all the same, if there is no other.

        Raises:
            InvalidRequest: `loss_missing`: without it the other ranks would wait.
        """

    def finish(self) -> object:
        """All of this process's micro-batches are in: the gradients of the whole step are in `.grad` now."""

    def stepped(self) -> None:
        """The optimizers have changed the weights by them."""


class Alone:
    """One process, one micro-batch a step or a plain sum of several."""

    def begin(self, step: int, parts: int) -> None:
        """Nothing to prepare."""

    def forward(self, *, last: bool) -> None:
        """Nothing to prepare."""

    def backward(self, loss: Any, *, weight: float) -> None:
        (loss if weight == 1 else loss * weight).backward()

    def skip(self, *, weight: float, step: int) -> bool:  # noqa: ARG002
        return False

    def finish(self) -> None:
        """Nothing to wait for."""

    def stepped(self) -> None:
        """Nobody to tell."""


class Finite:
    """Looks at losses: at once on the CPU, one step late on a device."""

    def __init__(self, *, leaves_out: bool = False) -> None:
        """`leaves_out`: a scaler leaves out steps whose gradients are infinite, so some losses may be, but not all."""
        self._late: tuple[int, Any] | None = None
        self._leaves_out = leaves_out
        self._bad: list[int] = []
        """Steps in a row whose loss was not finite."""

    def look(self, loss: Any, *, step: int) -> None:
        """Take this step's loss.

        Raises:
            JobFailed: `loss_not_finite`, naming the step.
        """
        self.settle()
        if hasattr(loss, "detach") and loss.device.type != "cpu":
            self._late = (step, loss.detach().clone())
        elif not math.isfinite(value := float(loss.detach() if hasattr(loss, "detach") else loss)):
            self._note(step, value)
        elif step not in self._bad:
            self._bad.clear()

    def _note(self, step: int, value: float) -> None:
        self._bad += [step] if step not in self._bad else []
        if not self._leaves_out or len(self._bad) > _LEFT_OUT_MAX:
            raise _diverged(step, value, len(self._bad))

    def settle(self) -> None:
        """Look at the one that is still to be looked at."""
        late, self._late = self._late, None
        if late is not None and not math.isfinite(value := float(late[1])):
            self._note(late[0], value)
        elif late is not None and late[0] not in self._bad:
            self._bad.clear()

    def is_poisoned(self) -> bool:
        """Whether the newest loss is not finite: then its step must not be kept."""
        late = self._late
        return not self._leaves_out and late is not None and not math.isfinite(float(late[1]))


class Stepping:
    """Turns losses into optimizer steps."""

    def __init__(
        self,
        *,
        optimizers: Iterable[Any],
        scheduler: Any = None,
        scaler: Any = None,
        clip_norm: float | None = None,
        before_update: Callable[[], None] | None = None,
    ) -> None:
        self._optimizers, self._scheduler, self._scaler = list(optimizers), scheduler, scaler
        self._clip_norm, self._before_update = clip_norm, before_update
        self.way: Way = Alone()
        is_enabled = getattr(scaler, "is_enabled", lambda: scaler is not None)  # a scaler around torch's may not say
        self.finite = Finite(leaves_out=bool(is_enabled()))

    def add(self, loss: Any, *, step: int, weight: float) -> None:
        """Backward of a micro-batch's mean loss, whose samples are `weight` of the step's."""
        self.finite.look(loss, step=step)
        self.way.backward(loss if self._scaler is None else self._scaler.scale(loss), weight=weight)

    def update(self) -> None:
        """All micro-batches are in: change the weights, and the schedule."""
        self.way.finish()
        for optimizer in self._optimizers:
            self._clip(optimizer)
            if self._scaler is None:
                optimizer.step()
            else:
                self._scaler.step(optimizer)
        if self._scaler is not None:
            self._scaler.update()
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self._scheduler is not None:
            self._scheduler.step()
        self.way.stepped()

    def _clip(self, optimizer: Any) -> None:
        if self._clip_norm is None and self._before_update is None:
            return
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        if self._before_update is not None:
            self._before_update()
        if self._clip_norm is not None:
            from torch.nn.utils import clip_grad_norm_  # noqa: PLC0415  # not loaded for jobs that train nothing

            clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], self._clip_norm)


def _diverged(step: int, value: float, in_a_row: int) -> JobFailed:
    many = f" ({in_a_row} in a row: the scaler can't mend that)" if in_a_row > 1 else ""
    return JobFailed(
        f"the loss of step {step} is {value}{many}: nothing was changed by it, and the state before it is kept. Lower the learning "
        "rate, clip the gradients or look at that step's data, and resume",
        code="loss_not_finite",
        step=step,
        loss=str(value),
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether something didn't fit into memory: a device's, or the machine's, which torch only says in words."""
    return type(error).__name__ in {"OutOfMemoryError", "MemoryError"} or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def device_refusals() -> int:
    """How often this process' devices had too little memory; only CUDA's count it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(int(torch.cuda.memory_stats(at).get("num_ooms", 0)) for at in range(torch.cuda.device_count()))


def out_of_memory(error: BaseException, *, step: int, kept: str) -> JobFailed:
    """What to tell of a step that didn't fit into memory; `kept` says what there is to resume from."""
    sentences = str(error).split(". ")
    said = next((sentence for sentence in sentences if "allocate" in sentence), sentences[0])
    return JobFailed(
        f"out of memory in step {step}: {said}; {kept}. Use more virtual ranks "
        "(smaller micro-batches), shard the model or take devices with more memory, and resume",
        code="out_of_memory",
        step=step,
    )
