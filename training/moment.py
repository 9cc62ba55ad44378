"""What a step boundary is to who saves it later."""

from dataclasses import dataclass, field
from typing import Any


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
