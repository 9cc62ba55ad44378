"""The process that tells: follows the journal that its standard input names, and delivers, until that ends."""

import asyncio
from contextlib import suppress
from typing import Final

import msgspec

from fabric.clock import SteadyClock
from fabric.journal.follower_process import follow_as_told
from fabric.journal.followers import Follower
from fabric.notifications.addresses import networks
from fabric.notifications.chats import Ways
from fabric.notifications.deliverer import Deliverer
from fabric.notifications.process import Task
from fabric.notifications.store import open_store
from fabric.notifications.watcher import FROM_THE_END, Watcher
from fabric.notifications.webhooks import Sender

NICENESS: Final = 10
"""What decides and what serves goes first."""
TIME_PASSES_S: Final = 60.0


async def _tell(told: bytes) -> None:
    task = msgspec.json.decode(told, type=Task)
    now_us = SteadyClock().now_us
    store = open_store(task.place)
    watcher = Watcher(task.place.journal(), store, now_us=now_us)
    follower = Follower(task.place.journal(), watcher, name="notices", first=FROM_THE_END)
    sender = Ways(Sender(networks(task.private_networks)))
    await asyncio.gather(
        follower.run(), _watch_time(watcher), Deliverer(open_store(task.place), sender, now_us=now_us).run()
    )


async def _watch_time(watcher: Watcher) -> None:
    """What follows from the time alone is told within a minute."""
    while True:
        await asyncio.sleep(TIME_PASSES_S)
        with suppress(Exception):  # the follower tells of a store that is away
            await watcher.time_passes()


if __name__ == "__main__":
    follow_as_told(_tell, niceness=NICENESS)
