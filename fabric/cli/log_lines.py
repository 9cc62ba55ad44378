"""A job's logs as lines of one text: whole lines only, so that ranks don't speak into each other's, and each under its attempt."""

from collections.abc import Iterator
from typing import Final

from fabric.visible import visible_lines

_LONG: Final = 16 * 1024
"""A line that is longer is shown in pieces, not held back."""


class LogLines:
    """Takes pieces of logs as they come, and gives them back as they can be read."""

    def __init__(self, *, headed: bool, raw: bool = True) -> None:
        """With `headed`, each attempt after the first begins with a line that says so; without `raw`, controls are written
        out.
        """
        self._headed = headed
        self._raw = raw
        self._open: dict[tuple[int, int], bytes] = {}
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
        whole = self._open.pop((attempt, rank), b"") + data
        lines = whole.splitlines(keepends=True)
        if lines and not lines[-1].endswith((b"\n", b"\r")) and len(lines[-1]) < _LONG and self._several:
            self._open[attempt, rank] = lines.pop()
        for line in lines:
            yield self._named(rank, line)

    def rest(self) -> Iterator[str]:
        """Lines that were never ended."""
        for (_, rank), data in sorted(self._open.items()):
            yield self._named(rank, data + b"\n")
        self._open.clear()

    def _named(self, rank: int, line: bytes) -> str:
        text = line.decode("utf-8", errors="replace")
        text = text if self._raw else visible_lines(text.replace("\r\n", "\n"))
        return f"[rank {rank}] {text}" if self._several else text
