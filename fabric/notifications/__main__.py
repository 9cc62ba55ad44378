"""The process that tells: follows the journal that its standard input names, and delivers, until that ends."""

import asyncio
import os
import sys
import threading
from contextlib import suppress
from typing import Final

import msgspec

from fabric import logs
from fabric.clock import SteadyClock
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


def main() -> None:
    """Be told what to follow, and follow it."""
    logs.begin()
    with suppress(OSError):
        os.nice(NICENESS)
    told = sys.stdin.buffer.readline()
    if not told:
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_tell(msgspec.json.decode(told, type=Task)))


async def _tell(task: Task) -> None:
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


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(0)  # at once: all that is kept is in transactions


if __name__ == "__main__":
    main()
