"""What a body changes in place without naming it comes back as it was, or it is said: nothing begins anew in silence."""

import dataclasses
import logging
import math
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fabric import context
from tests.training.changing_objects import KINDS
from tests.training.test_loops import Evicts, batch, bits, loss_of, net, same_with_evictions
from tests.training.workload import Attempts, ended_by, running, stopped
from training import session

STEPS = 9
SAID = "in place"


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path)


def trained(kind, each):
    model = net()
    np.random.seed(4)  # noqa: NPY002
    use = KINDS[kind](model)
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in session(model=model, opt=opt).steps(STEPS):
        each(step)
        opt.zero_grad()
        (loss_of(model, *batch()) * use()).backward()
        opt.step()
    return bits(model)


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_that_is_changed_in_place_goes_on_as_it_was(attempts, capsys, kind):
    assert same_with_evictions(attempts, lambda each: trained(kind, each), at=(3, 6))
    assert SAID not in capsys.readouterr().err


SCRIPT = """
import numpy as np
model, seen, count, order = net(), [], 0, np.arange(5)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

def draw():
    global count
    count += 1
    np.random.shuffle(order)
    seen.append(float(torch.rand(())) + order[0])
    return sum(seen[-3:]) * count

run = session(model=model, opt=optimizer)
for step in run.steps(STEPS):
    each(step)
    optimizer.zero_grad()
    (loss_of(model, *batch()) * draw()).backward()
    optimizer.step()
"""


def test_what_functions_of_a_script_change_in_its_module_is_kept_too(attempts):
    def train(each):
        np.random.seed(4)  # noqa: NPY002
        scope = {**globals(), "each": each}
        exec(compile(SCRIPT, "script.py", "exec"), scope)  # a script is what is tested
        return bits(scope["model"])

    assert same_with_evictions(attempts, train)


class Trainer:
    """A loop in a method, whose object holds everything."""

    def __init__(self):
        self.model, self.history, self.best = net(), [], math.inf
        self.opt = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.run = session(model=self.model, opt=self.opt)

    def train(self, each):
        for step in self.run.steps(STEPS):
            each(step)
            self.opt.zero_grad()
            loss = loss_of(self.model, *batch())
            (loss * (1 + len(self.history)) * min(self.best, 3.0)).backward()
            self.opt.step()
            self.history.append(loss.item())
            self.best = min(self.best, loss.item())
        return torch.cat([bits(self.model), torch.tensor(self.history)])


def test_the_object_whose_method_loops_goes_on_as_it_was(attempts):
    assert same_with_evictions(attempts, lambda each: Trainer().train(each))


def test_what_is_too_large_to_be_copied_at_every_step_is_saved_at_ends_of_bodies(attempts, capsys):
    def train(each):
        model, rows = net(), np.zeros((1 << 22, 2))
        opt = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in session(model=model, opt=opt, snapshot_every_s=math.inf).steps(12):
            rows[step] = np.random.rand(2)  # noqa: NPY002
            opt.zero_grad()
            (loss_of(model, *batch()) * (1 + float(rows[: step + 1].sum()))).backward()
            opt.step()
            each(step)
        return bits(model)

    np.random.seed(4)  # noqa: NPY002
    whole = train(lambda step: None)

    def work(job):
        return train(lambda step: step == (5, 8)[attempts.count - 1] and stopped(job) if attempts.count < 3 else None)

    np.random.seed(4)  # noqa: NPY002
    assert torch.equal(attempts.run(work), whole)
    assert attempts.count == 3
    assert "rows: changed in place, and too much" in capsys.readouterr().err


def endless():
    while True:
        yield float(torch.rand(()))


UNKEPT = {
    "source": endless,
    "rows": lambda: iter(range(100)),
    "items": lambda: iter(DataLoader(torch.arange(100.0))),
    "pairs": lambda: enumerate(range(100)),
}


@pytest.mark.parametrize("kind", UNKEPT)
def test_what_cannot_be_kept_is_said_once_with_what_to_do(attempts, capsys, kind):
    source = UNKEPT[kind]()
    with running(attempts.next()):
        model = net()
        opt = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in session(model=model, opt=opt).steps(STEPS):
            opt.zero_grad()
            next(source)
            loss_of(model, *batch()).backward()
            opt.step()
    said = [line for line in capsys.readouterr().err.splitlines() if SAID in line]
    assert len(said) == 1
    assert said[0].startswith("[fabric] source changes in place and can't be kept")
    assert "run.batches" in said[0]


