"""Versions of what is stored: which rules have taken a journal over, and in which format a snapshot is.

Entries are decided again by the rules that they were decided by, so code that doesn't know the last of them refuses the
journal, before it takes anything over. A snapshot is a cache and carries a label: one of another format is passed over.
"""

from contextlib import suppress
from typing import Final

import msgspec

from fabric import versions
from fabric.errors import Conflict, JournalCorrupt
from fabric.gate.events import AdoptRules
from fabric.journal.encoding import EVERYBODY
from fabric.journal.store import Journal

JOURNAL_NEWER: Final = "journal_newer"
_MARK: Final = b"fabric-snapshot "
_LABEL_BYTES_MAX: Final = 1_024
_ADOPTS: Final = str(AdoptRules.__struct_config__.tag)


class Unreadable(Exception):
    """A snapshot that this version can't go on from. Says why, after "the snapshot"."""


class Label(msgspec.Struct, frozen=True):
    """The first line of a snapshot."""

    format: int
    rules: int
    release: str = ""
    """The first that knew its rules."""


class _Told(msgspec.Struct, frozen=True):
    event: str
    rules: int = 0
    release: str = ""


class _Leaf(msgspec.Struct, frozen=True):
    event: _Told | None = None


_leaf: Final = msgspec.json.Decoder(_Leaf)
_label: Final = msgspec.json.Decoder(Label)


def label(version: int) -> bytes:
    """What goes before the state of a core that decides by these rules."""
    made = Label(format=versions.FORMAT, rules=version, release=versions.SINCE.get(version, ""))
    return _MARK + msgspec.json.encode(made) + b"\n"


def unlabelled(snapshot: bytes) -> bytes:
    """The state in a snapshot.

    Raises:
        Unreadable: it is of another format.
        Conflict: newer rules have decided what is in it: code `journal_newer`.
    """
    end = snapshot.find(b"\n", 0, _LABEL_BYTES_MAX)
    if end < 0 or not snapshot.startswith(_MARK):
        raise Unreadable("has no format, so a version before 0.2.0 made it")
    try:
        found = _label.decode(snapshot[len(_MARK) : end])
    except msgspec.DecodeError as error:
        raise Unreadable(f"has a label that can't be read: {error}") from error
    if found.rules > versions.RULES:
        raise newer(found.rules, found.release)
    if found.format != versions.FORMAT:
        raise Unreadable(f"is of format {found.format}, and this version reads {versions.FORMAT}")
    return snapshot[end + 1 :]


def newer(version: int, release: str) -> Conflict:
    """The refusal of a journal that this code can't go on with."""
    return Conflict(
        f"the journal was taken over by rules {version}, which token-fabric {release} was the first to know, and this"
        f" version knows those up to {versions.RULES}: start {release} or a later one again. Nothing was changed",
        code=JOURNAL_NEWER,
        rules=version,
        release=release,
        known=versions.RULES,
    )


async def check_rules(journal: Journal) -> int:
    """The rules that have taken the journal over; 0 = it says of none. Changes nothing, not even who writes it.

    Raises:
        Conflict: this code doesn't know them: code `journal_newer`.
    """
    last = _Told(event=_ADOPTS)
    if await journal.exists():
        with suppress(JournalCorrupt):  # opening it says what is damaged
            async for entry in journal.read(account=EVERYBODY):
                with suppress(msgspec.DecodeError):
                    told = _leaf.decode(entry.leaf).event
                    last = told if told is not None and told.event == _ADOPTS else last
    if last.rules > versions.RULES:
        raise newer(last.rules, last.release)
    return last.rules
