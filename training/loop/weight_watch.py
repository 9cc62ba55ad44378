"""Weights that change when nobody has said so: between a boundary and the optimizer's step, behind torch's counters.

`p.data.add_(...)` moves no version counter, and nothing tells when it comes. So digests of all weights are compared now and
then: after the first steps, and later every 10 s, oftener where that costs a thousandth of the time, and less often where it
would cost half a percent. What is found once is true for the rest of the run: its weights are saved at the ends of the loop's bodies only.
"""

import time
from typing import Any, Final, Protocol

from training.progress import say
from training.state.cadence import again_in_s

_FIRST: Final = 3
_SHARE: Final = 0.005


class Digested(Protocol):
    """What is watched."""

    def digests(self) -> dict[str, Any]:
        """By name, a number that changes when the object's weights do."""


class WeightWatch:
    """Asked by the training thread, at boundaries and before changes that are announced."""

    def __init__(self, state: Digested, *, is_needed: bool) -> None:
        self._state, self._is_needed = state, is_needed
        self._noted: dict[str, Any] | None = None
        self._looks, self._due_at = 0, 0.0
        self.changed: str | None = None
        """What changes unannounced; None = nothing was seen to."""

    def note(self) -> None:
        """A boundary: from here on nothing may change until it is announced."""
        self._noted = None
        began = time.monotonic()
        if not self._is_needed or (self.changed is None and self._looks >= _FIRST and began < self._due_at):
            return
        self._noted = self._state.digests()
        self._looks += 1
        self._due_at = began + again_in_s(2 * (time.monotonic() - began), share=_SHARE)

    def pause(self) -> None:
        """A boundary amid a body, whose other lines may change weights too: nothing is compared before the next."""
        self._noted = None

    def look(self) -> bool:
        """A change is announced, or the body has ended without one: whether something has changed already."""
        if self._noted is None:
            return False
        now, noted = self._state.digests(), self._noted
        changed = next((name for name, digest in now.items() if noted.get(name, digest) != digest), None)
        if changed is not None and self.changed is None:
            self.changed = changed
            say(
                f"{self.changed} changes outside of a tracked optimizer's step: it is saved at the end of a step's body, not "
                "amid it, so keep a step shorter than the notice of a stop"
            )
        return changed is not None
