"""Work for clients that takes as long as what they keep is large: few threads, and few of them for each customer.

Going back to a checkpoint and forking from one read all of it first. One customer who asks for much of that must be in the way
neither of the gate, whose process this may be, nor of other customers.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar, TypeVarTuple, Unpack

from fabric.errors import RateLimited

THREADS: Final = 4
EACH: Final = 2
"""At work at once, of one customer."""
ASKED_MAX: Final = 16
"""Of one customer: at work, and waiting for their turn."""

T = TypeVar("T")
Given = TypeVarTuple("Given")


@dataclass(slots=True)
class _Line:
    asked: int = 0
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(EACH))


class Lengthy:
    """A door's."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lengthy")
        self._lines: dict[str, _Line] = {}

    async def run(self, caller: str, call: Callable[[Unpack[Given]], T], *given: *Given) -> T:
        """Run it in a thread, when it is the caller's turn. Begun, it counts until it is done, whoever still waits for it.

        Raises:
            RateLimited: `too_much_at_once`.
        """
        line = self._lines.setdefault(caller, _Line())
        if line.asked >= ASKED_MAX:
            raise RateLimited(
                f"{line.asked} checkpoints are being read for you, which is all that may be at once: wait for some of them",
                code="too_much_at_once",
                limit=ASKED_MAX,
            )
        line.asked += 1
        begun = False
        try:
            await line.turns.acquire()
            work = asyncio.get_running_loop().run_in_executor(self._threads, call, *given)
            begun = True
            work.add_done_callback(lambda done: self._done(caller, line, done))
        finally:
            if not begun:
                self._leave(caller, line)
        return await asyncio.shield(work)

    def _done(self, caller: str, line: _Line, done: "asyncio.Future[T]") -> None:
        line.turns.release()
        self._leave(caller, line)
        if not done.cancelled():
            done.exception()  # nobody may be waiting for it any more

    def _leave(self, caller: str, line: _Line) -> None:
        line.asked -= 1
        if not line.asked:
            del self._lines[caller]
