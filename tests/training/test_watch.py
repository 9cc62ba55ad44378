"""A run whose weights are whole only between two steps: its own thread saves, whenever the stop comes and whatever fails."""

import threading
import time

import pytest

from fabric.errors import Conflict, InvalidRequest, JobFailed, Unavailable
from training.state.boundary import Boundary
from training.state.eviction import Watch
from training.state.saver import Save


class Left(BaseException):
    """The run's thread ends by itself."""


class Asked:
    """A wish to stop that comes when a test says so. `left_s`: what is left of the grace; None = nobody has said."""

    reason = "evicted"

    def __init__(self, left_s=None):
        self.came, self.left_s, self.unsaved, self.ended = threading.Event(), left_s, [], threading.Event()

    def wait(self, timeout_s):
        return self.came.wait(timeout_s)

    def seconds_left(self):
        return self.left_s

    def is_save_wanted(self):
        return True

    def is_snapshot_wanted(self):
        return False

    def note_unsaved(self, why):
        self.unsaved.append(why)

    def ending(self):
        return Left()

    def depart(self, thread):
        self.ended.set()

    def end_process(self):
        self.ended.set()

    def close(self):
        pass


class Weights:
    """Saved by the thread that works alone; `at` tells of each save what it meets."""

    save_s = blocked_s = 0.01
    is_step_half_done = is_waiting = False
    kept = "nothing was saved before"

    def __init__(self, stop, *, needs_boundary=True):
        self.boundary, self.needs_boundary = Boundary(stop.ending), needs_boundary
        self.writing = threading.Lock()
        self.step, self.saved, self.waits = 0, [], threading.Event()
        self.at = lambda step, at_boundary: None

    @property
    def has_new(self):
        return not self.saved or self.saved[-1][0] != self.step

    @property
    def newest_step(self):
        return self.step

    def save(self, *, timeout_s=None, leaving=False, at_boundary=False):
        with self.writing:
            step = self.step
            self.at(step, at_boundary)
            if not at_boundary:
                raise JobFailed("only at a boundary", code="changed_outside")
            self.saved.append((step, leaving))
            if leaving:
                self.boundary.leave()
            return Save(step=step, bytes=1, took_s=0.01, blocked_s=0.01)

    def leave(self):
        self.boundary.leave()

    def await_leave(self, *timeout_s):
        self.waits.set()
        self.boundary.await_leave(*timeout_s)


class Work:
    """Steps of a run in a thread of their own; how it ended."""

    def __init__(self, stop, weights, *, steps=2000, snapshot_every_s=0):
        self.stop, self.weights, self.steps = stop, weights, steps
        self.watch = Watch(weights, stop, snapshot_every_s=snapshot_every_s)
        self.ended = None
        self.each = lambda step: None
        self.thread = threading.Thread(target=self._work, daemon=True)

    def _work(self):
        self.watch.start()
        try:
            for step in range(1, self.steps + 1):
                self.each(step)
                time.sleep(0.001)
                self.weights.step = step
                self.watch.at_boundary()
        except BaseException as error:  # noqa: BLE001  # whatever it is, the test looks at it
            self.ended = error
        self.watch.close()

    def run(self):
        self.thread.start()
        self.thread.join(30)
        assert not self.thread.is_alive(), "it waits for ever"
        return self.ended


def test_a_stop_amid_a_snapshot_of_the_runs_own_thread_is_saved_for():
    """The side thread waits for that snapshot, and can't save by itself; there is no grace that would end its wait."""
    stop = Asked()
    weights = Weights(stop)
    weights.at = lambda step, at_boundary: stop.came.set() if at_boundary else None
    assert isinstance(Work(stop, weights).run(), Left)
    (first, was_leaving), (second, is_leaving) = weights.saved
    assert (was_leaving, is_leaving) == (False, True)
    assert second > first
    assert stop.unsaved == []


