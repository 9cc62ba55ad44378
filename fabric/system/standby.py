"""A thread that stands ready before there is work for it: starting one takes as long as a short job."""

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Standby:
    """Does one thing, in a thread of its own, and ends."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._wait, name="fabric-job", daemon=True).start()

    def begin(self, work: Callable[[], None]) -> None:
        """Have it done, now."""
        self._work.put(work)

    def _wait(self) -> None:
        work = self._work.get()
        work()
