"""Loops that nobody here wrote: batches drawn ahead, weights changed by hand, epochs of loaders with a life of their own."""

import random
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.training.workload import Attempts, linger, stopped
from training import session

STEPS = 9


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path)


def batch():
    return torch.randn(4, 6), torch.randint(3, (4,))


def bits(model):
    return torch.cat([weight.detach().reshape(-1) for weight in model.parameters()])


def net():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 3))


def loss_of(model, x, y):
    return nn.functional.cross_entropy(model(x), y)


def paused(job):
    """Asks it to stop, and leaves a side thread the time to save."""
    stopped(job)
    time.sleep(0.4)


class Evicts:
    """Asks an attempt to stop at some step of its own, and waits where it is; the last attempt is left alone."""

    def __init__(self, attempts, at):
        self.attempts, self.at, self.job = attempts, at, None

    def __call__(self, step):
        if self.job is not None and self.attempts.count <= len(self.at) and step == self.at[self.attempts.count - 1]:
            stopped(self.job)
            linger()


def same_with_evictions(attempts, train, *, at=(3, 6)):
    """Whether `train(each)` gives the same evicted as uninterrupted."""
    evicts = Evicts(attempts, at)
    whole = train(lambda step: None)

    def work(job):
        evicts.job = job
        return train(evicts)

    again = attempts.run(work)
    assert attempts.count == len(at) + 1
    return torch.equal(again, whole)


def ahead(each):
    """As nanoGPT does: the next batch is drawn while the one before is computed, and the first before the loop."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = batch()
    best, iter_num = 1e9, 0
    run = session(model=model, opt=optimizer)
    for _ in run.steps(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + iter_num)
        each(iter_num)
        for _micro in range(2):
            loss = loss_of(model, x, y) / 2
            x, y = batch()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        best = min(best, loss.item())
        iter_num += 1
    return torch.cat([bits(model), torch.tensor([best, iter_num])])


def test_a_batch_that_was_drawn_before_the_loop_is_the_one_that_was_due(attempts):
    assert same_with_evictions(attempts, ahead)


SCRIPT = """
import torch
model = net()
x, y = batch()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
run = session(model=model, opt=optimizer)
for step in run.steps(STEPS):
    each(step)
    loss_of(model, x, y).backward()
    x, y = batch()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_a_script_without_functions_hands_its_variables_on_too(attempts):
    def train(each):
        scope = {**globals(), "each": each}
        exec(compile(SCRIPT, "script.py", "exec"), scope)  # a script is what is tested
        return bits(scope["model"])

    assert same_with_evictions(attempts, train)


def by_hand(each):
    """Gradient descent without an optimizer, behind the back of torch's version counters."""
    model = net()
    run = session(model=model)
    for step in run.steps(STEPS):
        loss_of(model, *batch()).backward()
        for weight in model.parameters():
            weight.data.add_(weight.grad, alpha=-0.1)
            weight.grad = None
            if weight.shape == (8,):
                each(step)
    return bits(model)


def test_weights_that_are_changed_by_hand_are_saved_at_the_ends_of_bodies(attempts):
    """The stop comes amid the changes: what is saved is the end of that body."""
    whole = by_hand(lambda step: None)

    def work(job):
        return by_hand(lambda step: step == 3 and attempts.count == 1 and paused(job))

    assert torch.equal(attempts.run(work), whole)
    assert attempts.saves[0] == 4


def decayed(each):
    """An optimizer, and a decay of one's own before it that no version counter sees."""
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    run = session(model=model, opt=opt)
    for step in run.steps(STEPS):
        for weight in model.parameters():
            weight.data.mul_(0.9)
        each(step)
        opt.zero_grad()
        loss_of(model, *batch()).backward()
        opt.step()
    return bits(model)


def test_a_change_before_the_step_that_torch_does_not_count_is_noticed(attempts, capsys):
    whole = decayed(lambda step: None)
    assert torch.equal(
        attempts.run(lambda job: decayed(lambda step: step == 4 and attempts.count == 1 and paused(job))), whole
    )
    assert "changes outside of a tracked optimizer's step" in capsys.readouterr().err
    assert attempts.saves[0] == 5


class Sam(torch.optim.Optimizer):
    """Sharpness-aware: up the slope, a second gradient there, back, and a step of an optimizer within."""

    def __init__(self, weights, base):
        super().__init__(weights, {})
        self.base = base(self.param_groups)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def climb(self):
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["before"] = weight.data.clone()
                weight.add_(weight.grad, alpha=0.05)

    @torch.no_grad()
    def descend(self):
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data = self.state[weight]["before"]
        self.base.step()


@pytest.mark.parametrize("where", ["up", "down"])
def test_an_optimizer_that_steps_in_two_parts_of_its_own_is_kept(attempts, where):
    def train(each):
        model = net()
        opt = Sam(model.parameters(), lambda groups: torch.optim.SGD(groups, lr=0.1))
        run = session(model=model, opt=opt)
        for step in run.steps(STEPS):
            x, y = batch()
            opt.zero_grad()
            loss_of(model, x, y).backward()
            opt.climb()
            if where == "up":
                each(step)
            opt.zero_grad()
            loss_of(model, x, y).backward()
            opt.descend()
            if where == "down":
                each(step)
        return bits(model)

    whole = train(lambda step: None)
    assert torch.equal(
        attempts.run(lambda job: train(lambda step: step == 4 and attempts.count == 1 and paused(job))), whole
    )
    assert attempts.saves[0] == 5


class Noisy(Dataset):
    """Augments with random numbers of the worker's own."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        dice = torch.Generator().manual_seed(index)
        return torch.randn(6, generator=dice) + random.random() + torch.randn(()), index % 3


def test_workers_that_stay_for_all_epochs_augment_the_same_after_a_resume(attempts):
    def train(each):
        model = net()
        random.seed(5)
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=1, persistent_workers=True)
        run = session(model=model, opt=opt)
        for at, (x, y) in enumerate(run.batches(loader, epochs=3), run.resumed_at):
            each(at)
            run.step(loss_of(model, x, y))
        return bits(model)

    assert same_with_evictions(attempts, train, at=(4, 7))


class Living:
    """Batches that tell where they are by a dict that goes on living."""

    def __init__(self):
        self.place = {"at": 0}

    def state_dict(self):
        return self.place

    def load_state_dict(self, state):
        self.place = dict(state)

    def __iter__(self):
        while self.place["at"] < STEPS:
            self.place["at"] += 1
            yield torch.full((4, 6), float(self.place["at"])), torch.arange(4) % 3


def test_a_state_that_goes_on_living_is_copied_at_the_boundary(attempts):
    def train(each):
        model = net()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        run = session(model=model, opt=opt)
        for at, (x, y) in enumerate(run.batches(Living()), run.resumed_at):
            each(at)
            run.step(loss_of(model, x, y))
        return bits(model)

    assert same_with_evictions(attempts, train)
