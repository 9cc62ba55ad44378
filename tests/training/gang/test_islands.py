"""Islands that train apart: they learn, meet at the same weights, and go on after a stop as they were."""

import pytest
import torch
from torch.nn import functional

from fabric.errors import InvalidRequest
from tests.training.gang import crew
from tests.training.gang.test_worlds import lines
from tests.training.gang.work import Net, Order, dataset
from training.gang.gradients import Reproducible
from training.gang.island_gang import Apart, Island
from training.gang.islands import Islands
from training.gang.members import Gang, Seat
from training.gang.shares import Shares

ALONE = Gang(Seat(), timeout_s=1.0)


def test_islands_of_unequal_speed_meet_at_the_same_weights_and_learn(tmp_path):
    """One takes three times the samples of the other between two meetings."""
    assert crew.run(Order(folder=tmp_path, steps=40, speeds=(3.0, 1.0)), world=2, doing="island") == [0, 0]
    said = lines(tmp_path)
    for meeting in range(4):
        assert len({line["weights"] for line in said if line["met"] == meeting}) == 1
    first, last = ([line["loss"] for line in said if line["met"] == meeting] for meeting in (0, 3))
    assert max(last) < min(first)


def steps_of(islands, model, opt, *, first, last):
    inputs, wanted = dataset()
    for step in range(first, last):
        at = torch.arange(step * 8, step * 8 + 8) % len(inputs)
        opt.zero_grad()
        functional.cross_entropy(model(inputs[at]), wanted[at]).backward()
        opt.step()
        islands.stepped(8)


def begun():
    torch.manual_seed(2)
    model = Net(torch.nn.LayerNorm).eval()  # without dropout's dice
    return model, torch.optim.SGD(model.parameters(), lr=0.05), Islands(model, ALONE, every=4)


def test_a_run_that_was_stopped_between_meetings_goes_on_as_it_was():
    model, opt, islands = begun()
    steps_of(islands, model, opt, first=0, last=6)
    kept = {key: value.clone() if torch.is_tensor(value) else value for key, value in islands.state_dict().items()}
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    steps_of(islands, model, opt, first=6, last=10)
    again, opt_again, islands_again = begun()
    again.load_state_dict(weights)
    islands_again.load_state_dict(kept)
    steps_of(islands_again, again, opt_again, first=6, last=10)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("bad", [{"every": 0}, {"momentum": 1.0}, {"learning_rate": 0.0}])
def test_islands_that_cannot_be_are_refused(bad):
    with pytest.raises(InvalidRequest) as refused:
        Islands(Net(), ALONE, **bad)
    assert refused.value.code == "islands_invalid"


@pytest.mark.parametrize("mode", list(Reproducible))
def test_an_island_learns_from_the_mean_of_its_own_part_of_a_step(mode):
    """Of four micro-batches it has two: each counts a half to it, and a quarter of the step."""
    model, _, islands = begun()
    again, _, _ = begun()
    inputs, wanted = dataset()
    island = Apart([model], Island("H100", ALONE, (0,)), Shares(4, world=2, rank=0), islands, mode)
    island.begin(0, 4)
    for at in range(2):
        rows = slice(8 * at, 8 * at + 8)
        island.forward(last=at == 1)
        island.backward(functional.cross_entropy(model(inputs[rows]), wanted[rows]), weight=0.25)
    island.finish()
    functional.cross_entropy(again(inputs[:16]), wanted[:16]).backward()
    for mine, whole in zip(model.parameters(), again.parameters(), strict=True):
        assert (mine.grad is None) == (whole.grad is None)
        assert mine.grad is None or torch.allclose(mine.grad, whole.grad, atol=1e-6)
