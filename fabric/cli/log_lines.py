"""A job's logs as lines of one text: whole lines only, so that ranks don't speak into each other's, and each under its attempt."""

import re
from collections.abc import Iterator
from typing import Final

from fabric.log_text import LogText, with_line_ends
from fabric.visible import visible_lines

_LONG: Final = 16 * 1024
"""A line that is longer is shown in pieces, not held back."""
_LINE: Final = re.compile(r"[^\n\r]*(?:\r\n|\r(?!\Z)|\n)|[^\n\r]+\r?|\r")
r"""With its end; a `\r` that is the last there is may be half of one."""


class LogLines:
    """Takes pieces of logs as they come, and gives them back as they can be read."""

    def __init__(self, *, headed: bool, raw: bool = True) -> None:
        """With `headed`, each attempt after the first begins with a line that says so; without `raw`, controls are written
        out.
        """
        self._headed = headed
        self._raw = raw
        self._open: dict[tuple[int, int], str] = {}
        self._text = LogText()
        self._attempt = 1
        self._several = False

    def take(self, *, attempt: int, rank: int, data: bytes) -> Iterator[str]:
        """What there is to show now. The lines of a gang say whose they are, from the moment a second rank speaks."""
        self._several = self._several or rank > 0
        if attempt != self._attempt:
            yield from self.rest()
            self._attempt = attempt
            if self._headed:
                yield f"── attempt {attempt} ──\n"
        text = self._open.pop((attempt, rank), "") + self._text.take(attempt=attempt, rank=rank, data=data)
        if not self._several:
            if text:
                yield self._shown(text)
            return
        lines = _LINE.findall(text)
        if lines and lines[-1][-1] != "\n" and len(lines[-1]) < _LONG:
            self._open[attempt, rank] = lines.pop()
        for line in lines:
            yield f"[rank {rank}] {self._shown(line)}"

    def rest(self) -> Iterator[str]:
        """Lines that were never ended."""
        for attempt, rank, text in self._text.rest():
            self._open[attempt, rank] = self._open.get((attempt, rank), "") + text
        for (_, rank), text in sorted(self._open.items()):
            yield f"[rank {rank}] {self._shown(text)}\n" if self._several else self._shown(text)
        self._open.clear()

    def _shown(self, text: str) -> str:
        return text if self._raw else visible_lines(with_line_ends(text))
