"""What a forward pass changes is copied at a boundary as it is there, whatever a script does to the buffers of its model."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from fabric import context
from tests.training.test_loops import batch, bits, loss_of, paused
from tests.training.workload import Attempts, ended_by, linger, running, stopped
from training import session
from training.state import randomness, registry
from training.state.module_state import ModuleState

STEPS = 12


class Bank(nn.Module):
    """Buffers of all kinds that there are."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.twice = self.norm
        self.head = nn.Linear(8, 3)
        self.register_buffer("queue", torch.zeros(4, 8))
        self.register_buffer("mean", torch.zeros(8, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("few", torch.zeros(3, dtype=torch.bfloat16))
        self.register_buffer("flags", torch.zeros(5, dtype=torch.bool))
        self.register_buffer("every_other", torch.zeros(16)[::2])
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("none", None)
        self.register_buffer("read_only", torch.zeros(8))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_buffer("sparse", torch.eye(3).to_sparse())

    def forward(self, x):
        return self.head(self.norm(x))


def in_place(bank, dice):
    for name in ("queue", "mean", "few", "every_other"):
        getattr(bank, name).add_(dice.random())
    bank.count += 1
    bank.flags.logical_not_()
    bank.scratch.add_(1)


def forward(bank, dice):
    bank(torch.randn(4, 8))


def replaced(bank, dice):
    name = dice.choice(["queue", "mean", "count", "few", "every_other", "scratch"])
    setattr(bank, name, getattr(bank, name) + 1)


def given_other_memory(bank, dice):
    bank.mean.data = bank.mean.data + dice.random()
    bank.count.data = torch.tensor(dice.randrange(100))


def of_another_length(bank, dice):
    bank.mean = torch.rand(dice.randrange(1, 9), dtype=torch.float64)
    bank.queue = torch.rand(dice.randrange(1, 9), 8)


def of_another_type(bank, dice):
    bank.mean = bank.mean.to(dice.choice([torch.float32, torch.float16, torch.float64]))
    bank.few.data = bank.few.data.to(dice.choice([torch.float32, torch.bfloat16]))


def added_or_taken_away(bank, dice):
    if "more" in dict(bank.named_buffers()):
        del bank.more
    else:
        bank.register_buffer("more", torch.rand(2))


def there_or_none(bank, dice):
    bank.none = None if bank.none is not None else torch.rand(3)


def another_layer(bank, dice):
    bank.norm = nn.BatchNorm1d(8)


def another_sparse_one(bank, dice):
    bank.sparse = (torch.eye(3) * dice.random()).to_sparse()


def written_where_only_reading_is_meant(bank, dice):
    with torch.inference_mode():
        bank.read_only = torch.rand(8)


WAYS = [
    in_place, forward, replaced, given_other_memory, of_another_length, of_another_type, added_or_taken_away, there_or_none, another_layer,
    another_sparse_one, written_where_only_reading_is_meant,
]  # fmt: skip


def buffers_of(module):
    """As they are now, in memory of their own."""
    weights = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: own.detach().clone() for name, own in module.state_dict().items() if name not in weights}


def same(found, wanted):
    return found.keys() == wanted.keys() and all(
        own.dtype == found[name].dtype and torch.equal(own.to_dense(), found[name].to_dense())
        for name, own in wanted.items()
    )


def test_what_was_copied_is_what_was_there_whatever_is_done_with_it():
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    bank = Bank()
    state = ModuleState("model", bank)
    for round_ in range(400):
        dice.choice(WAYS)(bank, dice)
        state.look()
        copied, wanted = state.copied(), buffers_of(bank)
        assert same(copied, wanted), f"seed {seed}, round {round_}"
        for _ in range(dice.randrange(3)):
            dice.choice(WAYS)(bank, dice)
        assert same(copied, wanted), f"seed {seed}, round {round_}: changed after it was copied"


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path)


def averaged(model, x):
    """An average of its own, as a tensor that is another one after each step."""
    model.mean = 0.9 * model.mean + 0.1 * x.mean(0)
    return (model.mean * model(x)[:, :1]).mean()


