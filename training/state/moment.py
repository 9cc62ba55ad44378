"""What a step boundary is to who saves it later, and the copy of one; where its tensors are copied to the host on a device."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from training.state.frozen import Frozen
from training.state.plain import not_finite


@dataclass(frozen=True, slots=True)
class Moment:
    """A step boundary: everything that later steps would change and that isn't a weight or a moment of an optimizer."""

    step: int
    cursor: dict[str, Any]
    copied: dict[str, Any]
    random: dict[str, Any]
    versions: dict[str, list[int]]
    variables: dict[str, Any] = field(default_factory=dict)
    """What the loop's body hands on to the next."""
    frozen: list[str] = field(default_factory=list)
    device_event: Any = None


def recorded() -> Any:
    """An event behind everything the device was given so far; None where there is no such device in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    event = torch.cuda.Event()
    event.record()
    return event


@contextmanager
def beside(event: Any) -> Iterator[None]:
    """On a stream of its own behind the event; what was copied there is on the host at the end."""
    if event is None:
        yield
        return
    torch = sys.modules["torch"]
    stream = torch.cuda.Stream()
    stream.wait_event(event)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


@dataclass(frozen=True, slots=True)
class Copy:
    """The bytes of a shard, and which of them are weights."""

    data: memoryview
    plan: Any
    weights: dict[int, str]
    frozen: Frozen | None = None
    bad: str | None = None
    """The name of a frozen weight that has more infinities than it may."""

    def not_finite(self, excused: dict[str, int]) -> str | None:
        """The name of a weight that has more infinities than are `excused`; None = none has. Buffers may hold anything."""
        if self.bad is not None:
            return self.bad
        torch = sys.modules["torch"]
        for tensor, offset in zip(self.plan.tensors, self.plan.offsets, strict=True):
            name = self.weights.get(tensor.data_ptr())
            if name is None or not tensor.numel():
                continue
            start = len(self.plan.head) + offset
            copy = torch.frombuffer(self.data, dtype=tensor.dtype, count=tensor.numel(), offset=start)
            if not_finite(copy) > excused.get(name, 0):
                return name
        return None
