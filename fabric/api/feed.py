"""Who watches which jobs: one question to the gate at a time, however many clients look on.

While anybody watches, one task asks the gate what changed after the last revision and hands it round. What a slow
watcher has not read yet is replaced by what is newer of the same job, so nobody can make the door hold more than one
view of each job.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

import structlog

from fabric.api.gate_port import GatePort
from fabric.gate.questions import RevisionOf
from fabric.gate.views import CHANGES_MAX, JobView

log = structlog.get_logger()

_POLL_S: Final = 20.0
_PAUSE_S: Final = 0.5


class _Watcher:
    """One stream: what it has still to be sent."""

    def __init__(self, account_id: str | None) -> None:
        self.account_id = account_id
        self.pending: dict[str, JobView] = {}
        self.arrived = asyncio.Event()

    def offer(self, view: JobView) -> None:
        if self.account_id in (None, view.account_id):
            self.pending.pop(view.job_id, None)
            self.pending[view.job_id] = view
            self.arrived.set()

    async def take(self) -> list[JobView]:
        await self.arrived.wait()
        self.arrived.clear()
        views, self.pending = list(self.pending.values()), {}
        return views


class ChangeFeed:
    """Job changes as streams."""

    def __init__(self, port: GatePort) -> None:
        self._port = port
        self._watchers: list[_Watcher] = []
        self._reader: asyncio.Task[None] | None = None
        self._caught_up = asyncio.Event()
        self._revision = 0

    async def watch(
        self,
        account_id: str | None,
        *,
        after_revision: int | None,
        pace: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncGenerator[int | JobView, None]:
        """The revision from which on the stream misses nothing, then every change, oldest first.

        With `after_revision` the changes since then come first, a page after the other; `pace` is awaited before each.
        """
        watcher = _Watcher(account_id)
        self._watchers.append(watcher)
        self._start()
        try:
            await self._caught_up.wait()
            sent = self._revision if after_revision is None else after_revision
            yield sent
            if after_revision is not None:
                backlog: list[JobView] | None = None
                while backlog is None or len(backlog) >= CHANGES_MAX:
                    if pace is not None:
                        await pace()
                    backlog = await self._port.changes(account_id=account_id, after_revision=sent, timeout_s=0)
                    for view in backlog:
                        sent = max(sent, view.revision)
                        yield view
            while True:
                for view in sorted(await watcher.take(), key=_revision_of):
                    if view.revision > sent:
                        sent = view.revision
                        yield view
        finally:
            self._watchers.remove(watcher)

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader

    def _start(self) -> None:
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        """Follow the gate for as long as anybody watches; the revision is kept for the next time."""
        self._caught_up.clear()
        while self._watchers:
            caught_up = self._caught_up.is_set()
            try:
                if not caught_up:
                    found: Any = await self._port.ask(RevisionOf())
                    self._revision = found
                    self._caught_up.set()
                views = await self._port.changes(account_id=None, after_revision=self._revision, timeout_s=_POLL_S)
            except Exception as error:  # noqa: BLE001  # watchers are kept waiting, never left behind
                log.warning("feed_interrupted", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(_PAUSE_S)
                continue
            for view in views:
                self._revision = max(self._revision, view.revision)
                for watcher in self._watchers:
                    watcher.offer(view)


def _revision_of(view: JobView) -> int:
    return view.revision
