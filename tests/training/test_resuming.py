"""What a job may be made of besides one loop: several sessions, groups that come later, states of other types, broken loops."""

import math
from contextlib import suppress

import pytest
import torch
from torch import nn

from fabric.checkpoints import commit_directory
from fabric.errors import FabricError
from tests.training.out_of_memory import begun_around_a_loss_that_does_not_fit
from tests.training.workload import Attempts, Script, linger, resumed, running, stopped
from training import session

STEPS = 6


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path)


def net(width=8):
    return nn.Sequential(nn.Linear(6, width), nn.Dropout(0.2), nn.Linear(width, 3))


def loss_of(model):
    return nn.functional.cross_entropy(model(torch.randn(4, 6)), torch.randint(3, (4,)))


def bits(model):
    return torch.cat([weight.detach().float().reshape(-1) for weight in model.parameters()])


def evicted(attempts, train, *, at):
    """What `train(each)` gives whole, and evicted once at each place of `at`."""
    whole = train(lambda place: None)
    left = list(at)

    def work(job):
        def each(place):
            if left and place == left[0]:
                left.pop(0)
                stopped(job)
                linger()

        return train(each)

    again = attempts.run(work)
    assert left == []
    return whole, again


def test_a_session_that_is_opened_after_its_folder_was_kept_begins_and_goes_on(attempts, tmp_path):
    """Its command had drawn in its folder while it read its data: that is kept for it, and is no state of this."""
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "loss.png").write_text("a curve")
    with running(attempts.next()) as job:
        commit_directory(job.checkpoints, tmp_path / "drawn", step=0)
        assert Script().train(3).resumed_at == 0
    commit_directory(job.checkpoints, tmp_path / "drawn", step=0)
    assert resumed(attempts, 6)[0] == 3


def test_several_sessions_in_one_job_each_have_their_own_state(attempts):
    """Folds of a cross-validation, and a phase of another shape."""
    begun = []

    def train(each):
        torch.manual_seed(0)
        scores = []
        for fold, width in enumerate([8, 8, 12]):
            model = net(width)
            opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
            run = session(model=model, opt=opt)
            begun.append((fold, run.resumed_at))
            for step in run.steps(STEPS):
                each((fold, step))
                opt.zero_grad()
                loss_of(model).backward()
                opt.step()
            scores.append(bits(model))
        return torch.cat(scores)

    whole, again = evicted(attempts, train, at=[(0, 2), (1, 0), (1, 3), (2, 5)])
    assert torch.equal(whole, again)
    assert begun[-3:] == [(0, STEPS), (1, STEPS), (2, 5)]


@pytest.mark.parametrize("where", ["before", "in", "after"])
def test_a_group_that_is_added_while_it_trains_is_there_after_a_resume(attempts, where):
    def train(each):
        torch.manual_seed(0)
        model = net()
        head, trunk = model[2], model[0]
        trunk.requires_grad_(requires_grad=False)
        opt = torch.optim.AdamW(head.parameters(), lr=1e-2)

        def unfreeze():
            trunk.requires_grad_(requires_grad=True)
            opt.add_param_group({"params": list(trunk.parameters()), "lr": 5e-3})

        if where == "before":
            unfreeze()
        run = session(model=model, opt=opt)
        for step in run.steps(STEPS):
            if where == "after" and step == 2:
                unfreeze()
            each(step)
            opt.zero_grad()
            loss_of(model).backward()
            opt.step()
            if where == "in" and step == 2:
                unfreeze()
        return bits(model)

    whole, again = evicted(attempts, train, at=[2, 4])
    assert torch.equal(whole, again)


