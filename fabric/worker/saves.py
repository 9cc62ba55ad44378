"""The checkpoints of one attempt, as its runner keeps them until the gate has heard of them.

A job makes as many as it likes, and saying that it has made one costs it nothing. So of many that wait to be told the newest
stands for those before it.
"""

from typing import Final

from fabric.worker.stage import Save

_UNTOLD_MAX: Final = 16
_MANY: Final = 1_000
"""Beyond so many, all of which are told once more at the end, one at a time waits."""


class Saves:
    """In the order in which they became durable."""

    def __init__(self) -> None:
        """None yet."""
        self._all: list[Save] = []
        self._told = 0

    def __len__(self) -> int:
        return len(self._all)

    def note(self, save: Save) -> None:
        """One more."""
        if len(self._all) - self._told >= (_UNTOLD_MAX if len(self._all) < _MANY else 1):
            self._all.pop()
        self._all.append(save)

    def tell(self, after: int) -> list[Save]:
        """Those since the first `after`."""
        self._told = len(self._all)
        return self._all[after:]

    def all(self) -> tuple[Save, ...]:
        """Those that are kept."""
        return tuple(self._all)