class Odd:
    """Holds what no checkpoint does."""

    def __init__(self):
        self.lines, self.count = [], 0


def test_an_object_that_cannot_be_kept_is_named_with_its_remedy(attempts, capsys):
    with running(attempts.next()):
        model, odd = net(), Odd()
        opt = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in session(model=model, opt=opt).steps(STEPS):
            opt.zero_grad()
            odd.lines.append(memoryview(b"x"))
            loss_of(model, *batch()).backward()
            opt.step()
    said = [line for line in capsys.readouterr().err.splitlines() if SAID in line]
    assert len(said) == 1
    assert "odd.lines[0] changes in place and can't be kept (it holds a builtins.memoryview)" in said[0]
    assert 'extra={"odd": odd}' in said[0]


class Caching(nn.Module):
    """A module that notes what it has computed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.inner, self.cache, self.calls = nn.Linear(6, 3), {}, 0

    def forward(self, x):
        self.calls += 1
        self.cache[len(x), self.calls] = (memoryview(b"x"), iter([self.calls]))
        return self.inner(x)


def silent(attempts, tmp_path, loop):
    model = Caching()
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    log, lock = logging.getLogger("loop"), threading.Lock()
    forward = torch.compile(model, backend="eager")
    hidden = torch.no_grad()(model.forward)
    with running(attempts.next()), (tmp_path / "log").open("w") as file:
        run = session(model=model, opt=opt)
        bar = loop(run)
        for _ in bar:
            with lock:
                log.warning("a line")
            file.write("a line")
            opt.zero_grad()
            x, y = batch()
            hidden(x)
            loss = loss_of(forward, x, y)
            loss.backward()
            opt.step()
            run.log(loss=loss)
            if hasattr(bar, "set_postfix"):
                bar.set_postfix(loss=loss.item())


def by_tqdm(run):
    tqdm = pytest.importorskip("tqdm")
    return tqdm.tqdm(run.steps(STEPS), disable=False)


@pytest.mark.parametrize("loop", [lambda run: run.steps(STEPS), by_tqdm, lambda run: enumerate(run.steps(STEPS))])
def test_nothing_is_said_of_what_has_no_state_of_the_training(attempts, tmp_path, capsys, loop):
    silent(attempts, tmp_path, loop)
    assert "fabric] " not in capsys.readouterr().err


def by_hand():
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    run = session(model=model, opt=opt)
    batches = enumerate(run.batches([batch() for _ in range(STEPS)]))
    while (drawn := next(batches, None)) is not None:
        run.step(loss_of(model, *drawn[1]))
    return run.done


def test_batches_that_are_drawn_by_hand_are_the_runs_own(attempts, capsys):
    with running(attempts.next()):
        assert by_hand() == STEPS
    assert SAID not in capsys.readouterr().err


def test_an_object_that_never_changes_stays_as_the_script_makes_it(attempts):
    """Such as a device, a path or a setting of this machine."""
    found = []

    @dataclasses.dataclass
    class Settings:
        node: int
        count: int = 0

        def state(self):
            self.count += 1
            return self.count

    def train(each):
        model, settings = net(), Settings(attempts.count)
        opt = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in session(model=model, opt=opt).steps(STEPS):
            each(step)
            opt.zero_grad()
            (loss_of(model, *batch()) * settings.state()).backward()
            opt.step()
        found.append((settings.node, settings.count))
        return bits(model)

    evicts = Evicts(attempts, (3, 6))

    def work(job):
        evicts.job = job
        return train(evicts)

    attempts.run(work)
    assert found == [(3, STEPS)]


def test_a_checkpoint_makes_no_object_of_a_class_that_the_script_has_not(attempts, capsys):
    from training.state.object_state import Putting

    with pytest.raises(LookupError):
        Putting({}.get).put({"\0node": "object", "of": "subprocess:Popen", "has": {}, "at": 0}, None)


def test_a_loop_that_fails_in_a_body_keeps_no_half_of_it(attempts):
    job = attempts.next()
    with ended_by(context.Saved, job):
        model, seen = net(), []
        opt = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in session(model=model, opt=opt, snapshot_every_s=math.inf).steps(STEPS):
            opt.zero_grad()
            seen.append(step)
            loss_of(model, *batch()).backward()
            if step == 4:
                stopped(job)
                while True:
                    threading.Event().wait(0.01)
            opt.step()
    with running(attempts.next()):
        model, seen = net(), []
        opt = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in session(model=model, opt=opt).steps(STEPS):
            seen.append(step)
            opt.step()
    assert seen == list(range(STEPS))
