r"""A log's bytes as text, however they are cut: a character that comes in two pieces is one, and what is none becomes U+FFFD.

Of lines only the last words count: what a progress bar has written over with `\r` is left out where few lines are shown.
"""

import codecs
from collections.abc import Iterator
from typing import Final

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
    """The last lines of a log's end, as a terminal would show them in the end."""
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip("\r\n").split("\n")]
    return "\n".join(lines[-count:])