@pytest.mark.parametrize("needs_boundary", [True, False])
def test_a_thread_that_waits_to_leave_saves_if_nobody_else_can(needs_boundary):
    """The side thread finds out that it can't save when the other one waits already."""
    stop = Asked()
    weights = Weights(stop, needs_boundary=needs_boundary)

    def meets(step, at_boundary):
        if stop.came.is_set() and not at_boundary:
            weights.waits.wait(10)

    weights.at = meets
    work = Work(stop, weights, snapshot_every_s=float("inf"))
    work.each = lambda step: stop.came.set() if step == 5 else None
    assert isinstance(work.run(), Left)
    assert weights.saved[-1] == (weights.step, True)


def test_a_stop_between_two_looks_loses_no_boundary():
    """At each boundary the stop comes at another of the looks at it."""
    for look in range(1, 12):
        stop, looks = Asked(), []
        weights = Weights(stop)
        work = Work(stop, weights, steps=60, snapshot_every_s=float("inf"))
        asked = stop.wait

        def wait(timeout_s, look=look, stop=stop, looks=looks, asked=asked):
            if timeout_s == 0:
                looks.append(timeout_s)
                if len(looks) == look:
                    stop.came.set()
                    return False
            return asked(timeout_s)

        stop.wait = wait
        assert isinstance(work.run(), Left)
        assert weights.saved[-1] == (weights.step, True)


def test_a_store_that_is_away_for_a_snapshot_ends_no_run(capsys):
    stop = Asked()
    weights, refusals = Weights(stop), []

    def meets(step, at_boundary):
        if at_boundary and len(refusals) < 3:
            refusals.append(step)
            raise Unavailable("the store is out of reach", code="store_unavailable")

    weights.at = meets
    assert Work(stop, weights, steps=400).run() is None
    assert len(refusals) == 3
    assert weights.saved
    assert "no snapshot: the store is out of reach" in capsys.readouterr().err


def test_a_store_that_is_away_at_the_stop_is_said_and_not_told_as_saved(capsys):
    stop = Asked()
    weights = Weights(stop)

    def meets(step, at_boundary):
        if at_boundary:
            raise Unavailable("the store is out of reach", code="store_unavailable")

    weights.at = meets
    work = Work(stop, weights, snapshot_every_s=float("inf"))
    work.each = lambda step: stop.came.set() if step == 3 else None
    assert isinstance(work.run(), Left)
    assert None in stop.unsaved
    assert "evicted: the store is out of reach" in capsys.readouterr().err


@pytest.mark.parametrize(
    "refusal",
    [
        Conflict("a newer attempt has begun", code="fenced"),
        InvalidRequest("it can't be kept", code="state_not_kept"),
        JobFailed("it has diverged", code="not_finite"),
    ],
)
def test_what_no_later_save_would_mend_ends_the_run(refusal):
    stop = Asked()
    weights = Weights(stop)

    def meets(step, at_boundary):
        if at_boundary:
            raise refusal

    weights.at = meets
    assert Work(stop, weights).run() is refusal


def test_a_state_that_raises_anything_ends_the_run_in_words():
    stop = Asked()
    weights = Weights(stop)

    def meets(step, at_boundary):
        if at_boundary:
            raise ZeroDivisionError

    weights.at = meets
    assert isinstance(Work(stop, weights).run(), InvalidRequest)


def test_a_grace_that_is_over_before_a_bodys_end_is_not_told_as_saved(capsys):
    """Only its end is a boundary, and it does not come to it."""
    stop = Asked(left_s=0.3)
    weights = Weights(stop)
    work = Work(stop, weights, snapshot_every_s=float("inf"))

    def each(step):
        if step == 3:
            stop.came.set()
            stop.ended.wait(20)

    work.each = each
    work.run()
    assert stop.unsaved == [None]
    assert "no step's body was over" in capsys.readouterr().err


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_boundary_amid_a_body_is_saved_for_a_stop_that_may_not_wait(is_asked):
    """Only this thread can save, and the body's end may come too late: then it is saved once more."""
    stop = Asked()
    weights = Weights(stop)
    watch = Watch(weights, stop, snapshot_every_s=float("inf"))
    weights.step = 1
    if is_asked:
        stop.came.set()
    watch.amid_body()
    assert weights.saved == ([(1, False)] if is_asked else [])
    if is_asked:
        with pytest.raises(Left):
            watch.at_boundary()
        assert weights.saved == [(1, False), (1, True)]
