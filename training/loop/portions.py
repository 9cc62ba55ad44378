"""What a process computes of a step."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Portion:
    """One micro-batch of a step, and its place in it."""

    step: int
    vrank: int
    samples: int
    step_samples: int
    """In the whole step: fewer than the global batch at the very end."""
    parts: int
    """How many of them the whole step has."""
    is_last: bool
    """Of those that this process computes."""
    batch: Any

    @property
    def is_idle(self) -> bool:
        """Whether this process has nothing to compute in the step, and only takes part in its end."""
        return self.samples == 0
