"""What falls due: holds that lapse and lots that expire, soonest first.

A heap that is derived from the book and never stored. Entries are not taken out when what they stand for changes; a stale
one is recognised when it comes up, so that keeping time costs a push for each hold and nothing else.
"""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from typing import Final

from fabric.ledger.holds import Hold
from fabric.ledger.lots import Lot

HOLD: Final = 0
LOT: Final = 1
"""At the same instant holds lapse before lots expire."""

Deadline = tuple[int, int, str]
"""(when in µs, HOLD or LOT, its id)"""

_SLACK: Final = 4096


class Deadlines:
    """Deadlines of the open holds, and of the lots with something free, of a book that it reads but never changes.

    A lot with nothing free has no deadline: what is held of it and let go after its expiry goes straight to breakage.
    """

    __slots__ = ("_holds", "_lots", "heap")

    def __init__(self, holds: Mapping[str, Hold], lots: Mapping[str, Lot]) -> None:
        self._holds = holds
        self._lots = lots
        self.heap: list[Deadline] = []
        self._rebuild()

    def watch_hold(self, hold: Hold) -> None:
        """Remember when a hold lapses, if it ever does."""
        if hold.expires_at_us is not None:
            heap = self.heap
            heappush(heap, (hold.expires_at_us, HOLD, hold.hold_id))
            if len(heap) > _SLACK and len(heap) > 4 * (len(self._holds) + len(self._lots)):
                self._rebuild()

    def watch_lot(self, lot: Lot) -> None:
        """Remember when a lot that has something free (again) expires, if it ever does."""
        if lot.expires_at_us is not None:
            heappush(self.heap, (lot.expires_at_us, LOT, lot.lot_id))

    def next_us(self) -> int | None:
        """When the next thing falls due."""
        heap = self.heap
        while heap and not self._stands(heap[0]):
            heappop(heap)
        return heap[0][0] if heap else None

    def pop(self, now_us: int) -> Deadline | None:
        """The next thing that has fallen due by `now_us`."""
        due_us = self.next_us()
        return heappop(self.heap) if due_us is not None and due_us <= now_us else None

    def _stands(self, deadline: Deadline) -> bool:
        at_us, kind, name = deadline
        if kind == HOLD:
            hold = self._holds.get(name)
            return hold is not None and hold.expires_at_us == at_us
        return self._lots[name].free_uhs > 0

    def _rebuild(self) -> None:
        self.heap.clear()
        self.heap += [(h.expires_at_us, HOLD, h.hold_id) for h in self._holds.values() if h.expires_at_us is not None]
        self.heap += [
            (lot.expires_at_us, LOT, lot.lot_id)
            for lot in self._lots.values()
            if lot.expires_at_us is not None and lot.free_uhs
        ]
        heapify(self.heap)
