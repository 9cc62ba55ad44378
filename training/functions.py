"""Functions that can be evicted without knowing of it: any Python, no torch needed.

A generator says with each `yield` what to go on from, and is told in its first argument where it was:

    from training.functions import resumable


    @resumable
    def simulate(saved, cells):
        state = saved or {"time": 0, "grid": [0.0] * cells}
        while state["time"] < 1000:
            advance(state)
            yield state  # a boundary
        return state["grid"]


    fabric.submit(simulate, 100, tokens="0.1")

If it is evicted, it goes on in a later attempt from what it yielded last. A state that is quick to copy is copied at each
`yield`, so that an eviction needs not wait for the next one. A plain function is given a `Checkpoint` and says itself when:

    @resumable
    def count(checkpoint, limit):
        number = checkpoint.load(0)
        while number < limit:
            number += 1
            checkpoint.save(number)  # durable; and the attempt ends here if the fabric wants it to
        return number

Called outside the fabric, both just run; with FABRIC_CHECKPOINT_DIR they keep their state there. A state is made of plain
values (`training.state.packing`): nobody's checkpoint runs code.
"""

import functools
import inspect
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from fabric import context
from training.progress import say
from training.state.eviction import Watch
from training.state.packing import packed, unpacked
from training.state.saver import Save
from training.state.stopping import Stop, stop_of
from training.state.vault import Vault, opened

_P = ParamSpec("_P")
_T = TypeVar("_T")
_PATIENCE_S: Final = 0.05
_COPY_SHARE_MAX: Final = 0.01
"""At most this share of the time goes into copying states that nobody has asked for."""


