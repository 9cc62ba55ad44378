"""A run that is evicted, at any step or any instant, ends with the bits of one that never was."""

import random
import threading

import pytest

from tests.training.workload import Attempts, Script

STEPS = 400


@pytest.fixture(scope="module")
def uninterrupted():
    script = Script()
    script.train(STEPS)
    return script.digest()


def evicted_at_steps(folder, dice, *, steps):
    """Runs of at least one step each, ended in the middle of a random one."""
    attempts = Attempts(folder)

    def work(job):
        script, left = Script(), [dice.randint(1, 7)]

        def each(step):
            left[0] -= 1
            if left[0] == 0:
                job.ask_to_stop("evicted", seconds_left=60)

        script.train(steps, each=each)
        return script.digest()

    return attempts.run(work), attempts.count - 1


def evicted_at_instants(folder, dice, *, steps):
    attempts = Attempts(folder)

    def work(job):
        script = Script()
        timer = threading.Timer(dice.uniform(0, 0.03), job.ask_to_stop, ("evicted",), {"seconds_left": 60})
        timer.start()
        try:
            script.train(steps)
        finally:
            timer.cancel()
        return script.digest()

    return attempts.run(work), attempts.count - 1


@pytest.mark.parametrize("evict", [evicted_at_steps, evicted_at_instants])
@pytest.mark.parametrize("at_least", [100, pytest.param(1000, marks=pytest.mark.soak)])
def test_any_number_of_evictions_leaves_no_trace_in_the_weights(tmp_path, uninterrupted, evict, at_least):
    seed = random.randrange(2**32)
    dice, evictions, round_ = random.Random(seed), 0, 0
    while evictions < at_least:
        ended, count = evict(tmp_path / str(round_), dice, steps=STEPS)
        assert ended == uninterrupted, f"seed {seed}, after {count} evictions"
        evictions, round_ = evictions + count, round_ + 1
