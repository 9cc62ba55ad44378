"""What each rank of a gang has of its own, in a checkpoint that one of them saves for all: random numbers, variables, places.

Ranks that train one model hold the same weights and moments, and draw different numbers. So they tell each other what they have
as they stop, and at the boundary that a snapshot is of; a resumed one takes up its own. Where that could not be, as a peer was lost,
the others go on with other numbers than they had, and never with those of the rank that saved. What a rank tells has a bound.
Knows moments and states, and no collective.
"""

import hashlib
import random
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from training.progress import say
from training.state import randomness
from training.state.moment import Moment
from training.state.plain import plain, restored

_NUMBERS_MAX: Final = 2**32
BYTES_MAX: Final = 2**30
"""Of what all ranks tell each other, each of which has it in its memory then."""
_NAMED_MAX: Final = 3


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
        self.is_wanted = False
        """Whether they are to tell it for a snapshot, at a boundary to come."""

    def own(self, moment: Moment, *, late: Mapping[str, Any], is_kept: Callable[[str, Any], bool]) -> dict[str, Any]:
        """What this rank has at a boundary, as plain values; variables that can't be kept are left out."""
        variables = {name: value for name, value in (moment.variables | dict(late)).items() if is_kept(name, value)}
        own = {
            "step": moment.step,
            "random": plain(moment.random, "random"),
            "cursor": plain(moment.cursor, "cursor"),
        }
        more = {"variables": variables, "owned": self._tracked.owned(moment.copied)}
        if (size := size_of(more)) <= (limit := BYTES_MAX // self.world):
            return own | more
        if self.rank:
            names = sorted(variables, key=lambda name: size_of(variables[name]), reverse=True)[:_NAMED_MAX]
            say(
                f"rank {self.rank} has {size:,} bytes of its own (the most in {', '.join(names) or 'its model'}), and {limit:,}"
                f" of each of {self.world} ranks are kept: it would go on with what rank 0 has. Keep less in such variables"
            )
        return own

    def are_told(self, step: int) -> bool:
        """Whether ranks have told each other what they had at that step. If not, they will at a boundary to come."""
        is_told = not self.is_needed or bool(self.kept(step))
        self.is_wanted = not is_told
        return is_told

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
            if "owned" in own:
                state["objects"] = self._tracked.disowned(state["objects"], own["owned"])
            return {**state, **{name: own[name] for name in ("random", "cursor", "variables") if name in own}}
        if self.rank:
            state["random"] = plain(apart(restored(state["random"]), self.rank), "random")
        if self.rank == 1:
            say(
                f"step {state['step']} was saved by "
                f"{f'{len(parts)} ranks' if parts else 'one rank alone'}, so what the other ranks draw from here on is not what they "
                "would have drawn: weights and moments are the same bits"
            )
        return state


def size_of(value: Any) -> int:
    """About how many bytes a plain value has."""
    if isinstance(value, Mapping):
        return sum(size_of(item) + len(str(name)) for name, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return 8 + sum(size_of(item) for item in value)
    if isinstance(value, str | bytes):
        return len(value)
    return int(getattr(value, "nbytes", 8))


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
