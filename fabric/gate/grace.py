"""The grace a job needs, learned from how long its own saves took.

What a job asks for in its spec is the most it gets; what it needs is measured: the slowest of its last few saves, from the
notice where there was one, with half as much again for a busy disk. Shown to its owner, and used by the placement, which
would otherwise take a checkpoint for granted that the notice leaves no time for.
"""

from typing import Final

REMEMBERED: Final = 8
"""Saves that count: a model that has grown is soon known as it is."""
LONGEST_US: Final = 10 * 365 * 86_400_000_000
"""No save takes longer, whatever the job's own process says: nothing may run for so long."""
SLACK_US: Final = 500_000
"""For the notice to arrive and the processes to end."""


def with_one_more(saves_us: tuple[int, ...], took_us: int) -> tuple[int, ...]:
    """The last few saves, and one that took so long."""
    return (*saves_us, max(took_us, 0))[-REMEMBERED:]


def needed_us(saves_us: tuple[int, ...]) -> int | None:
    """The notice that is enough for a save, or None while nothing is known."""
    return min(max(saves_us), LONGEST_US) * 3 // 2 + SLACK_US if saves_us else None
