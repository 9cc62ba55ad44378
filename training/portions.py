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
    count: int
    """How many of them this process computes in this step."""
    is_last: bool
    """Of those."""
    batch: Any
