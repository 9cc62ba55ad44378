"""The gate port over the Ray actor: what a door in another process or on another machine uses.

Blobs go straight to the archive and never through the gate. While the actor restarts, Ray itself retries the calls under
way; what it gives up on becomes `Unavailable`, which clients may retry.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from ray.exceptions import RayActorError, RayError, RayTaskError

from fabric.adapters.archive import Archive
from fabric.adapters.cluster_settings import checkpoints_in
from fabric.api.log_pages import log_pages
from fabric.checkpoints import Checkpoints
from fabric.errors import FabricError, Internal, Unavailable
from fabric.gate.events import AnyEvent
from fabric.gate.instructions import Outcome
from fabric.gate.questions import AnyAnswer, AnyQuestion
from fabric.gate.views import JobView, LogChunk

EXPORT_PAGE: Final = 2_000


class RayPort:
    """A `GatePort` in front of the named actor."""

    def __init__(self, actor: Any, *, archive: Archive) -> None:
        self._actor = actor
        self._archive = archive

    async def decide(self, events: Sequence[AnyEvent]) -> list[Outcome]:
        outcomes: list[Outcome] = await call(self._actor.decide.remote(list(events)))
        return outcomes

    async def ask(self, question: AnyQuestion) -> AnyAnswer:
        found: AnyAnswer = await call(self._actor.ask.remote(question))
        return found

    async def changes(self, *, account_id: str | None, after_revision: int, timeout_s: float) -> list[JobView]:
        views: list[JobView] = await call(self._actor.changes.remote(account_id, after_revision, timeout_s))
        return views

    def logs(self, job_id: str, *, offsets: dict[str, int], follow: bool) -> AsyncIterator[LogChunk]:
        return log_pages(self.ask, self._read_page, job_id, offsets=offsets, follow=follow)

    async def put_blob(self, key: str, data: bytes) -> None:
        await asyncio.to_thread(self._archive.put, key, data)

    async def get_blob(self, key: str) -> bytes:
        return await asyncio.to_thread(self._archive.get, key)

    def checkpoints_of(self, account_id: str, job_id: str) -> Checkpoints:
        return checkpoints_in(self._archive, account_id, job_id)

    async def export(self, *, account_id: str | None) -> AsyncIterator[bytes]:
        start = 0
        while lines := await call(self._actor.export.remote(account_id, start, EXPORT_PAGE)):
            for line in lines:
                yield line
            start += len(lines)

    async def _read_page(self, job_id: str, account_id: str, offsets: dict[str, int]) -> list[LogChunk]:
        page: list[LogChunk] = await call(self._actor.logs.remote(job_id, account_id, offsets))
        return page


async def call(reference: Any) -> Any:
    """The answer of the actor; what went wrong there as the error that it is."""
    try:
        return await reference
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, FabricError):
            raise cause from None
        raise Internal(f"the gate failed: {type(cause).__name__}") from error
    except RayActorError as error:
        raise Unavailable("the gate is restarting: try again", code="gate_restarting") from error
    except RayError as error:
        raise Unavailable(f"the gate can't be reached: {type(error).__name__}", code="gate_unreachable") from error
