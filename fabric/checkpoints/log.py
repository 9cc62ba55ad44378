"""The log of one job's checkpoints: numbered slots, each written once, so that all who append agree on one order.

A record is appended by creating the slot after the last one that the writer has seen, which the store lets exactly one
writer do. Whoever loses looks again, and finds out whether it may still append. One writer at a time appends: it has
claimed the log by a record of its own, and the first record that isn't its own ends that for good. So the slot after the
last that a writer has seen is free, or its own, or begins a later writer's claim.

Old slots are deleted, so a writer that slept may create a slot in a hole far behind. That does no harm: each record names
the slots before it that still stand, and the highest slot is never in a hole, so what it doesn't name is void. And after
each append the writer looks whether it stands at the head; if not, somebody has claimed, and nothing was promised. With
that, one create-once is all the agreement there is: no lock, no clock, no record that several writers change.
(Ideas: a shared log as in Corfu or Delta Lake; fencing tokens as in Chubby's sequencers.)

It does not know what a record means, but for who wrote it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fabric.checkpoints.records import Claim, Manifest, Record, Retirement, decoded, encoded
from fabric.checkpoints.stores import Store
from fabric.errors import CheckpointDamaged, NotFound, Unavailable

_TRIES: Final = 20
_SLOT_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class View:
    """The log as it was read: what each slot holds, None where it can't be trusted."""

    records: dict[int, Record | None]

    @property
    def head(self) -> int:
        """The highest slot; 0 of an empty log."""
        return max(self.records, default=0)

    @property
    def standing(self) -> tuple[Record, ...]:
        """The newest record and those that it says still stand, newest first."""
        top = self._top
        if top is None:
            return ()
        found = (self.records.get(slot) for slot in sorted((*top.stands, top.slot), reverse=True))
        return tuple(record for record in found if record is not None)

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """The checkpoints that stand, newest first; whether their shards are whole is not known yet."""
        return tuple(found for found in self.standing if isinstance(found, Manifest))

    @property
    def tip(self) -> tuple[int, str]:
        """The slot and draft of the newest checkpoint that stands; (0, "") if none does."""
        newest = next(iter(self.manifests), None)
        return (newest.slot, newest.draft) if newest else (0, "")

    @property
    def is_void(self) -> bool:
        """Whether all that was saved was made void, and nothing was saved since."""
        return not self.manifests and any(isinstance(found, Retirement) for found in self.records.values())

    @property
    def claim(self) -> Claim | None:
        """The newest claim."""
        return next((found for found in self.standing if isinstance(found, Claim)), None)

    @property
    def damaged(self) -> tuple[int, ...]:
        """Slots that should say something and don't, newest first."""
        top = self._top
        above = {slot for slot in self.records if top is None or slot > top.slot}
        lost = {slot for slot in (top.stands if top else ()) if self.records.get(slot) is None}
        return tuple(sorted(above | lost, reverse=True))

    @property
    def void(self) -> frozenset[int]:
        """Slots that mean nothing any more."""
        top = self._top
        return (
            frozenset() if top is None else frozenset(slot for slot in self.records if slot < top.slot) - {*top.stands}
        )

    @property
    def void_claims(self) -> frozenset[int]:
        """Those of them that claimed, and so have no shards."""
        return frozenset(slot for slot in self.void if isinstance(self.records[slot], Claim))

    @property
    def _top(self) -> Record | None:
        """The newest record that can be trusted."""
        return next((found for _, found in sorted(self.records.items(), reverse=True) if found is not None), None)


class Log:
    """One process's hold on the log."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._known: dict[int, Record] = {}
        self._view: View | None = None

    def view(self) -> View:
        """The log as it is now.

        Raises:
            Conflict: it was written by a version with another format.
        """
        for _ in range(_TRIES):
            view = self._look()
            if view is not None:
                break
        else:
            raise Unavailable(f"{self._prefix} changes faster than it can be read: try again", code="store_contended")
        self._known = {slot: found for slot, found in view.records.items() if found is not None}
        self._view = view
        return view

    @property
    def seen(self) -> View:
        """The log as this process knows it, without asking again."""
        return self._view or self.view()

    def append(self, record_after: Callable[[View], Record]) -> Record:
        """Append what `record_after` makes of the log before it; it refuses by raising.

        `record_after` is called again when another writer was first, or claimed right after.
        """
        view = self.seen
        for _ in range(_TRIES):
            record = record_after(view)
            created = self._store.put(self.key(record.slot), encoded(record), once=True)
            if created and self._slots()[-1:] == [record.slot]:
                self._known[record.slot] = record
                self._view = View({**view.records, record.slot: record})
                return record
            view = self.view()
        raise Unavailable(f"{_TRIES} times another writer of {self._prefix} was first", code="store_contended")

    def delete(self, slots: frozenset[int]) -> None:
        """Delete records that a record retired."""
        for slot in sorted(slots):
            self._store.delete(self.key(slot))
            self._known.pop(slot, None)
        if self._view is not None:
            self._view = View({slot: found for slot, found in self._view.records.items() if slot not in slots})

    def key(self, slot: int) -> str:
        """Where the record of a slot is kept."""
        return f"{self._prefix}/log/{slot:0{_SLOT_DIGITS}d}"

    def _look(self) -> View | None:
        """The log, or None if it changed while it was read."""
        records: dict[int, Record | None] = {}
        slots = self._slots()
        for slot in slots:
            try:
                records[slot] = self._known.get(slot) or self._read(slot)
            except NotFound:
                return None
            except CheckpointDamaged:
                records[slot] = None
        view = View(records)
        lost = set(view.damaged) - set(records)
        return None if lost and self._slots() != slots else view

    def _slots(self) -> list[int]:
        names = (key.rpartition("/")[2] for key in self._store.keys(f"{self._prefix}/log"))
        return sorted(int(name) for name in names if name.isdecimal() and len(name) == _SLOT_DIGITS)

    def _read(self, slot: int) -> Record:
        return decoded(self._store.get(self.key(slot)), prefix=self._prefix, slot=slot)
