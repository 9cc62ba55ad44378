"""The process that tells, as the gate keeps it: beside the gate, never in its way, and only where there is an endpoint."""

import asyncio

import msgspec

from fabric.config.cluster import ClusterConfig
from fabric.errors import FabricError
from fabric.journal.place import InFiles, Place
from fabric.journal.process import FollowerProcess, place_of
from fabric.notifications.store import NoticeStore, file_of

LOOK_S = 30.0
"""How often a store that couldn't be asked is asked again whether it has endpoints."""


class Task(msgspec.Struct, frozen=True):
    """What the process is told."""

    place: Place
    private_networks: tuple[str, ...] = ()
    """To which webhooks may lead."""


class NoticeProcess:
    """Keeps the process running once there is an endpoint."""

    def __init__(self, config: ClusterConfig, store: NoticeStore) -> None:
        """Nothing is started.

        Args:
            config: where the journal is, and what the operator allows.
            store: where endpoints are kept.
        """
        task = Task(place_of(config), tuple(config.notices.private_networks))
        self._place = task.place
        self._process = FollowerProcess(task.place, module="fabric.notifications", said=msgspec.json.encode(task))
        self._store = store
        self._wanted = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Of the process, while one runs."""
        return self._process.pid

    def begin(self) -> None:
        """There is an endpoint."""
        self._wanted.set()

    async def run(self) -> None:
        """Run it as soon as there is an endpoint; until cancelled, which ends it."""
        while not self._wanted.is_set():
            try:
                if self._may_have_some() and await self._store.endpoints():
                    break
            except FabricError:
                await asyncio.sleep(LOOK_S)
            else:
                await self._wanted.wait()
        await self._process.run()

    def _may_have_some(self) -> bool:
        """A file is not made to be looked into."""
        return not isinstance(self._place, InFiles) or file_of(self._place).exists()
