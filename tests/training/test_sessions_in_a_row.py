"""Several sessions of one process that is alone: each has its own state, and none misses a signal that another one had."""

import os
import signal
from contextlib import suppress

import pytest
import torch
from torch import nn

from fabric.errors import JobFailed
from tests.training.out_of_memory import begun_around_a_loss_that_does_not_fit
from training import session
from training.state.stopping import SignalStop

STEPS = 6


def net(width):
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(6, width), nn.Dropout(0.2), nn.Linear(width, 3))


def trained(folder, width, *, until=STEPS, each=lambda step: None, after=lambda step: None):
    """One session's loop, left by a break after `until` steps if that is fewer than there are."""
    model = net(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    run = session(model=model, opt=optimizer, directory=folder)
    for step in run.steps(STEPS):
        each(step)
        optimizer.zero_grad()
        model(torch.ones(4, 6)).square().sum().backward()
        optimizer.step()
        after(step)
        if step + 1 == until:
            break
    return run


def told(_step=None):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def _is_told_nothing_more():
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("widths", [(4, 4, 4), (4, 5, 6)], ids=["alike", "different"])
def test_sessions_in_one_directory_each_have_their_own_state(tmp_path, widths):
    runs = [trained(tmp_path, width) for width in widths]
    assert [run.resumed_at for run in runs] == [0, 0, 0]


@pytest.mark.parametrize("until", [3, STEPS], ids=["by a break", "at its end"])
def test_a_session_that_ended_is_not_gone_on_with_by_the_next_one(tmp_path, until):
    trained(tmp_path, 4, until=until)
    assert trained(tmp_path, 4).resumed_at == 0


def failing(folder, error):
    """A session that fails in its fourth step; where it began, and how it was left."""
    model = net(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    with session(model=model, opt=optimizer, directory=folder) as run:
        for step in run.steps(STEPS):
            if step == 3:
                raise error
            model(torch.ones(4, 6)).square().sum().backward()
            optimizer.step()


def test_a_session_that_ran_out_of_memory_is_gone_on_with_by_the_next_one(tmp_path):
    """As by who halves a batch until it fits."""
    for _ in range(2):
        with pytest.raises(JobFailed, match="out of memory in step 3"):
            failing(tmp_path, MemoryError())
    assert trained(tmp_path, 4).resumed_at == 3
    assert trained(tmp_path, 4).resumed_at == 0


def test_a_loss_that_does_not_fit_gives_its_session_back(tmp_path):
    assert begun_around_a_loss_that_does_not_fit(directory=tmp_path) == [0, 2]


@pytest.mark.parametrize("entered", [True, False], ids=["with", "for"])
def test_a_session_that_was_given_up_hands_its_weights_to_no_other(tmp_path, entered):
    """A trial of a search that is pruned: the next one begins with weights of its own."""

    def prunes(step):
        if step == 3:
            raise ZeroDivisionError

    with suppress(ZeroDivisionError):
        if entered:
            failing(tmp_path, ZeroDivisionError())
        else:
            trained(tmp_path, 4, each=prunes)
        raise AssertionError("it ended well")
    assert trained(tmp_path, 4).resumed_at == 0


def test_a_signal_that_a_session_had_no_time_for_ends_the_next_one(tmp_path):
    trained(tmp_path, 4, until=3, after=lambda step: step == 2 and told())
    with pytest.raises(SystemExit) as ended:
        trained(tmp_path, 4)
    assert ended.value.code == 75
    assert trained(tmp_path, 4).done == STEPS, "who was ended by it, and goes on all the same, is not ended again"


def test_a_signal_that_was_taken_meanwhile_is_heard_again():
    stop = SignalStop()
    signal.signal(signal.SIGTERM, lambda *_: None)
    told()
    assert not stop.wait(0)
    stop.listen()
    told()
    assert stop.wait(0)
    stop.ending()
    stop.close()
