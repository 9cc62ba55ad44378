"""The grace a job needs, learned from how long its own saves took.

What a job asks for in its spec is the most it gets; what it needs is measured: the slowest of its last few saves, from the
notice where there was one, with half as much again for a busy disk. Shown to its owner, and used by the placement, which
would otherwise take a checkpoint for granted that the notice leaves no time for.
"""

from typing import Final

REMEMBERED: Final = 8
"""Saves that count: a model that has grown is soon known as it is."""
SLACK_US: Final = 500_000
"""For the notice to arrive and the processes to end."""


def remember(saves_us: list[int], took_us: int) -> None:
    """One more save, as long as it took."""
    saves_us.append(max(took_us, 0))
    del saves_us[:-REMEMBERED]


def needed_us(saves_us: list[int]) -> int | None:
    """The notice that is enough for a save, or None while nothing is known."""
    return max(saves_us) * 3 // 2 + SLACK_US if saves_us else None
