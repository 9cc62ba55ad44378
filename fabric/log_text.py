r"""A log's bytes as text, however they are cut: a character that comes in two pieces is one, and what is none becomes U+FFFD.

Of lines only the last words count: what a progress bar has written over with `\r` is left out where few lines are shown.
"""

import codecs
from collections.abc import Iterator, Sequence
from typing import Final

_TRACEBACK: Final = ("Traceback (most recent call last):", "  + Exception Group Traceback (most recent call last):")
_TRACEBACK_LINES: Final = 60
_CHAINED: Final = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
_DECODER: Final = codecs.getincrementaldecoder("utf-8")


class LogText:
    """Decoders, one for each rank of each attempt."""

    def __init__(self) -> None:
        self._decoders: dict[tuple[int, int], codecs.IncrementalDecoder] = {}

    def take(self, *, attempt: int, rank: int, data: bytes) -> str:
        """The text that there is now: a character that isn't whole yet comes with its rest."""
        decoder = self._decoders.get((attempt, rank))
        if decoder is None:
            decoder = self._decoders[attempt, rank] = _DECODER(errors="replace")
        return decoder.decode(data)

    def rest(self) -> Iterator[tuple[int, int, str]]:
        """What was never made whole: attempt, rank and text."""
        for (attempt, rank), decoder in sorted(self._decoders.items()):
            if text := decoder.decode(b"", final=True):
                yield attempt, rank, text


def with_line_ends(text: str) -> str:
    r"""Each state of a progress bar on a line of its own, for readers for whom `\r` may not do what it likes."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def last_lines(data: bytes, count: int) -> str:
    """The last lines of a log's end, as a terminal would show them in the end; more of them where a traceback ends it, so that
    all its causes are among them.
    """
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip("\r\n").split("\n")]
    start = max(0, len(lines) - count)
    begun = _begin_of_chain(lines, len(lines) - count - _TRACEBACK_LINES)
    return "\n".join(lines[start if begun is None else min(start, begun) :])


def _begin_of_chain(lines: Sequence[str], least: int) -> int | None:
    """Where the traceback begins that is the last, and no further up than that, with those of its causes before it."""
    begin, at = None, len(lines)
    while True:
        found = next((n for n in range(at - 1, -1, -1) if lines[n].startswith(_TRACEBACK)), None)
        if found is None or (begin is None and found < least):
            return begin
        begin = found
        before = next((n for n in range(found - 1, -1, -1) if lines[n].strip()), None)
        if before is None or lines[before] not in _CHAINED:
            return begin
        at = before