def in_turns(model, x):
    """The two change places, and one is written into."""
    model.mean, model.mean_before = model.mean_before, model.mean
    model.mean.copy_(0.9 * model.mean_before + 0.1 * x.mean(0))
    return (model.mean * model(x)[:, :1]).mean()


def frozen_in_turns(model, x):
    """As scripts do whose parts learn against each other."""
    for weight in model[0].parameters():
        weight.requires_grad_(not weight.requires_grad)
    return 0.0


def normalised_anew(model, x):
    if int(model[1].num_batches_tracked) == 7:
        model[1] = nn.BatchNorm1d(8)
    return model[1](model[0](x)).mean()


def made():
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model.register_buffer("mean", torch.zeros(6))
    model.register_buffer("mean_before", torch.zeros(6))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def trained(job, use, *, begins_at, at, how):
    model, opt = made()
    run = session(model=model, opt=opt)
    for step in run.steps(STEPS):
        x, y = batch()
        loss = loss_of(model, x, y)
        if step >= begins_at:
            loss = loss + use(model, x)
        if job is not None and step == at:
            how(job)
        opt.zero_grad()
        loss.backward()
        opt.step()
    trained_now = torch.tensor([float(weight.requires_grad) for weight in model.parameters()])
    return torch.cat([bits(model), trained_now, *(own.reshape(-1) for own in model.buffers())])


@pytest.mark.parametrize("begins_at", [0, 6])
@pytest.mark.parametrize("at", [6, 7, 8])
@pytest.mark.parametrize("use", [averaged, in_turns, frozen_in_turns])
def test_what_a_script_puts_elsewhere_in_a_step_is_kept_as_it_was_at_the_boundary(attempts, use, begins_at, at):
    def how(job):
        stopped(job)
        linger()

    whole = trained(None, use, begins_at=begins_at, at=None, how=None)

    def work(job):
        return trained(job, use, begins_at=begins_at, at=at if attempts.count == 1 else None, how=how)

    assert torch.equal(attempts.run(work), whole)
    assert attempts.saves == [at, STEPS]


@pytest.fixture
def never_looked_again(monkeypatch):
    monkeypatch.setattr(registry, "again_in_s", lambda _cost_s, *, share: 1e9)


@pytest.mark.usefixtures("never_looked_again")
def test_the_statistics_of_a_layer_that_was_put_in_are_kept(attempts):
    job = attempts.next()
    with ended_by(context.Saved, job):
        trained(job, normalised_anew, begins_at=0, at=9, how=paused)
    with running(attempts.next()):
        model, opt = made()
        run = session(model=model, opt=opt)
    assert int(model[1].num_batches_tracked) == 2 * run.done - 7


def test_what_a_rank_tells_of_its_own_buffers_is_no_more_than_they_are():
    bank = Bank()
    known = registry.Registry()
    known.track("model", bank)
    owned = known.owned(known.copied())["model"]
    assert all(own.untyped_storage().nbytes() == own.nbytes for own in owned.values() if not own.is_sparse)


DRAWS = [
    lambda dice: None,
    lambda dice: np.random.randn(),  # noqa: NPY002
    lambda dice: np.random.random(),  # noqa: NPY002
    lambda dice: np.random.seed(dice.randrange(3)),  # noqa: NPY002
    lambda dice: np.random.set_state(dice.choice(KEPT)),  # noqa: NPY002
    lambda dice: KEPT.append(np.random.get_state()),  # noqa: NPY002
]
KEPT = [np.random.RandomState(3).get_state()]


def test_numpys_numbers_are_captured_as_they_are_after_any_draws():
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    before = np.random.get_state()  # noqa: NPY002
    try:
        for at in range(3_000):
            dice.choice(DRAWS)(dice)
            kind, bits_, *rest = np.random.get_state()  # noqa: NPY002
            found = randomness.capture()["numpy"]
            assert (found[0], found[1].tolist(), list(found[2:])) == (kind, bits_.tolist(), rest), f"seed {seed}, {at}"
    finally:
        np.random.set_state(before)  # noqa: NPY002
