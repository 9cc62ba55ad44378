"""Replay: deciding a journal again, and finding it as it is written.

What restarts the gate, and what tells whether a new version still decides as the old one did. Knows neither the store nor
what an event means.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final, Protocol

from msgspec.structs import replace

from fabric import versions
from fabric.errors import JournalCorrupt
from fabric.gate.events import AdoptRules, AnyEvent
from fabric.gate.instructions import Decision
from fabric.journal.encoding import Recorded, decode_entry, entries_of
from fabric.journal.store import Entry
from fabric.journal.versions import newer

REPLAY_DIFFERS: Final = "replay_differs"
_SHOWN: Final = 2_000


class Core(Protocol):
    """What decides. Deterministic: the same events at the same times give the same decisions, on any machine."""

    @property
    def rules(self) -> int:
        """The rules version by which it decides (`fabric.versions`)."""

    def is_behind(self, now_us: int) -> bool:
        """Whether more falls due by now than one tick sees to."""
        ...

    def handle(self, event: AnyEvent, now_us: int) -> Decision:
        """Apply one event. Raises only by mistake."""

    def pieces(self) -> Iterator[bytes]:
        """The whole state, a piece at a time. Nothing is handled before the last one was taken."""


class Replay:
    """Feeds a core with the entries of a journal, in order, from where its state ends."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._expected: deque[Entry] = deque()
        """What is still to come of the decision in hand."""

    def feed(self, entry: Entry) -> Decision | None:
        """Decide an entry's event again; None for an entry that continues the one before.

        Raises:
            Conflict: newer rules decide from here on: code `journal_newer`.
            JournalCorrupt: it can't be read; or, with code `replay_differs`, this version decides otherwise than the one
                that wrote it.
        """
        recorded = read_entry(entry)
        decision: Decision | None = None
        if recorded.event is not None:
            self.finish(before=entry)
            if isinstance(recorded.event, AdoptRules) and recorded.event.rules > versions.RULES:
                raise newer(recorded.event.rules, recorded.event.release)
            decision = self._core.handle(recorded.event, recorded.at_us)
            self._expected.extend(entries_of(entry.seq, at_us=recorded.at_us, event=recorded.event, decision=decision))
        again = self._expected.popleft() if self._expected else None
        if again is None or (again.leaf != entry.leaf and not _is_said_by(recorded, decode_entry(again.leaf))):
            seq = again.seq if again else entry.seq
            raise _differs(seq, written=entry.leaf, decided=again.leaf if again else b"")
        return decision

    def finish(self, *, before: Entry | None = None) -> None:
        """Say that no entry continues the last one."""
        if self._expected:
            missing = self._expected[0]
            raise _differs(missing.seq, written=before.leaf if before else b"", decided=missing.leaf)


def read_entry(entry: Entry) -> Recorded:
    """What the entry says.

    Raises:
        JournalCorrupt: its bytes are what was committed, but this version can't read them.
    """
    try:
        recorded = decode_entry(entry.leaf)
    except ValueError as error:
        raise JournalCorrupt(f"entry {entry.seq} can't be read by this version: {error}", seq=entry.seq) from error
    if recorded.seq != entry.seq:
        raise JournalCorrupt(f"entry {entry.seq} says that it is number {recorded.seq}", seq=entry.seq)
    return recorded


def _is_said_by(written: Recorded, decided: Recorded) -> bool:
    """Whether it is the same decision. A newer version may state more facts of it: all that was stated must be the same."""
    before, now = written.outcome, decided.outcome
    if before is not None and now is not None:
        known = {name: fact for name, fact in now.facts.items() if name in before.facts}
        decided = replace(decided, outcome=replace(now, facts=known))
    return decided == written


def _differs(seq: int, *, written: bytes, decided: bytes) -> JournalCorrupt:
    return JournalCorrupt(
        f"entry {seq} comes out differently when it is decided again",
        code=REPLAY_DIFFERS,
        seq=seq,
        written=written.decode(errors="replace")[:_SHOWN],
        decided=decided.decode(errors="replace")[:_SHOWN],
    )
