"""What the gate has to do with notices: it keeps the process that tells running, and the desk where customers say where."""

import asyncio
from collections.abc import Callable
from typing import Final

from fabric.clock import SteadyClock
from fabric.cluster.metrics import Metrics
from fabric.config.cluster import ClusterConfig
from fabric.journal.followers import Position
from fabric.journal.process import place_of
from fabric.notifications.desk import NoticeDesk
from fabric.notifications.process import NoticeProcess
from fabric.notifications.store import open_store
from fabric.server.chores import again_and_again

WATCH_S: Final = 10.0


class Notices:
    """One for each gate."""

    def __init__(
        self, config: ClusterConfig, *, size: Callable[[], int], metrics: Callable[[], Metrics | None]
    ) -> None:
        """Nothing is opened or started.

        Args:
            config: where the journal is, and what the operator allows.
            size: how many entries the journal has, once the gate is up.
            metrics: where figures go.
        """
        self._store = open_store(place_of(config))
        self._process = NoticeProcess(config, self._store)
        self._size = size
        self._metrics = metrics
        self.desk = NoticeDesk(self._store, here=self._here, begun=self._process.begin, now_us=SteadyClock().now_us)

    def begin(self) -> list[asyncio.Task[None]]:
        """What goes on by itself from now on: to be cancelled at the end."""
        return [
            asyncio.create_task(self._process.run()),
            asyncio.create_task(again_and_again(self._watch_notices, WATCH_S, failed_pause_s=WATCH_S)),
        ]

    async def close(self) -> None:
        await self._store.close()

    async def _here(self) -> Position:
        return Position(self._size())

    async def _watch_notices(self) -> None:
        """How far those are who tell, for an operator to see."""
        metrics = self._metrics()
        if metrics is not None and self._process.pid is not None:
            standing = await self._store.standing()
            behind = self._size() - standing.followed if standing.followed is not None else 0
            metrics.notices(behind, standing.waiting, standing.failing, standing.ended)
