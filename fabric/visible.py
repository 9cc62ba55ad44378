r"""Text that somebody else chose, made fit to be shown: what would steer a terminal, or hide, is written out instead.

Escape sequences, C1 controls, marks that turn the direction of what follows, characters without width and lone surrogates
become `\x1b`, `\u202e` and so on; anything else stays as it is, in every script.
"""

import re
import unicodedata
from typing import Final

_WRITTEN_OUT: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_ALSO: Final = frozenset("\u115f\u1160\u3164\uffa0\u034f\u2800")
"""Letters and marks that are blank."""
_PLAIN: Final = re.compile(r"[\x20-\x7e]*")


def visible(text: str, *, keep: str = "") -> str:
    """The text in one line, and all of it to be seen. `keep` are controls that stay what they are, such as line ends."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(
        letter if letter in keep or _is_seen(letter) else letter.encode("unicode_escape").decode() for letter in text
    )


def visible_json(text: str) -> str:
    """The same for JSON, which then says just what it said: what is to be seen is an escape of JSON's own."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(letter if letter == "\n" or _is_seen(letter) else _json_escape(letter) for letter in text)


def visible_lines(text: str) -> str:
    """The same for text of several lines."""
    return visible(text, keep="\n\t")


def _json_escape(letter: str) -> str:
    pair = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{pair[at : at + 4]}" for at in range(0, len(pair), 4))


def _is_seen(letter: str) -> bool:
    return unicodedata.category(letter) not in _WRITTEN_OUT and letter not in _ALSO
