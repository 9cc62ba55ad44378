"""What falls due: holds that lapse, what is set aside for them, and lots that expire, soonest first.

A heap that is derived from the book and never stored. Entries are not taken out when what they stand for changes; a stale
one is recognised when it comes up, so that keeping time costs a push for each hold and nothing else.
"""

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Any, Final

from fabric.ledger.holds import Hold
from fabric.ledger.lots import Lot

HOLD: Final = 0
LOT: Final = 1
"""At the same instant holds lapse before lots expire."""

Deadline = tuple[int, int, str]
"""(when in µs, HOLD or LOT, its id)"""

_SLACK: Final = 4096


class Deadlines:
    """Deadlines of the open and the lapsed holds, and of the lots with something free, of a book that it reads but never changes.

    A lot with nothing free has no deadline: what is held of it and let go after its expiry goes straight to breakage. An
    open hold's deadline may be that of a lot of which it holds something that it can't keep beyond that.
    """

    __slots__ = ("_holds", "_lapsed", "_lots", "heap")

    def __init__(self, holds: Mapping[str, Hold], lapsed: Mapping[str, Hold], lots: Mapping[str, Lot]) -> None:
        self._holds = holds
        self._lapsed = lapsed
        self._lots = lots
        self.heap: list[Deadline] = []
        self._rebuild()

    def watch_hold(self, hold: Hold) -> None:
        """Remember when a hold lapses, if it ever does; of one that has, when it is given up."""
        due_us = _due_us(hold)
        if due_us is not None:
            heappush(self.heap, (due_us, HOLD, hold.hold_id))
            if len(self.heap) > _SLACK:
                self._rebuild_if_stale()

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

    def is_due(self, now_us: int) -> bool:
        """Whether anything has fallen due by `now_us`."""
        due_us = self.next_us()
        return due_us is not None and due_us <= now_us

    def standing(self) -> list[Deadline]:
        """All that will fall due, soonest first."""
        return sorted({deadline for deadline in self.heap if self._stands(deadline)})

    def _stands(self, deadline: Deadline) -> bool:
        at_us, kind, name = deadline
        if kind == HOLD:
            hold = self._holds.get(name) or self._lapsed.get(name)
            return hold is not None and _due_us(hold) == at_us
        return self._lots[name].free_uhs > 0

    def _rebuild_if_stale(self) -> None:
        if len(self.heap) > 4 * (len(self._holds) + len(self._lapsed) + len(self._lots)):
            self._rebuild()

    def _rebuild(self) -> None:
        self.heap.clear()
        holds = [*self._holds.values(), *self._lapsed.values()]
        self.heap += [(due_us, HOLD, hold.hold_id) for hold in holds if (due_us := _due_us(hold)) is not None]
        self.heap += [
            (lot.expires_at_us, LOT, lot.lot_id)
            for lot in self._lots.values()
            if lot.expires_at_us is not None and lot.free_uhs
        ]
        heapify(self.heap)


def _due_us(hold: Hold) -> int | None:
    if hold.settle_by_us is not None:
        return hold.settle_by_us
    if hold.stale_at_us is None or hold.expires_at_us is None:
        return hold.expires_at_us if hold.stale_at_us is None else hold.stale_at_us
    return min(hold.expires_at_us, hold.stale_at_us)


def count_due(heap: Sequence[tuple[Any, ...]], now_us: int, *, most: int, again_us: int | None = None) -> int:
    """How many entries of a heap of (when, ...) are due, counted no farther than `most`: what is due lies together at its top.

    Args:
        heap: what may be due.
        now_us: by when.
        most: at which number to end.
        again_us: how soon after it was due an entry may be due again; None = never.
    """
    count, looked_at = 0, [0] if heap else []
    while looked_at and count < most:
        place = looked_at.pop()
        if heap[place][0] <= now_us:
            count += 1 if again_us is None else 1 + (now_us - heap[place][0]) // again_us
            looked_at += [child for child in (2 * place + 1, 2 * place + 2) if child < len(heap)]
    return min(count, most)
