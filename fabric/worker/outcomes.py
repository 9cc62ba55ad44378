"""How the ends of several ranks make one: a gang ends as its worst rank does, but for peers that outlived one and saved."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from fabric.gate.events import LeaseOutcome
from fabric.worker.exits import DIED
from fabric.worker.stage import JobEnd

SURVIVORS_S: Final = 60.0
"""How long the others may take to notice that a rank is gone, by its silence if need be (20 s), and to save what it left them
with.
"""
SPOILED_S: Final = 20.0
"""How long they may go on after one that ended by its own code: it said so, and they may have heard it."""
STRAGGLERS_S: Final = 120.0
"""How long a rank may stay that stalls or still saves, after another one has saved and left though nobody had asked it to."""
_WORST_FIRST: Final = (
    LeaseOutcome.LOST,
    LeaseOutcome.NO_ROOM,
    LeaseOutcome.FAILED,
    LeaseOutcome.INTERRUPTED,
    LeaseOutcome.SAVED,
    LeaseOutcome.SUCCEEDED,
)


def spoils(end: JobEnd) -> bool:
    """Whether a gang can't go on after such an end of one rank."""
    return end.outcome not in (LeaseOutcome.SAVED, LeaseOutcome.SUCCEEDED)


def patience_s(end: JobEnd) -> float | None:
    """How long the rest of a gang may go on after such an end of one rank; None = as long as it likes."""
    if spoils(end):
        return SURVIVORS_S if died(end) else SPOILED_S
    return STRAGGLERS_S if end.outcome is LeaseOutcome.SAVED and end.again else None


def earliest(give_up_at: float | None, ends: Iterable[JobEnd], *, now: float) -> float | None:
    """When the rest of a gang is given up, of which these ranks have ended by now; None = never."""
    times = [now + patience for end in ends if (patience := patience_s(end)) is not None]
    return min([*times, *([] if give_up_at is None else [give_up_at])], default=None)


def died(end: JobEnd) -> bool:
    """Whether the rank ended without a word: nothing its code did or said, as far as anybody knows."""
    if end.outcome is LeaseOutcome.NO_ROOM:
        return False
    return spoils(end) and (end.outcome is not LeaseOutcome.FAILED or end.error.startswith(DIED))


def together(ends: Sequence[JobEnd], *, saved: bool) -> JobEnd:
    """The worst of the ranks' ends, with rank 0's result, which comes first.

    Where ranks died and others outlived them, and a checkpoint was `saved`, the gang has saved, and asks to be queued anew.
    Without a new one it would die at the same step for ever: that is a failure, which is counted.
    """
    worst = min(ends, key=lambda end: _WORST_FIRST.index(end.outcome))
    survivor = next((end for end in ends if end.outcome is LeaseOutcome.SAVED), None)
    if (
        survivor is not None
        and saved
        and worst.outcome in (LeaseOutcome.FAILED, LeaseOutcome.INTERRUPTED)
        and all(died(end) for end in ends if spoils(end))
    ):
        worst = msgspec.structs.replace(survivor, again=True, error=worst.error)
    return msgspec.structs.replace(
        worst,
        error=worst.error or next((end.error for end in ends if end.outcome is worst.outcome and end.error), ""),
        result_ref=worst.result_ref or (ends[0].result_ref if worst.outcome is LeaseOutcome.SUCCEEDED else ""),
        reusable=all(end.reusable for end in ends),
        used_ray=any(end.used_ray for end in ends),
        step=max(end.step for end in ends),
    )
