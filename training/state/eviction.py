"""The side thread of a run: it saves the last boundary when the fabric asks the run to stop, wherever the script is.

It needs nothing from the training thread: mid-forward, mid-evaluation, waiting for data. Between wishes it takes snapshots,
as often as `training.state.cadence` finds worth their cost. After a save for a stop the training thread ends at its next boundary
or optimizer step; one that comes to neither is ended where it is.
"""

import threading
import time
from typing import Final, Protocol

from fabric.errors import FabricError, InvalidRequest, JobFailed
from training.progress import say
from training.state.cadence import LOSS_EVERY_S, Choice, choice_at_stop, snapshot_interval_s
from training.state.saver import Save, unreadable
from training.state.stopping import Stop

_LOOK_S: Final = 0.05
"""How often it looks whether the run is over or a snapshot is due; a stop wakes it at once."""
_PATIENCE_S: Final = 0.2
"""How long the training thread may take to come to a boundary of its own, once all is saved."""

_STUCK_S: Final = 2.0
"""How long it may take to end once it was told to, before its process is ended, if that is its own."""


class Saves(Protocol):
    """What a watch saves through: boundaries of a loop (`training.state.saver`), or states of a generator."""

    save_s: float | None
    """How long a save took lately; None = there was none."""
    blocked_s: float | None
    """What a snapshot costs the work itself."""

    @property
    def has_new(self) -> bool:
        """Whether there is a boundary that is not durable."""

    @property
    def newest_step(self) -> int:
        """Of the newest boundary, durable or not."""

    @property
    def is_step_half_done(self) -> bool:
        """Whether a newer boundary is on its way."""

    @property
    def needs_boundary(self) -> bool:
        """Whether only the thread that works can save, between two steps."""

    @property
    def is_waiting(self) -> bool:
        """Whether a boundary was copied that is still to be written."""

    @property
    def kept(self) -> str:
        """What there is to resume from, in words."""

    def save(self, *, timeout_s: float | None = None, leaving: bool = False, at_boundary: bool = False) -> Save | None:
        """Make the newest boundary durable; None if there is none in time. `at_boundary`: it is now, in this thread."""

    def leave(self) -> None:
        """No further step begins."""

    def await_leave(self, timeout_s: float) -> None:
        """Wait at a boundary until the run leaves, and end the thread; return if that takes longer."""


