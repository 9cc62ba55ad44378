"""The follower's process: makes the projection of the journal that its standard input names, until that ends."""

from typing import Final

import msgspec

from fabric.journal.follower_process import follow_as_told
from fabric.journal.followers import Follower
from fabric.journal.place import Place
from fabric.journal.projector import Projector

BATCH: Final = 2_000
"""Entries in one transaction of the projection."""
NICENESS: Final = 5
"""What decides and what serves goes first."""


async def _follow(told: bytes) -> None:
    place = msgspec.json.decode(told, type=Place)
    await Follower(place.journal(), Projector(place.tables()), name="projection", batch=BATCH).run()


if __name__ == "__main__":
    follow_as_told(_follow, niceness=NICENESS)