class Exact(torch.optim.SGD):
    """Keeps its state in 32 bits, whatever its weights are in."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if "sum" not in state:
                    state["sum"] = torch.zeros(weight.shape)
                state["sum"].mul_(0.9).add_(weight.grad.float())
                weight.copy_(weight.float() - 0.1 * state["sum"])


def test_states_in_more_bits_than_their_weights_lose_none(attempts):
    def train(each):
        torch.manual_seed(0)
        model = nn.Linear(6, 3).bfloat16()
        opt = Exact(model.parameters(), lr=0.1)
        for step in session(model=model, opt=opt).steps(STEPS):
            each(step)
            opt.zero_grad()
            model(torch.randn(4, 6).bfloat16()).float().square().mean().backward()
            opt.step()
        return torch.cat([opt.state[weight]["sum"].reshape(-1) for weight in model.parameters()])

    whole, again = evicted(attempts, train, at=[2, 4])
    assert torch.equal(whole, again)


def test_a_loop_that_is_broken_off_keeps_the_step_it_broke_off_after(attempts):
    def train(each):
        torch.manual_seed(0)
        model = net()
        opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run = session(model=model, opt=opt)
        for step in run.steps(None):
            each(step)
            opt.zero_grad()
            loss_of(model).backward()
            opt.step()
            if step == STEPS - 1:
                break
        return bits(model)

    whole, again = evicted(attempts, train, at=[3])
    assert torch.equal(whole, again)
    assert attempts.saves == [3, STEPS]


def test_an_error_after_the_optimizers_step_is_said_with_what_is_kept(attempts, capsys):
    with running(attempts.next()):
        model = net()
        opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run = session(model=model, opt=opt)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            for step in run.steps(STEPS):
                opt.zero_grad()
                loss_of(model).backward()
                opt.step()
                if step == 2:
                    raise ZeroDivisionError
    assert "step 2 was half done" in capsys.readouterr().err
    assert attempts.saves == []


class Scaler:
    """As a `GradScaler` does it: a step whose gradients are infinite is left out."""

    def __init__(self):
        self.value, self.left_out = 4.0, 0

    def is_enabled(self):
        return True

    def scale(self, loss):
        return loss * self.value

    def step(self, opt):
        weights = [weight for group in opt.param_groups for weight in group["params"]]
        if all(weight.grad.isfinite().all() for weight in weights):
            opt.step()
        else:
            self.left_out += 1

    def update(self):
        pass

    def state_dict(self):
        return {"value": self.value, "left_out": self.left_out}

    def load_state_dict(self, state):
        self.value, self.left_out = state["value"], state["left_out"]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_loss_that_a_scaler_leaves_out_does_not_end_the_run(attempts, bad):
    with running(attempts.next()):
        model, scaler = net(), Scaler()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        run = session(model=model, opt=opt, scaler=scaler)
        for at, _ in enumerate(run.batches(range(STEPS * 4), global_batch=4)):
            loss = loss_of(model) * (bad if at == 2 else 1)
            run.log(loss=loss)
            run.step(loss)
    assert scaler.left_out == 1
    assert run.done == STEPS
    assert bits(model).isfinite().all()


def test_a_scaler_that_leaves_out_step_after_step_ends_the_run(attempts):
    from fabric.errors import JobFailed

    with running(attempts.next()):
        model = net()
        run = session(model=model, opt=torch.optim.SGD(model.parameters(), lr=0.1), scaler=Scaler())
        with pytest.raises(JobFailed, match="in a row"):  # noqa: PT012
            for _ in run.batches(range(400), global_batch=4):
                run.step(loss_of(model) * math.nan)


def widths(attempts, ends, *, sizes=(8, 8)):
    """One session after the other in one attempt, each left as `ends` says; where each began."""
    begun = []
    for width, end in zip(sizes, ends, strict=True):
        torch.manual_seed(0)
        model = net(width)
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        with suppress(FabricError, ZeroDivisionError), session(model=model, opt=opt) as run:
            begun.append(run.resumed_at)
            for step in run.steps(STEPS):
                opt.zero_grad()
                loss_of(model).backward()
                opt.step()
                if end is not None and step == run.resumed_at + 2:
                    run.boundary()
                    raise end
    return begun


def test_a_session_that_ran_out_of_memory_goes_on_where_it_is_opened_again(attempts):
    """As who halves a batch until it fits: what was done counts."""
    with running(attempts.next()):
        assert widths(attempts, [MemoryError(), MemoryError(), None, None], sizes=(8, 8, 8, 12)) == [0, 3, STEPS, 0]
    with running(attempts.next()):
        assert widths(attempts, [None, None], sizes=(8, 12)) == [STEPS, STEPS]


def test_a_loss_that_does_not_fit_gives_its_session_back(attempts):
    with running(attempts.next()):
        assert begun_around_a_loss_that_does_not_fit() == [0, 2]


def test_a_scaler_that_says_nothing_of_being_enabled_is_taken(attempts):
    """As timm's, which wraps torch's own."""

    class Wrapped:
        def state_dict(self):
            return {"scale": 2.0}

        def load_state_dict(self, state):
            pass

    with running(attempts.next()):
        model = net()
        run = session(model=model, opt=torch.optim.SGD(model.parameters(), lr=0.1), scaler=Wrapped())
        for loss in (math.nan, 1.0):
            run.log(loss=loss)
