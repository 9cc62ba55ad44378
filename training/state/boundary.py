"""The step boundary: who may touch the state, when.

The training thread holds the state from the first change of an optimizer step to the boundary that ends the step
(`changing` → `closed`); in between, mid-forward, mid-evaluation, waiting for data, a saver may hold it (`held`) and read
the last boundary as it was. An optimizer step that comes while a saver holds the state waits for it; if the run is
leaving, it never happens. A boundary amid a loop's body is `provisional` until the body ends, when what the rest of the
body has changed is added (`reopen` → `closed`): a saver waits for that as long as it can. Idea: Just-In-Time Checkpointing (EuroSys'24), CheckFreq (FAST'21).
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fabric.context import Saved


class Boundary:
    """A lock between one training thread and its savers that knows whether a step is half done."""

    def __init__(self, ending: Callable[[], BaseException] = Saved) -> None:
        """`ending` makes what is raised in the training thread of a run that leaves."""
        self._ending = ending
        self._free = threading.Condition()
        self._changing = False
        self._held = False
        self._wanted = 0
        self._leaving = False
        self._abandoned = False
        self._provisional = False
        self._waited_s = 0.0
        self._reserved_until: float | None = None

    @property
    def is_changing(self) -> bool:
        """Whether an optimizer step has begun whose boundary is not reached."""
        return self._changing

    @property
    def is_provisional(self) -> bool:
        """Whether the rest of a loop's body may still change what belongs to the last boundary."""
        return self._provisional

    @property
    def is_leaving(self) -> bool:
        return self._leaving

    def change(self) -> None:
        """For the training thread, before an optimizer changes anything.

        Raises:
            BaseException: `ending()`: the run is leaving: the boundary before is durable, or is what counts.
        """
        if self._changing:
            return
        with self._free:
            if not self._is_unwanted():  # a saver that waits goes first, or quick steps would starve it
                began = time.monotonic()
                while not self._free.wait_for(self._is_unwanted, self._reserved_s()):
                    self._reserved_until = None
                self._waited_s += time.monotonic() - began
            if self._leaving:
                raise self._ending()
            self._changing = True

    def reserve(self, patience_s: float) -> None:
        """For the training thread, at a boundary: no step begins before a saver has held it, for so long."""
        with self._free:
            self._reserved_until = time.monotonic() + patience_s

    def _is_unwanted(self) -> bool:
        return not (self._held or self._wanted or self._reserved_until is not None)

    def _reserved_s(self) -> float | None:
        return None if self._reserved_until is None else max(0.0, self._reserved_until - time.monotonic())

    def reopen(self) -> None:
        """For the training thread, at the end of a body amid which a boundary was closed: it is captured anew.

        Raises:
            BaseException: `ending()`: the run is leaving, with the boundary as it was.
        """
        with self._free:
            self._free.wait_for(lambda: not self._held)  # a saver that only waits, waits for this
            if self._leaving:
                raise self._ending()
            self._changing = True

    def close(self, *, provisional: bool = False) -> None:
        """For the training thread: the step is complete, and its boundary has been captured; `provisional`: amid a body.

        Raises:
            BaseException: `ending()`: the run is leaving.
        """
        with self._free:
            self._changing, self._provisional = False, provisional
            self._free.notify_all()
            if self._leaving:
                raise self._ending()

    def await_leave(self, timeout_s: float | None = None) -> None:
        """For the training thread, at a boundary, when the run is asked to stop: no step begins that would be lost.

        Raises:
            BaseException: `ending()`, once all is saved that will be; it returns if that takes longer than `timeout_s`.
        """
        with self._free:
            if not self._free.wait_for(lambda: self._leaving, timeout_s):
                return
        raise self._ending()

    def leave(self) -> None:
        """From now on no step begins: the training thread ends at its next change or boundary."""
        with self._free:
            self._leaving = True
            self._free.notify_all()

    def take_waited_s(self) -> float:
        """How long the training thread has waited for savers since this was asked last."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def abandon(self) -> None:
        """The training thread is gone: a step that is half done stays so, and nobody need wait for its boundary."""
        with self._free:
            self._abandoned = True
            self._free.notify_all()

    @property
    def _is_free(self) -> bool:
        return not self._changing and not self._held

    @property
    def _is_settled(self) -> bool:
        return self._is_free and not self._provisional

    @contextmanager
    def held(self, timeout_s: float | None = None, *, provisional_after_s: float | None = None) -> Iterator[bool]:
        """Hold the state at the last boundary; yields False if a step was half done for longer than `timeout_s`.

        A provisional boundary is held after so long if its body has not ended by then; None = never, as if half done.
        """
        patience_s = timeout_s if provisional_after_s is None else provisional_after_s
        with self._free:
            self._wanted += 1
            self._free.wait_for(lambda: self._is_free or self._abandoned, timeout_s)
            if self._provisional:
                self._free.wait_for(lambda: self._is_settled or self._abandoned, patience_s)
            held = self._is_settled or (self._is_free and provisional_after_s is not None)
            self._wanted -= 1
            self._held = self._held or held
            if held:
                self._reserved_until = None
            self._free.notify_all()
        try:
            yield held
        finally:
            if held:
                with self._free:
                    self._held = False
                    self._free.notify_all()


def watch_changes(optimizer: Any, change: Callable[[], None]) -> Callable[[], None]:
    """Call `change` before every step of the optimizer; returns what undoes it."""
    if not hasattr(optimizer, "_optimizer_step_pre_hooks") and hasattr(optimizer, "optimizer"):
        return watch_changes(optimizer.optimizer, change)  # accelerate's wrapper, which leaves steps out
    hook = getattr(optimizer, "register_step_pre_hook", None)
    if hook is not None:

        def before(*_step: Any) -> None:
            change()  # and None: a hook's answer would replace the step's arguments

        handle = hook(before)
        undo: Callable[[], None] = handle.remove
        return undo
    step = optimizer.step

    def noted(*args: Any, **options: Any) -> Any:
        change()
        return step(*args, **options)

    optimizer.step = noted
    return lambda: setattr(optimizer, "step", step)
