"""How a door hands events to the gate and hears its answer: one by one, or gathered while the gate is busy.

Where each call to the gate is a hop to another process, lists are far faster than single events. A door in the gate's
own process need gather nothing: the gate's writer does.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from fabric.api.gate_port import GatePort
from fabric.errors import FabricError, error_of
from fabric.gate.events import AnyEvent
from fabric.gate.instructions import Accepted, Outcome, Refusal

BATCH_MAX: Final = 1_000


class Decider(Protocol):
    """Asks the gate for a decision."""

    async def decide(self, event: AnyEvent) -> Accepted:
        """The gate's yes.

        Raises:
            FabricError: the gate's no, as its own class; `Unavailable` if it could not be asked.
        """


class Straight:
    """Hands each event in as it comes."""

    def __init__(self, port: GatePort) -> None:
        self._port = port

    async def decide(self, event: AnyEvent) -> Accepted:
        (outcome,) = await self._port.decide((event,))
        return _yes(outcome)


class Batcher:
    """One call to the gate at a time; everything that came meanwhile goes with the next."""

    def __init__(self, port: GatePort) -> None:
        self._port = port
        self._waiting: list[tuple[AnyEvent, asyncio.Future[Outcome]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def decide(self, event: AnyEvent) -> Accepted:
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, answer))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return _yes(await answer)

    async def _send(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
                await self._send_batch(batch)
        finally:
            self._sender = None

    async def _send_batch(self, batch: Sequence[tuple[AnyEvent, asyncio.Future[Outcome]]]) -> None:
        try:
            outcomes = await self._port.decide([event for event, _ in batch])
        except Exception as error:  # noqa: BLE001  # whoever waits must hear of it, whatever it is
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(_copy(error))
            return
        for (_, answer), outcome in zip(batch, outcomes, strict=True):
            if not answer.done():
                answer.set_result(outcome)


def _yes(outcome: Outcome) -> Accepted:
    if isinstance(outcome, Refusal):
        raise error_of(outcome.code, outcome.http_status, outcome.message, outcome.facts)
    return outcome


def _copy(error: Exception) -> Exception:
    """One for each waiter: an exception that is raised twice gathers both tracebacks."""
    if isinstance(error, FabricError):
        return error_of(error.code, error.http_status, error.message, error.facts)
    return error
