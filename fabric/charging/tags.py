"""Tags: what jobs and calls are marked with, as cost centres are: `team=red`. Words alone mark jobs, too.

A project's and a key's own tags are those of all that is done with them, unless that says otherwise: of several tags of one name
the nearest counts. All is bounded, as every charging record keeps them.
"""

from collections.abc import Sequence
from typing import Final

OWN_MAX: Final = 16
"""Of one job or call; each with its own size, they have `BYTES_MAX` together."""
BYTES_MAX: Final = 1_024
DEFAULTS_MAX: Final = 8
"""Of a key, and of a project."""
DEFAULT_BYTES_MAX: Final = 512
NAME_CHARS_MAX: Final = 64
VALUE_CHARS_MAX: Final = 256
TAGS_MAX: Final = OWN_MAX + 2 * DEFAULTS_MAX
"""Of one record, with all that it has from its key and project."""


def name_of(tag: str) -> str:
    """What it says something of: of a word alone, that."""
    return tag.partition("=")[0]


def inherited(*sets: Sequence[str]) -> tuple[str, ...]:
    """All of them, farthest first: a tag of a set that another tag of its name is nearer than is left out."""
    found: list[str] = []
    nearer: set[str] = set()
    for tags in reversed(sets):
        found[:0] = dict.fromkeys(tag for tag in tags if name_of(tag) not in nearer)
        nearer.update(map(name_of, tags))
    return tuple(found)


def flaw_of(tags: Sequence[str], *, most: int = OWN_MAX, bytes_max: int = BYTES_MAX) -> str:
    """What is wrong with them; "" if nothing is."""
    if len(tags) > most:
        return f"there are {len(tags)} tags, at most {most} may be given: leave some out"
    for tag in tags:
        name, _, value = tag.partition("=")
        if not _is_name(name):
            return f"a tag's name has 1 to {NAME_CHARS_MAX} letters, digits and ._:/@+-, the first a letter or a digit, unlike {name[:80]!r}"
        if len(value) > VALUE_CHARS_MAX:
            return f"tag {name!r} has {len(value)} characters, at most {VALUE_CHARS_MAX} may be given: shorten it"
        if not tag.isprintable():
            return f"tag {name!r} has characters that can't be printed: leave control characters and line ends out"
    size = sum(len(tag.encode(errors="replace")) for tag in tags)
    if size > bytes_max:
        return f"the tags have {size} bytes together, at most {bytes_max} may be given: shorten them"
    return ""


def _is_name(name: str) -> bool:
    fits = 0 < len(name) <= NAME_CHARS_MAX and name[0].isalnum()
    return fits and all(letter.isalnum() or letter in "._:/@+-" for letter in name)


def clipped(tags: Sequence[str]) -> tuple[str, ...]:
    """As many and as much of them as a record keeps: what was used is charged, however it was marked."""
    most = NAME_CHARS_MAX + 1 + VALUE_CHARS_MAX
    return tuple(tag[:most] for tag in tags[:TAGS_MAX])
