"""Who serves which model, as hosts and gateways report it: kept in the door's memory for seconds, journaled nowhere.

Each reporter's word replaces what it said before, and is forgotten when it falls silent: a replica that nobody vouches
for any more is not offered to gateways. Whoever watches gets the whole board whenever it has changed.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from typing import Final

from fabric.clock import Clock
from fabric.errors import RateLimited
from fabric.wire import fabric_pb2 as pb

FORGET_S: Final = 6.0
"""Reporters speak every second."""
REPORTERS_MAX: Final = 512
HEARTBEAT_S: Final = 1.0
PAUSE_S: Final = 0.1
"""Between two boards for one watcher: what changes meanwhile goes together."""


class Board:
    """What was reported lately."""

    def __init__(self, clock: Clock, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._reports: OrderedDict[str, tuple[float, pb.ReportServingRequest]] = OrderedDict()
        self._changed = asyncio.Event()

    def report(self, said: pb.ReportServingRequest) -> None:
        """Take a reporter's word.

        Raises:
            RateLimited: more reporters than anybody runs.
        """
        self._forget()
        before = self._reports.pop(said.reporter, (0.0, None))[1]
        if len(self._reports) >= REPORTERS_MAX:
            raise RateLimited(
                f"{REPORTERS_MAX} hosts and gateways report already: keep each one's name", code="too_many_reporters"
            )
        self._reports[said.reporter] = (self._monotonic(), said)
        if before != said:
            self._changed.set()
            self._changed = asyncio.Event()

    def shown(self) -> pb.ServingBoard:
        """The whole of it, now."""
        self._forget()
        board = pb.ServingBoard(at_us=self._clock.now_us())
        queues: dict[str, pb.ModelQueue] = {}
        for _, said in self._reports.values():
            board.replicas.extend(said.replicas)
            board.models.extend(said.models)
            if said.endpoint and said.endpoint not in board.endpoints:
                board.endpoints.append(said.endpoint)
            for queue in said.queues:
                summed = queues.setdefault(queue.model, pb.ModelQueue(model=queue.model))
                summed.waiting += queue.waiting
                summed.running += queue.running
                summed.oldest_us = max(summed.oldest_us, queue.oldest_us)
        board.queues.extend(queues.values())
        return board

    async def watch(self) -> AsyncGenerator[pb.ServingBoard, None]:
        """The board at once, then whenever it has changed, and at least every second."""
        while True:
            changed = self._changed
            yield self.shown()
            await asyncio.sleep(PAUSE_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), HEARTBEAT_S)

    def _forget(self) -> None:
        """Reports stand in the order in which they came."""
        silent_since = self._monotonic() - FORGET_S
        while self._reports:
            reporter, (at, _) = next(iter(self._reports.items()))
            if at > silent_since:
                return
            del self._reports[reporter]
