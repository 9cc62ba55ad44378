"""The gate as its Ray actor: what a door in another process or on another machine calls.

While the actor restarts, Ray itself retries the calls under way; what it gives up on becomes `Unavailable`, which
clients may retry.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from ray.exceptions import RayActorError, RayError, RayTaskError

from fabric.errors import FabricError, Internal, Unavailable
from fabric.gate.events import AnyEvent
from fabric.gate.instructions import Outcome
from fabric.gate.questions import AnyAnswer, AnyQuestion
from fabric.gate.views import JobView, LogChunk
from fabric.outage import Outage

LOOK_S: Final = 2.0
"""How long a call waits until it is asked whether the gate is there."""
PULSE_S: Final = 5.0
"""How long the answer to that may take."""
_IN_DOUBT: Final = "Whether this call was carried out is not known, and asking again with the same request id is safe"


class RemoteGate:
    """A `fabric.api.gate_client.Gate` that asks the named actor."""

    def __init__(self, actor: Any) -> None:
        """`actor` is called as a handle is: with `actor.decide.remote(...)`."""
        self._actor = actor
        self._pulse = Pulse(actor)

    async def decide(self, events: Sequence[AnyEvent]) -> list[Outcome]:
        outcomes: list[Outcome] = await self._pulse.answer(self._actor.decide, list(events))
        return outcomes

    async def ask(self, question: AnyQuestion) -> AnyAnswer:
        found: AnyAnswer = await self._pulse.answer(self._actor.ask, question)
        return found

    async def changes(self, account_id: str | None, after_revision: int, timeout_s: float) -> list[JobView]:
        views: list[JobView] = await self._pulse.answer(self._actor.changes, account_id, after_revision, timeout_s)
        return views

    async def logs(self, job_id: str, account_id: str, offsets: dict[str, int]) -> list[LogChunk]:
        page: list[LogChunk] = await self._pulse.answer(self._actor.logs, job_id, account_id, offsets)
        return page

    async def export(self, account_id: str | None, since: int | None, start: int, count: int) -> list[bytes]:
        lines: list[bytes] = await self._pulse.answer(self._actor.export, account_id, since, start, count)
        return lines


class Pulse:
    """Whether the gate's process answers at all: looked at while somebody waits for it, and until it does where it didn't.

    A gate that thinks for long says at once that it is there; one that hangs, or is beyond a network that is away, doesn't.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._looking: asyncio.Task[None] | None = None
        self._outage: Outage | None = None

    async def answer(self, method: Any, *given: Any) -> Any:
        """What the gate answers, however long it takes; nobody waits for one that is silent.

        Raises:
            Unavailable: `gate_silent`, or what `call` raises.
        """
        if self._outage is not None:
            raise self._outage.refusal(_IN_DOUBT)
        asking = asyncio.ensure_future(call(method.remote(*given)))
        try:
            while not (await asyncio.wait((asking,), timeout=LOOK_S))[0]:
                if self._looking is None:
                    self._looking = asyncio.create_task(self._look())
                await asyncio.wait((asking, self._looking), timeout=PULSE_S, return_when=asyncio.FIRST_COMPLETED)
                if self._outage is not None and not asking.done():
                    raise self._outage.refusal(_IN_DOUBT)
            return asking.result()
        finally:
            asking.cancel()

    async def _look(self) -> None:
        try:
            while True:
                try:
                    await asyncio.wait_for(call(self._actor.ailment.remote()), PULSE_S)
                except TimeoutError:
                    silent = TimeoutError(f"its process has not answered for {PULSE_S:g} s: it starts again, or hangs")
                    self._outage = self._outage or Outage("the gate", silent, code="gate_silent")
                    self._outage.tried(silent)
                except FabricError:
                    return  # who waits hears of it
                else:
                    return
        finally:
            self._outage = self._looking = None


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
