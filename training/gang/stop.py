"""The wish to stop of a rank among others: it counts when all have agreed on it, or when it is too late for that."""

from typing import Protocol

from fabric.errors import InvalidRequest
from training.state.stopping import Stop


class Agreeing(Protocol):
    """The ranks of a gang, as one of them sees them."""

    lost_named: str
    """Who was lost, where that ends the attempt; "" = nobody."""

    @property
    def takes_snapshots(self) -> bool:
        """Whether this rank is the one that saves between stops."""

    def await_agreed(self, timeout_s: float) -> bool:
        """Whether they have agreed to stop, after at most so long."""

    def is_too_late(self, left_s: float | None) -> bool:
        """Whether there is no time to stop together."""

    def end(self) -> None:
        """What is saved from now on is the last of this attempt."""


class GangStop:
    """A wish to stop that counts when the gang agreed on it, or when it is too late for that."""

    def __init__(self, together: Agreeing, inner: Stop) -> None:
        self._together, self._inner = together, inner

    @property
    def reason(self) -> str:
        ended_by = "a peer is lost" if self._together.lost_named else "a peer was asked to stop"
        return self._inner.reason or ended_by

    def wait(self, timeout_s: float) -> bool:
        if self._together.await_agreed(0):
            return True
        if not self._inner.wait(timeout_s):
            return self._together.await_agreed(0)
        if self._together.is_too_late(self._inner.seconds_left()):
            self._together.end()
            return True
        return self._together.await_agreed(timeout_s)

    def seconds_left(self) -> float | None:
        return self._inner.seconds_left()

    def is_save_wanted(self) -> bool:
        return self._inner.is_save_wanted()

    def is_snapshot_wanted(self) -> bool:
        return self._together.takes_snapshots and self._inner.is_snapshot_wanted()

    def note_unsaved(self, why: InvalidRequest | None) -> None:
        if not self._together.lost_named:  # with a peer's part its steps are lost, whoever tries again
            self._inner.note_unsaved(why)

    def ending(self) -> BaseException:
        return self._inner.ending()

    def depart(self, thread: int) -> None:
        self._inner.depart(thread)

    def end_process(self) -> None:
        self._inner.end_process()

    def listen(self) -> None:
        self._inner.listen()

    def close(self) -> None:
        self._inner.close()
