"""When each lease is next to be looked at, so that a tick with nothing to do costs nothing, however many leases there are.

Kept is a time that is never later than when something is due: whoever comes up is asked for the real one, and put back if
that is still to come. So what makes it later needs no word here; what makes it earlier must say so by `note`.
"""

import heapq
from collections.abc import Callable
from typing import Final

from fabric.units import LeaseId

_NEVER: Final = 2**63


class LeaseWatch:
    """Leases by when they are due; those that are due at once in the order in which they were made."""

    __slots__ = ("_made", "heap", "noted", "order")

    def __init__(self) -> None:
        self.heap: list[tuple[int, LeaseId]] = []
        self.noted: dict[LeaseId, int] = {}
        """Of each lease the time in the heap that counts; others of it are passed over."""
        self.order: dict[LeaseId, int] = {}
        self._made = 0

    def add(self, lease_id: LeaseId, due_us: int | None = None) -> None:
        """A lease that was made after all that are here."""
        self._made += 1
        self.order[lease_id] = self._made
        self.noted[lease_id] = _NEVER
        if due_us is not None:
            self.note(lease_id, due_us)

    def note(self, lease_id: LeaseId, due_us: int | None) -> None:
        """Something is due then; None = nothing that is known."""
        if due_us is not None and due_us < self.noted[lease_id]:
            self.noted[lease_id] = due_us
            heapq.heappush(self.heap, (due_us, lease_id))

    def forget(self, lease_id: LeaseId) -> None:
        """There is no such lease any more."""
        del self.noted[lease_id], self.order[lease_id]

    def take_due(self, now_us: int, due_us_of: Callable[[LeaseId], int | None], *, most: int) -> list[LeaseId]:
        """Those that are due, in their order; where they are more than `most`, those that are due first. Each must be noted again,
        and the others come up next time.
        """
        heap, noted = self.heap, self.noted
        found: list[LeaseId] = []
        while heap and heap[0][0] <= now_us and len(found) < most:
            at_us, lease_id = heapq.heappop(heap)
            if noted.get(lease_id) != at_us:
                continue
            noted[lease_id] = _NEVER
            due_us = due_us_of(lease_id)
            if due_us == at_us:
                found.append(lease_id)
            else:
                self.note(lease_id, due_us)
        if len(found) > 1:
            found.sort(key=self.order.__getitem__)
        return found

    def first_us(self, due_us_of: Callable[[LeaseId], int | None]) -> int | None:
        """When the first of them is really due; None if none is."""
        heap, noted = self.heap, self.noted
        while heap:
            at_us, lease_id = heap[0]
            if noted.get(lease_id) != at_us:
                heapq.heappop(heap)
                continue
            due_us = due_us_of(lease_id)
            if due_us == at_us:
                return at_us
            heapq.heappop(heap)
            noted[lease_id] = _NEVER
            self.note(lease_id, due_us)
        return None

    def check(self, due_us_of: Callable[[LeaseId], int | None]) -> None:
        """Assert that nothing is due before it is noted. Slow."""
        for lease_id, at_us in self.noted.items():
            due_us = due_us_of(lease_id)
            assert due_us is None or at_us <= due_us, (
                f"lease {lease_id} is due at {due_us}, and looked at only at {at_us}"
            )
