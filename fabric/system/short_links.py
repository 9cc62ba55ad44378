"""Short ways to a rank's folders, for the sockets that are made in them: of a socket's path the kernel takes few characters.

A link in the system's folder for temporary files, where nobody can take it away from its owner. Its name follows from where
it leads, so that whoever clears the folder away finds it too: a process that was killed removes nothing.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

RAY: Final = "ray"
TEMPORARY: Final = "tmp"
_ROOMS: Final = (RAY, TEMPORARY)
_PLACE: Final = Path(os.sep, "tmp")
_SHORT_CHARS: Final = 64
"""Leaves room for names within."""


def short_link(folder: Path, room: str) -> Path:
    """A short path to a room of a rank's folder; the long one if there can't be a link."""
    link, target = _link_of(folder, room), folder / room
    _unlink(link)
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        return target
    return link


def short_path(folder: Path, room: str) -> Path:
    """A path to a room of a rank's folder that leaves room for a socket: its own, or a link's."""
    own = folder / room
    return own if len(os.fsencode(own)) <= _SHORT_CHARS else short_link(folder, room)


def unlink_all(folder: Path) -> None:
    """With a rank's folder go the short ways to it."""
    for room in _ROOMS:
        _unlink(_link_of(folder, room))


def _unlink(link: Path) -> None:
    with suppress(OSError):
        if link.lstat().st_uid == os.geteuid() and link.is_symlink():
            link.unlink()


def _link_of(folder: Path, room: str) -> Path:
    return _PLACE / f"fabric-{room}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
