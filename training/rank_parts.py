"""What each rank of a gang has of its own, in a checkpoint that one of them saves for all: random numbers, variables, places.

Ranks that train one model hold the same weights and moments, and draw different numbers. So they tell each other what they have
as they stop, and a resumed one takes up its own. A snapshot is one rank's alone: the others go on from it with other numbers
than they had, and never with that rank's. Knows moments and states, and no collective.
"""

import hashlib
import random
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from training import randomness
from training.moment import Moment
from training.plain import plain, restored
from training.progress import say

_NUMBERS_MAX: Final = 2**32


class Owned(Protocol):
    """What a run tracks."""

    def owned(self, copied: Mapping[str, Any]) -> dict[str, Any]:
        """Of what is copied at a boundary, what a rank may have of its own."""

    def disowned(self, objects: dict[str, Any], owned: Mapping[str, Any]) -> dict[str, Any]:
        """The states of a checkpoint with what a rank has of its own."""


class RankParts:
    """Of one run. A process alone has none."""

    def __init__(self, tracked: Owned) -> None:
        self._tracked = tracked
        self.rank, self.world = 0, 1
        self.is_needed = False
        """Whether ranks differ in anything: where random numbers belong to virtual ranks, they don't."""
        self.everyones: list[dict[str, Any]] = []
        """As the ranks have told each other last, by rank."""

    def own(self, moment: Moment, *, late: Mapping[str, Any], is_kept: Callable[[str, Any], bool]) -> dict[str, Any]:
        """What this rank has at a boundary, as plain values; variables that can't be kept are left out."""
        variables = {name: value for name, value in (moment.variables | dict(late)).items() if is_kept(name, value)}
        return {
            "step": moment.step,
            "random": plain(moment.random, "random"),
            "cursor": plain(moment.cursor, "cursor"),
            "variables": variables,
            "owned": self._tracked.owned(moment.copied),
        }

    def kept(self, step: int) -> list[dict[str, Any]] | None:
        """What goes with a checkpoint of that step; None = nothing is needed."""
        if not self.is_needed:
            return None
        return self.everyones if all(part["step"] == step for part in self.everyones) else []

    def taken(self, state: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds, as this rank goes on from it."""
        parts = state.pop("ranks", None)
        if parts is None or self.world == 1:
            return state
        if len(parts) == self.world:
            own = parts[self.rank]
            objects = self._tracked.disowned(state["objects"], own["owned"])
            return {**state, **{name: own[name] for name in ("random", "cursor", "variables")}, "objects": objects}
        if self.rank:
            state["random"] = plain(apart(restored(state["random"]), self.rank), "random")
        if self.rank == 1:
            say(
                f"step {state['step']} was saved by "
                f"{f'{len(parts)} ranks' if parts else 'one rank alone'}, so what the other ranks draw from here on is not what they "
                "would have drawn: weights and moments are the same bits"
            )
        return state


def apart(states: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """States of generators that follow from others', and are no other rank's."""
    before = randomness.capture()
    randomness.restore(states)
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    drawn = f"{rank}/{random.random()}/{torch.rand(()).item() if torch is not None else ''}"  # noqa: S311  # not for secrets
    seed = int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:7], "big")
    random.seed(seed)
    if numpy is not None:
        numpy.random.seed(seed % _NUMBERS_MAX)
    if torch is not None:
        torch.manual_seed(seed)
    found = randomness.capture()
    randomness.restore(before)
    return found
