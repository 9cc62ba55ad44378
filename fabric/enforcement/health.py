"""How the looks for unleased use go, as the gate keeps it for whoever asks."""

from typing import Final

import msgspec

HEALTH_KEY: Final = "reconciler"
"""Under which the control store keeps how the looks go: for `fabric doctor`."""
HEALTH_EVERY_S: Final = 5.0


class Health(msgspec.Struct, kw_only=True):
    """How the looks go, as `fabric doctor` reads it."""

    looks: int = 0
    removed: int = 0
    failures: int = 0
    """Items and tables that could not be had, ever."""
    failing: int = 0
    """How many looks before now had a failure, without one between that had none."""
    last_failure: str = ""
    stuck: dict[str, int] = msgspec.field(default_factory=dict)
    """Devices that Ray holds for nobody and doesn't give back, by node."""
    at_s: int = 0
    """When it was written: seconds of the epoch."""
