"""Who asks a run to stop, and how it leaves: one thing for eviction, parking, drain, limits and cancelling.

Inside the fabric it is the job's context. A plain process that was given a directory for its checkpoints listens for
SIGTERM and leaves with exit code 75, which `fabric run`, Slurm and others take for "saved, queue me again", or with 1 if the save
failed. Otherwise nobody asks.
"""

import ctypes
import os
import signal
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, Protocol

from fabric import context
from fabric.errors import InvalidRequest

EXIT_SAVED: Final = 75
EXIT_UNSAVED: Final = 1
"""Of a process that was to save and could not: whoever started it should look before it is queued again."""
GRACE_VARIABLE: Final = "FABRIC_GRACE_S"
"""Seconds between the signal and the end, for a process that is told by a signal."""


class Stop(Protocol):
    """A wish to end the run that may come at any time, from any thread."""

    @property
    def reason(self) -> str:
        """evicted, paused, ...; "" while nobody asks."""

    def wait(self, timeout_s: float) -> bool:
        """Whether it has come, after at most so long."""

    def seconds_left(self) -> float | None:
        """Until the run is ended anyway; None = nobody has said."""

    def is_save_wanted(self) -> bool:
        """Whether the state matters to anyone."""

    def is_snapshot_wanted(self) -> bool:
        """Whether a checkpoint is asked for while the run goes on."""

    def note_unsaved(self, why: InvalidRequest | None) -> None:
        """The save for this stop failed: the run does not end as saved. `why` if no other attempt would fare better."""

    def ending(self) -> BaseException:
        """What the training thread raises to end the run by itself."""

    def depart(self, thread: int) -> None:
        """End the run's thread, which does not come to a boundary by itself, or the process."""

    def end_process(self) -> None:
        """It did not end: it waits for something in C. End its process, if that is its own."""

    def listen(self) -> None:
        """Hear the wish from now on, even if somebody has taken its signal meanwhile, as trainers do when they begin."""

    def close(self) -> None:
        """The run is over: listen no more."""


def stop_of(job: context.Context, *, is_kept: bool) -> Stop:
    """How this process is asked to stop; `is_kept` = there is a place for its state."""
    if job.job_id:
        return JobStop(job)
    return SignalStop() if is_kept else NoStop()


def _kind_of(error: InvalidRequest) -> type[InvalidRequest]:
    """A class that makes this very error: an exception comes to another thread as a class."""

    def made(self: InvalidRequest) -> None:
        InvalidRequest.__init__(self, error.message, code=error.code, **error.facts)

    return type("InvalidRequest", (InvalidRequest,), {"__init__": made})


class JobStop:
    """The wish of the fabric, through the job's context."""

    def __init__(self, job: context.Context) -> None:
        self._job = job
        self._unkept: InvalidRequest | None = None

    @property
    def reason(self) -> str:
        return self._job.stop_reason

    def wait(self, timeout_s: float) -> bool:
        return self._job.wait_for_stop(timeout_s)

    def seconds_left(self) -> float | None:
        return self._job.deadline_s_left()

    def is_save_wanted(self) -> bool:
        return self._job.save_wanted

    def is_snapshot_wanted(self) -> bool:
        return self._job.save_requested

    def note_unsaved(self, why: InvalidRequest | None) -> None:
        """The fabric counts what became durable; a job whose state can't be kept has failed."""
        self._unkept = why

    def ending(self) -> BaseException:
        return self._unkept or context.Saved()

    def depart(self, thread: int) -> None:
        """Raise what ends it in the job's thread at its next line of Python."""
        kind = context.Saved if self._unkept is None else _kind_of(self._unkept)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))

    def end_process(self) -> None:
        if self._job.owns_process:
            _exit(EXIT_SAVED)

    def listen(self) -> None:
        """Its context tells it, whatever becomes of signals."""

    def close(self) -> None:
        """Nothing to undo."""


class NoStop:
    """Nobody asks: a script on its own that keeps nothing. A signal ends it, as it always did."""

    @property
    def reason(self) -> str:
        return ""

    def wait(self, timeout_s: float) -> bool:
        time.sleep(timeout_s)
        return False

    def seconds_left(self) -> float | None:
        return None

    def is_save_wanted(self) -> bool:
        return False

    def is_snapshot_wanted(self) -> bool:
        return False

    def note_unsaved(self, why: InvalidRequest | None) -> None:
        """Nobody asked."""

    def ending(self) -> BaseException:
        return context.Saved()

    def depart(self, thread: int) -> None:
        """Never."""

    def end_process(self) -> None:
        """Never."""

    def listen(self) -> None:
        """To nobody."""

    def close(self) -> None:
        """Nothing to undo."""


@dataclass(slots=True)
class _Notice:
    """A signal that nobody has ended by yet: it is for the process, whichever of its runs is under way."""

    deadline: float | None


_unheeded: Final[list[_Notice]] = []


class SignalStop:
    """SIGTERM, in a process of the run's own. What came when the run before was at its end anyway is for this one."""

    def __init__(self) -> None:
        self._reason = ""
        self._came = threading.Event()
        self._deadline: float | None = None
        self._exit = EXIT_SAVED
        if _unheeded:
            self._take(_unheeded[-1])
        self._before: Any = None
        self._listens = threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
            _listening.add(self)

    @property
    def reason(self) -> str:
        return self._reason

    def wait(self, timeout_s: float) -> bool:
        return self._came.wait(timeout_s)

    def seconds_left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def is_save_wanted(self) -> bool:
        return True

    def is_snapshot_wanted(self) -> bool:
        return False

    def note_unsaved(self, why: InvalidRequest | None) -> None:  # noqa: ARG002  # it was said
        self._exit = EXIT_UNSAVED

    def ending(self) -> BaseException:
        _unheeded.clear()
        return SystemExit(self._exit)

    def depart(self, thread: int) -> None:  # noqa: ARG002  # all of the process ends
        """End the process here and now: what counts is durable."""
        _exit(self._exit)

    def end_process(self) -> None:
        _exit(self._exit)

    def listen(self) -> None:
        if self._listens and signal.getsignal(signal.SIGTERM) != self._note:
            signal.signal(signal.SIGTERM, self._note)

    def close(self) -> None:
        _listening.discard(self)
        self.listen_no_more()

    def listen_no_more(self) -> None:
        """Leave the signal to whoever had it before; in a child that was forked from this process, too."""
        if self._listens:
            signal.signal(signal.SIGTERM, self._before if self._before is not None else signal.SIG_DFL)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        grace = os.environ.get(GRACE_VARIABLE, "")
        _unheeded.append(_Notice(time.monotonic() + float(grace) if grace else None))
        self._take(_unheeded[-1])

    def _take(self, notice: _Notice) -> None:
        self._deadline, self._reason = notice.deadline, "terminated"
        self._came.set()


_listening: "weakref.WeakSet[SignalStop]" = weakref.WeakSet()


def _in_child() -> None:
    """A child that was forked has no run: SIGTERM ends it, as it does any process."""
    for stop in list(_listening):
        stop.listen_no_more()
    _listening.clear()
    _unheeded.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
