"""A statement in JSON as its pages come: the text of the whole, without the whole ever being in memory."""

from typing import Final

import msgspec
from msgspec.structs import replace

from fabric.gate.questions import StatementPage

_LINES: Final = b'"lines":['
_RECORDS: Final = b'"records":['


class StatementText:
    """The text of one statement: what `msgspec.json.encode` would make of it with all lines and records in it."""

    def __init__(self) -> None:
        self._rest = b""
        """What comes after the list that is being written; b"" before the first page."""
        self._is_begun = False
        """Whether something stands in that list."""
        self._is_at_records = False

    def add(self, page: StatementPage) -> bytes:
        """What the page adds; the last one ends the text."""
        text = b""
        statement = page.statement
        if not self._rest:
            bare = msgspec.json.encode(replace(statement, lines=(), records=()))
            head, _, self._rest = bare.partition(_LINES)
            text = head + _LINES
        text += self._listed(statement.lines)
        if (statement.records or page.following is None) and not self._is_at_records:
            middle, _, self._rest = self._rest.partition(_RECORDS)
            text += middle + _RECORDS
            self._is_at_records, self._is_begun = True, False
        text += self._listed(statement.records)
        return text if page.following is not None else text + self._rest

    def _listed(self, items: tuple[object, ...]) -> bytes:
        text = b",".join(map(msgspec.json.encode, items))
        begun, self._is_begun = self._is_begun, self._is_begun or bool(items)
        return b"," + text if begun and items else text