class Watch:
    """Watches over one run from its first boundary to its end."""

    def __init__(
        self,
        saver: Saves,
        stop: Stop,
        *,
        snapshot_every_s: float | None = None,
        loss_every_s: float = LOSS_EVERY_S,
    ) -> None:
        """Nothing starts yet.

        Args:
            saver: what it saves through.
            stop: the wish it waits for.
            snapshot_every_s: seconds between snapshots; None = as measured cost and `loss_every_s` suggest.
            loss_every_s: how often capacity is taken away without notice.
        """
        self._saver, self._stop = saver, stop
        self._snapshot_every_s, self._loss_every_s = snapshot_every_s, loss_every_s
        self._over = threading.Event()
        self._departure = threading.Lock()
        self._has_departed = False
        self._trainer = 0
        self._thread: threading.Thread | None = None
        self._snapshot_at = time.monotonic()
        self.failed: FabricError | None = None
        """Why a snapshot could not be saved: told to the training thread at its next boundary."""
        self.last: Save | None = None
        self._at_boundary = threading.Event()

    def start(self) -> None:
        """From now on, for the thread that calls this."""
        self._trainer = threading.get_ident()
        self._snapshot_at = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="fabric-session", daemon=True)
        self._thread.start()

    def departed(self) -> None:
        """For the training thread: it is on its way out by itself, so nobody ends it from here."""
        with self._departure:
            self._has_departed = True

    def at_boundary(self) -> None:
        """For the training thread, at each boundary: save here if the side thread can't, and hear why it could not."""
        if self.failed is not None:
            raise self.failed
        is_stop = self._stop.wait(0)  # asked once: a stop that comes later finds the thread at its next boundary
        if self._is_asked_here(is_stop=is_stop):
            self._save_here(is_leaving=is_stop)
        while is_stop:
            self._saver.await_leave(_LOOK_S)
            if self._at_boundary.is_set():  # the side thread found meanwhile that it can't
                self._save_here(is_leaving=True)

    def amid_body(self) -> None:
        """For the training thread, at a boundary amid a body: at the body's end more is known, but that may be too late."""
        if self._stop.wait(0) and self._is_asked_here(is_stop=True):
            self._save_here(is_leaving=False)
            self._at_boundary.set()

    def _is_asked_here(self, *, is_stop: bool) -> bool:
        is_asked = self._at_boundary.is_set()
        return is_asked or (is_stop and self._saver.needs_boundary and self._stop.is_save_wanted())

    def _save_here(self, *, is_leaving: bool) -> None:
        """What is changed at any time is whole at a boundary, and only there."""
        self._at_boundary.clear()
        asked, reason = time.monotonic(), self._stop.reason if is_leaving else ""
        try:
            saved = self._saver.save(leaving=is_leaving, at_boundary=True)
        except FabricError as failed:
            if isinstance(failed, JobFailed) or failed.code == "fenced" or _is_of_the_state(failed):
                raise
            say(f"{reason}: {failed.message}" if is_leaving else f"no snapshot: {failed.message}")
            if is_leaving:
                self._stop.note_unsaved(None)
                self._saver.leave()
            return
        except Exception as error:
            raise unreadable(error) from error
        self.last = saved or self.last
        if is_leaving and saved is not None:
            took_ms = 1000 * (time.monotonic() - asked)
            say(f"{reason} at step {saved.step}: durable in {took_ms:.0f} ms, 0 steps lost")

    def close(self) -> None:
        """The run is over, or leaves by itself: nobody is ended from here any more."""
        self.departed()
        self._over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._stop.close()

    def _watch(self) -> None:
        while not self._over.is_set():
            if self._stop.wait(_LOOK_S):
                self._leave()
                return
            if self.failed is None and self._is_due():
                self._snapshot()

    def _is_due(self) -> bool:
        if self._saver.is_waiting:
            return True
        if not self._saver.has_new:
            return False
        if self._stop.is_snapshot_wanted():
            return True
        interval_s = self._snapshot_every_s
        if interval_s is None:
            interval_s = snapshot_interval_s(self._saver.blocked_s, loss_every_s=self._loss_every_s)
        return time.monotonic() - self._snapshot_at >= interval_s

    def _snapshot(self) -> None:
        try:
            saved = self._saver.save(timeout_s=_LOOK_S)
            if saved is None:
                return  # amid a step or a body: it is due again at once
            self.last = saved
        except JobFailed as failed:
            if failed.code == "not_finite":
                self.failed = failed
            else:  # the script changes weights in lines of its own: only at a boundary are they whole
                self._at_boundary.set()
        except (
            FabricError
        ) as failed:  # a full disk or a bucket out of reach: the one before still counts, try again later
            say(f"no snapshot: {failed.message}")
            if failed.code == "fenced" or _is_of_the_state(failed):
                self.failed = failed
        except Exception as error:  # noqa: BLE001  # a script's own state_dict() may raise anything
            self.failed = unreadable(error)
        self._snapshot_at = time.monotonic()

    def _leave(self) -> None:
        """Save if that is wanted and fits, and end the run."""
        try:
            self._save_if_worth_it()
        finally:
            self._saver.leave()
        if not self._over.wait(_PATIENCE_S):
            with self._departure:
                if not self._has_departed:
                    self._has_departed = True
                    self._stop.depart(self._trainer)
            if not self._over.wait(_STUCK_S):
                self._stop.end_process()

    def _save_if_worth_it(self) -> None:
        asked, reason = time.monotonic(), self._stop.reason or "asked to stop"
        choice = choice_at_stop(
            seconds_left=self._stop.seconds_left(),
            save_s=self._saver.save_s,
            is_wanted=self._stop.is_save_wanted(),
            is_new=self._saver.has_new or self._saver.is_step_half_done,
        )
        if choice is Choice.SAVE_NOW:
            self._save_last(reason, asked)
        elif self._saver.has_new and self._stop.is_save_wanted():
            say(
                f"{reason}: a save takes {self._saver.save_s or 0:.1f} s and {self._stop.seconds_left() or 0:.1f} s are left; {self._saver.kept}"
            )

    def _save_last(self, reason: str, asked: float) -> None:
        seconds_left = self._stop.seconds_left()
        try:
            saved = self._saver.save(timeout_s=seconds_left, leaving=True)
        except FabricError as failed:
            say(f"{reason}: {failed.message}")
            if failed.code == "changed_outside":
                self._at_boundary.set()
                if not self._over.wait(self._stop.seconds_left()) and self._saver.has_new:
                    say(f"{reason}: no step's body was over after {seconds_left or 0:.1f} s; {self._saver.kept}")
                    self._stop.note_unsaved(None)
                return
            self._stop.note_unsaved(failed if isinstance(failed, InvalidRequest) and _is_of_the_state(failed) else None)
            return
        except Exception as error:  # noqa: BLE001
            unread = unreadable(error)
            say(f"{reason}: {unread.message}")
            self._stop.note_unsaved(unread)
            return
        if saved is None:
            say(f"{reason}: the step was not over after {seconds_left:.1f} s; {self._saver.kept}")
            self._stop.note_unsaved(None)
            return
        self.last = saved
        lost = self._saver.newest_step - saved.step
        took_ms = 1000 * (time.monotonic() - asked)
        say(f"{reason} at step {saved.step}: durable in {took_ms:.0f} ms, {lost} step{'' if lost == 1 else 's'} lost")


def _is_of_the_state(failed: FabricError) -> bool:
    """Whether the state itself can't be kept, rather than the place for it being away."""
    return failed.code in {"untrackable_state", "state_not_kept"}