def resumable(function: Callable[Concatenate[Any, _P], Any]) -> Callable[_P, Any]:
    """The function without its first argument, which is the state yielded last (None at first), or a `Checkpoint`."""

    @functools.wraps(function)
    def attempt(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        if inspect.isgeneratorfunction(function):
            return _generated(lambda saved: function(saved, *args, **kwargs))
        return _called(lambda checkpoint: function(checkpoint, *args, **kwargs))

    del attempt.__wrapped__  # its arguments are not those of the function
    return attempt


class Checkpoint:
    """A plain function's own say on when it can be ended."""

    def __init__(self, vault: Vault, stop: Stop) -> None:
        self._vault, self._stop = vault, stop
        found = vault.load()
        self._step: int = 0
        self._state: Any = None
        if found is not None:
            self._step, self._state = unpacked(found)
        self._is_new = found is None

    def load(self, default: _T) -> _T:
        """What was saved last, in this attempt or an earlier one; `default` at the very start."""
        return default if self._is_new else cast("_T", self._state)

    def save(self, state: Any, *, step: int | None = None) -> None:
        """Durable on return. If the fabric wants the job to end, it ends here.

        `step` is shown as how far the job is; None = one more than the last.
        """
        self._step = self._step + 1 if step is None else step
        self._vault.save(packed((self._step, state)), step=self._step)
        self._state, self._is_new = state, False
        if self._stop.wait(0):
            say(f"{self._stop.reason} at step {self._step}: durable, nothing lost")
            raise self._stop.ending()

    @property
    def stop_requested(self) -> bool:
        """Whether the next `save` ends the attempt: a reason to call it soon."""
        return self._stop.wait(0)


def _called(function: Callable[[Checkpoint], _T]) -> _T:
    job = context.current()
    vault = opened(job, None)
    stop = stop_of(job, is_kept=vault.is_kept)
    try:
        return function(Checkpoint(vault, stop))
    finally:
        stop.close()


def _generated(begin: Callable[[Any], Generator[Any, None, _T]]) -> _T:
    """Run the generator to its end, over as many attempts as it takes; what it returned."""
    job = context.current()
    vault = opened(job, None)
    stop = stop_of(job, is_kept=vault.is_kept)
    found = vault.load()
    step, saved = (0, None) if found is None else unpacked(found)
    states = States(vault, step=step, ending=lambda: _on_its_way(watch, stop))
    watch = Watch(states, stop)
    work = begin(saved)
    watch.start()
    try:
        watch.at_boundary()
        while True:
            state = next(work)
            states.offer(state)
            job.report(step=states.step)
            watch.at_boundary()
    except StopIteration as ended:
        return cast("_T", ended.value)
    finally:
        watch.close()
        work.close()


def _on_its_way(watch: Watch, stop: Stop) -> BaseException:
    watch.departed()
    return stop.ending()


class States:
    """The states that a generator yields, for `training.state.eviction` to save."""

    def __init__(self, vault: Vault, *, step: int, ending: Callable[[], BaseException]) -> None:
        self._vault, self._ending = vault, ending
        self._new = threading.Condition()
        self._writing = threading.Lock()
        self._copy: tuple[int, bytes] | None = None
        self._copied_at, self._copy_s = 0.0, 0.0
        self._newest: Any = None
        self._is_wanted = self._is_leaving = False
        self.step = step
        """Yields so far, over all attempts."""
        self.durable_step: int | None = step or None
        self.save_s: float | None = None
        self.blocked_s: float | None = None

    @property
    def has_new(self) -> bool:
        return self.step > (self.durable_step or 0)

    @property
    def newest_step(self) -> int:
        return self.step

    @property
    def is_step_half_done(self) -> bool:
        """Always: between two yields something is done that isn't in the state yet."""
        return True

    @property
    def needs_boundary(self) -> bool:
        return False

    @property
    def is_waiting(self) -> bool:
        return False

    @property
    def kept(self) -> str:
        return "nothing was saved before" if self.durable_step is None else f"step {self.durable_step} is kept"

    def offer(self, state: Any) -> None:
        """For the function's thread: this is what to go on from."""
        began = time.monotonic()
        with self._new:
            self.step += 1
            self._newest = state
            idle_s = began - self._copied_at
            if self._is_wanted or self.step == 1 or self._copy_s <= idle_s * _COPY_SHARE_MAX:
                self._take_copy()

    def save(
        self,
        *,
        timeout_s: float | None = None,
        leaving: bool = False,
        at_boundary: bool = False,  # noqa: ARG002
    ) -> Save | None:
        """Make the newest state durable: that of the last yield, or, if it wasn't copied, of the next one in time."""
        began = time.monotonic()
        with self._writing:
            with self._new:
                self._is_wanted = True
                self._new.wait_for(
                    lambda: self._copy is not None and self._copy[0] == self.step, self._patience(timeout_s)
                )
                self._is_wanted, copy = False, self._copy
            if copy is None or copy[0] == self.durable_step:
                return None
            step, data = copy
            self._vault.save(data, step=step)
            self.durable_step, self.save_s = step, time.monotonic() - began
            self.blocked_s = self._copy_s
        if leaving:
            self.leave()
        return Save(step=step, bytes=len(data), took_s=self.save_s, blocked_s=self._copy_s)

    def leave(self) -> None:
        """No further step begins."""
        with self._new:
            self._is_leaving = True
            self._new.notify_all()

    def await_leave(self, timeout_s: float) -> None:
        """Wait at a boundary until the run leaves, and end the thread; return if that takes longer."""
        with self._new:
            if self.has_new and (self._copy is None or self._copy[0] != self.step):
                self._take_copy()
            if not self._new.wait_for(lambda: self._is_leaving, timeout_s):
                return
        raise self._ending()

    def _take_copy(self) -> None:
        began = time.monotonic()
        self._copy = self.step, packed((self.step, self._newest))
        self._copied_at = time.monotonic()
        self._copy_s = self._copied_at - began
        self._new.notify_all()

    def _patience(self, timeout_s: float | None) -> float:
        """How long to wait for a newer state: no longer than what would be lost, and so that writing the older one fits."""
        lost_s = max(_PATIENCE_S, time.monotonic() - self._copied_at)
        return lost_s if timeout_s is None else max(0.0, min(lost_s, timeout_s - 2 * (self.save_s or 0.5)))
