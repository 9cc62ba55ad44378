"""The follower's process: makes the projection of the journal that its standard input names, until that ends."""

import asyncio
import os
import sys
import threading
from contextlib import suppress
from typing import Final

import msgspec

from fabric import logs
from fabric.journal.followers import Follower
from fabric.journal.place import Place
from fabric.journal.projector import Projector

BATCH: Final = 2_000
"""Entries in one transaction of the projection."""
NICENESS: Final = 5
"""What decides and what serves goes first."""


def main() -> None:
    """Be told what to follow, and follow it."""
    logs.begin()
    with suppress(OSError):
        os.nice(NICENESS)
    told = sys.stdin.buffer.readline()
    if not told:
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_follow(msgspec.json.decode(told, type=Place)))


async def _follow(place: Place) -> None:
    await Follower(place.journal(), Projector(place.tables()), name="projection", batch=BATCH).run()


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(0)  # at once: all that is kept is in transactions


if __name__ == "__main__":
    main()
