"""Which Ray jobs take devices without a lease again and again: by retries, or in a loop.

What is seen again because it takes its time to end was taken once. What still holds something of a lease that is over was the
lease's, and has not taken it: a client whose leases end one after the other is no thief.
"""

from collections.abc import Iterable
from typing import Final

TAKES_AGAIN: Final = 3
"""So often may a Ray job take devices without a lease within `_WITHIN_S`, before it is ended as a whole."""
_WITHIN_S: Final = 30.0
_GROUPS_REMEMBERED: Final = 4096


class Retaking:
    """Remembers between looks what was ours, and who has taken what."""

    def __init__(self) -> None:
        self._taken: dict[str, dict[tuple[str, int], float]] = {}
        """By Ray job what it has taken, and when."""
        self._were_ours: dict[str, None] = {}
        """Placement groups, those seen last at the end."""

    def remember(self, groups: Iterable[str]) -> None:
        """These placement groups are ours now."""
        for group in groups:
            self._were_ours.pop(group, None)
            self._were_ours[group] = None
        for group in list(self._were_ours)[: max(0, len(self._were_ours) - _GROUPS_REMEMBERED)]:
            del self._were_ours[group]

    def is_left(self, groups: Iterable[str]) -> bool:
        """Whether what is in these placement groups is what a lease of ours has left."""
        return any(group in self._were_ours for group in groups)

    def again(self, job_id: str, what: str, pid: int, *, at: float) -> bool:
        """Note what a Ray job has taken; whether it has now done so too often.

        Args:
            job_id: the Ray job's.
            what: the id of what was started.
            pid: of its process: an actor that was started again has another.
            at: when it was looked, in seconds: all that one look finds counts once.
        """
        self._taken = {job: taken for job, taken in self._taken.items() if at - max(taken.values()) < _WITHIN_S}
        taken = self._taken.setdefault(job_id, {})
        if (what, pid) in taken:
            return False
        taken[what, pid] = at
        return len({when for when in taken.values() if at - when < _WITHIN_S}) >= TAKES_AGAIN
