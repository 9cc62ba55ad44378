"""The demo's work: it learns, it is the same every time, and a stop in the middle changes nothing."""

import pickle

import pytest

from fabric import context
from training import byte_lm

STEPS = 6


def quiet(said):
    pass


class FakeJob:
    """A job that is asked to stop after so many looks, and keeps what it saved."""

    def __init__(self, *, stop_after=None, saved=None):
        self.looks_left = stop_after
        self.saved = saved
        self.saved_at = []
        self.waited_s = 0.0

    @property
    def stop_requested(self):
        if self.looks_left is None:
            return False
        self.looks_left -= 1
        return self.looks_left < 0

    def save(self, data, *, step=0):
        self.saved = data
        self.saved_at.append(step)

    def load(self):
        return self.saved

    def park(self):
        raise context.Saved

    def wait_for_stop(self, timeout_s):
        self.waited_s += timeout_s
        return False


@pytest.fixture
def run_as(monkeypatch):
    def become(job):
        monkeypatch.setattr(context, "current", lambda: job)
        return job

    return become


@pytest.fixture(scope="module")
def uninterrupted():
    return byte_lm.train(steps=STEPS, report=quiet)


def test_it_learns_and_says_how_much(uninterrupted):
    assert uninterrupted["steps"] == STEPS
    assert 100_000 <= uninterrupted["parameters"] <= 300_000
    assert uninterrupted["bits_per_byte_before"] == pytest.approx(8.0, abs=0.1)
    assert uninterrupted["bits_per_byte_after"] < uninterrupted["bits_per_byte_before"] - 0.5


@pytest.mark.parametrize("stop_after", [0, 1, STEPS - 1])
def test_a_run_stopped_and_resumed_ends_with_the_same_weights(run_as, uninterrupted, stop_after):
    first = run_as(FakeJob(stop_after=stop_after))
    with pytest.raises(context.Saved):
        byte_lm.train(steps=STEPS, report=quiet)
    assert first.saved_at == [stop_after]
    run_as(FakeJob(saved=first.saved))
    resumed = byte_lm.train(steps=STEPS, report=quiet)
    assert resumed["resumed_at_step"] == stop_after
    assert resumed["weights_sha256"] == uninterrupted["weights_sha256"]
    assert resumed["bits_per_byte_before"] == uninterrupted["bits_per_byte_before"]


def test_another_seed_gives_other_weights(run_as, uninterrupted):
    assert byte_lm.train(steps=STEPS, seed=1, report=quiet)["weights_sha256"] != uninterrupted["weights_sha256"]


def test_a_slow_source_changes_the_time_and_not_the_weights(run_as, uninterrupted):
    job = run_as(FakeJob())
    waiting = byte_lm.train(steps=STEPS, wait_ratio=0.5, report=quiet)
    assert waiting["weights_sha256"] == uninterrupted["weights_sha256"]
    assert job.waited_s > 0


def test_a_run_saves_now_and_then_without_being_asked(run_as):
    job = run_as(FakeJob())
    byte_lm.train(steps=4, save_every=2, report=quiet)
    assert job.saved_at == [2, 4]


def test_progress_is_reported_with_its_units(run_as):
    said = []
    byte_lm.train(steps=2, report=said.append)
    assert [sorted(line) for line in said] == [["bits_per_byte", "bytes_per_s", "step"]]


@pytest.mark.parametrize("wait_ratio", [-0.1, 1.0])
def test_waiting_all_of_the_time_is_refused(wait_ratio):
    with pytest.raises(ValueError, match="less than 1"):
        byte_lm.train(steps=1, wait_ratio=wait_ratio)


def test_a_checkpoint_that_would_run_code_is_refused(run_as):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    run_as(FakeJob(saved=pickle.dumps(Evil(), protocol=2)))
    with pytest.raises(pickle.UnpicklingError):
        byte_lm.train(steps=1, report=quiet)
