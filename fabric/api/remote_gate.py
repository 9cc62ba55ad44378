"""The gate as its Ray actor: what a door in another process or on another machine calls.

While the actor restarts, Ray itself retries the calls under way; what it gives up on becomes `Unavailable`, which
clients may retry.
"""

from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError

from fabric.errors import FabricError, Internal, Unavailable
from fabric.gate.events import AnyEvent
from fabric.gate.instructions import Outcome
from fabric.gate.questions import AnyAnswer, AnyQuestion
from fabric.gate.views import JobView, LogChunk


class RemoteGate:
    """A `fabric.api.passage.Gate` that asks the named actor."""

    def __init__(self, actor: Any) -> None:
        """`actor` is called as a handle is: with `actor.decide.remote(...)`."""
        self._actor = actor

    async def decide(self, events: Sequence[AnyEvent]) -> list[Outcome]:
        outcomes: list[Outcome] = await call(self._actor.decide.remote(list(events)))
        return outcomes

    async def ask(self, question: AnyQuestion) -> AnyAnswer:
        found: AnyAnswer = await call(self._actor.ask.remote(question))
        return found

    async def changes(self, account_id: str | None, after_revision: int, timeout_s: float) -> list[JobView]:
        views: list[JobView] = await call(self._actor.changes.remote(account_id, after_revision, timeout_s))
        return views

    async def logs(self, job_id: str, account_id: str, offsets: dict[str, int]) -> list[LogChunk]:
        page: list[LogChunk] = await call(self._actor.logs.remote(job_id, account_id, offsets))
        return page

    async def export(self, account_id: str | None, since: int | None, start: int, count: int) -> list[bytes]:
        lines: list[bytes] = await call(self._actor.export.remote(account_id, since, start, count))
        return lines


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
