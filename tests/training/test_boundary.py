"""Who may touch the state, when; and when a save is worth it. Tables, and threads that only meet at events."""

import math
import threading

import pytest

from fabric.context import Saved
from training.state.boundary import Boundary, watch_changes
from training.state.cadence import (
    FIRST_SNAPSHOT_S,
    Choice,
    again_in_s,
    choice_at_stop,
    smoothed,
    snapshot_interval_s,
)  # fmt: skip


def test_a_saver_waits_for_a_step_that_is_half_done():
    boundary, held = Boundary(), threading.Event()

    def save():
        with boundary.held() as got:
            assert got
            held.set()

    boundary.change()
    saver = threading.Thread(target=save)
    saver.start()
    assert not held.wait(0.05)
    boundary.close()
    assert held.wait(5)
    saver.join()


def test_a_saver_that_waited_long_enough_gets_nothing():
    boundary = Boundary()
    boundary.change()
    with boundary.held(0.01) as got:
        assert not got
    boundary.close()
    with boundary.held(0.01) as got:
        assert got


def test_a_step_waits_for_the_saver_and_its_wait_is_counted():
    boundary, held, go = Boundary(), threading.Event(), threading.Event()

    def save():
        with boundary.held():
            held.set()
            go.wait(5)

    saver = threading.Thread(target=save)
    saver.start()
    assert held.wait(5)
    threading.Timer(0.02, go.set).start()
    boundary.change()
    assert boundary.take_waited_s() > 0
    assert boundary.take_waited_s() == 0
    saver.join()


def test_quick_steps_do_not_starve_a_saver():
    boundary, over = Boundary(), threading.Event()

    def train():
        while not over.is_set():
            boundary.change()
            boundary.close()

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        for _ in range(50):
            with boundary.held(5) as got:
                assert got
    finally:
        over.set()
        trainer.join()


def test_no_step_begins_once_the_run_leaves():
    boundary = Boundary()
    boundary.leave()
    with pytest.raises(Saved):
        boundary.change()
    assert not boundary.is_changing


def test_a_step_that_was_half_done_when_the_run_left_ends_at_its_boundary():
    boundary = Boundary()
    boundary.change()
    boundary.leave()
    boundary.change()
    with pytest.raises(Saved):
        boundary.close()


def test_a_boundary_amid_a_body_is_saved_when_the_body_has_ended():
    boundary, held = Boundary(), threading.Event()

    def save():
        with boundary.held(5, provisional_after_s=5) as got:
            assert got
            assert not boundary.is_provisional
            held.set()

    boundary.change()
    boundary.close(provisional=True)
    saver = threading.Thread(target=save)
    saver.start()
    assert not held.wait(0.05)
    boundary.reopen()
    assert not held.wait(0.05)
    boundary.close()
    assert held.wait(5)
    saver.join()


@pytest.mark.parametrize(("after_s", "is_held"), [(0.0, True), (0.01, True), (None, False)])
def test_who_can_wait_no_longer_has_a_boundary_amid_a_body_as_it_is(after_s, is_held):
    boundary = Boundary()
    boundary.change()
    boundary.close(provisional=True)
    with boundary.held(0.01, provisional_after_s=after_s) as got:
        assert got is is_held
        assert boundary.is_provisional


def test_a_body_that_ends_when_the_run_has_left_adds_nothing():
    boundary = Boundary()
    boundary.change()
    boundary.close(provisional=True)
    boundary.leave()
    with pytest.raises(Saved):
        boundary.reopen()
    assert not boundary.is_changing


def test_an_optimizer_without_hooks_is_watched_too():
    class Plain:
        steps = 0

        def step(self, closure=None):
            self.steps += 1
            return closure

    optimizer, changes = Plain(), []
    undo = watch_changes(optimizer, lambda: changes.append(optimizer.steps))
    assert optimizer.step(3) == 3
    assert (optimizer.steps, changes) == (1, [0])
    undo()
    optimizer.step()
    assert changes == [0]


@pytest.mark.parametrize(
    ("cost_s", "loss_every_s", "interval_s"),
    [
        (None, 3600, FIRST_SNAPSHOT_S),
        (2.0, 3600, 120.0),
        (0.5, 14_400, 120.0),
        (0.0, 7200, math.sqrt(2 * 0.001 * 7200)),
        (100.0, 3600, 2000.0),
        (1000.0, 3600, 3600),
    ],
)
def test_snapshots_come_as_often_as_their_cost_and_the_losses_say(cost_s, loss_every_s, interval_s):
    assert snapshot_interval_s(cost_s, loss_every_s=loss_every_s) == pytest.approx(interval_s)


def test_the_interval_is_the_one_that_loses_least():
    """Against the model itself: overhead per second plus half an interval lost at each loss."""

    def lost(interval_s, *, cost_s=2.0, loss_every_s=3600.0):
        return cost_s / interval_s + interval_s / 2 / loss_every_s

    best = snapshot_interval_s(2.0, loss_every_s=3600.0)
    assert all(lost(best) <= lost(best * factor) for factor in (0.5, 0.9, 1.1, 2.0))


@pytest.mark.parametrize(
    ("seconds_left", "save_s", "is_wanted", "is_new", "choice"),
    [
        (None, 100.0, True, True, Choice.SAVE_NOW),
        (30.0, None, True, True, Choice.SAVE_NOW),
        (30.0, 20.0, True, True, Choice.SAVE_NOW),
        (30.0, 36.0, True, True, Choice.SAVE_NOW),
        (30.0, 40.0, True, True, Choice.KEEP_LAST),
        (0.0, 0.1, True, True, Choice.KEEP_LAST),
        (30.0, 1.0, True, False, Choice.KEEP_LAST),
        (30.0, 1.0, False, True, Choice.KEEP_LAST),
    ],
)
def test_at_a_stop_what_fits_is_saved(seconds_left, save_s, is_wanted, is_new, choice):
    assert choice_at_stop(seconds_left=seconds_left, save_s=save_s, is_wanted=is_wanted, is_new=is_new) is choice


def test_an_estimate_grows_at_once_and_shrinks_slowly():
    assert smoothed(None, 2.0) == 2.0
    assert smoothed(2.0, 5.0) == 5.0
    assert 2.0 < smoothed(5.0, 2.0) < 5.0


@pytest.mark.parametrize(("cost_s", "again_s"), [(0.000_1, 0.1), (0.005, 5.0), (0.02, 10.0), (0.05, 12.5), (0.1, 25.0)])
def test_looks_come_every_ten_seconds_oftener_where_they_cost_little_and_less_often_where_much(cost_s, again_s):
    assert again_in_s(cost_s, share=0.004) == pytest.approx(again_s)
