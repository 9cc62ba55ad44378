"""A save is rehearsed at the start and after the first step: what can't be kept is said then, never at an eviction."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fabric.errors import InvalidRequest, JobFailed
from tests.training.workload import Attempts, Script, ended_by, linger, stopped
from training import session

ROOT = Path(__file__).parent.parent.parent
STEPS = 6
pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse", "ignore:.*quantization", "ignore:.*quantize", "ignore:TypedStorage"
)


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path)


class Masked(nn.Module):
    """Weights that hold −inf, one of them frozen, and buffers of every layout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 4)
        self.mask = nn.Parameter(torch.full((4,), -torch.inf), requires_grad=False)
        self.bias = nn.Parameter(torch.tensor([0.0, -torch.inf, 0.0, 0.0]))
        self.register_buffer("graph", torch.eye(4).to_sparse())
        self.register_buffer("rows", torch.eye(4).to_sparse_csr())
        self.register_buffer("codes", torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8))

    def forward(self, x):
        return self.line(torch.sparse.mm(self.graph, x)) + torch.softmax(self.bias, 0)


def trained(attempts, model_of, opt_of, *, stop_at=()):
    def work(job):
        model = model_of()
        opt = opt_of(model)
        run = session(model=model, opt=opt, snapshot_every_s=float("inf"))
        for step in run.steps(STEPS):
            if (
                step in stop_at
                and attempts is not None
                and attempts.count <= len(stop_at)
                and step == stop_at[attempts.count - 1]
            ):
                stopped(job)
                linger()
            opt.zero_grad()
            model(torch.randn(4, 4)).square().mean().backward()
            opt.step()
        return model, opt

    return attempts.run(work) if attempts is not None else work(None)


def bits_of(value):
    if isinstance(value, torch.Tensor):
        flat = value.dequantize() if type(value) is not torch.Tensor or value.is_quantized else value
        return flat.to_dense().detach().clone()
    return value


def test_sparse_and_quantized_buffers_and_infinite_weights_are_kept(attempts):
    def opt_of(model):
        return torch.optim.AdamW([model.line.weight, model.bias], lr=1e-2)

    whole, _ = trained(None, Masked, opt_of)
    again, _ = trained(attempts, Masked, opt_of, stop_at=(2, 4))
    assert attempts.saves[:2] == [2, 4]
    for (name, before), after in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(bits_of(before), bits_of(after)), name


class Odd(torch.Tensor):
    """A subclass that torch loads only from a pickle with all rights."""


class Oddly(torch.optim.SGD):
    """An optimizer whose state, from its first step on, is made of such tensors."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["odd"] = torch.zeros(2).as_subclass(Odd)


def test_a_subclass_that_torch_would_not_load_is_refused_at_the_session(attempts):
    model = nn.Linear(4, 4)
    model.register_buffer("odd", torch.zeros(2).as_subclass(Odd))
    with ended_by(InvalidRequest, attempts.next()) as ended:
        session(model=model)
    assert "odd" in ended.error.message
    assert "add_safe_globals" in ended.error.message


def test_a_state_that_comes_with_the_first_step_is_refused_after_it(attempts):
    job = attempts.next()
    seen = []
    with ended_by(InvalidRequest, job) as ended:
        model = nn.Linear(4, 4)
        opt = Oddly(model.parameters(), lr=1e-2)
        run = session(model=model, opt=opt)
        for step in run.steps(STEPS):
            seen.append(step)
            model(torch.randn(4, 4)).square().mean().backward()
            opt.step()
    assert seen == [0]
    assert "odd" in ended.error.message


def test_a_weight_that_diverges_in_the_first_step_is_said_after_it(attempts):
    with ended_by(JobFailed, attempts.next()) as ended:
        model = nn.Linear(4, 4)
        opt = torch.optim.SGD(model.parameters(), lr=1e-2)
        for _ in session(model=model, opt=opt).steps(STEPS):
            (model(torch.randn(4, 4)).sum() * torch.nan).backward()
            opt.step()
    assert ended.error.code == "not_finite"


def test_an_optimizer_whose_state_is_lost_at_the_stop_fails_the_job(attempts):
    """It isn't told as saved and tried for ever: whoever owns the job hears of it."""
    job = attempts.next()
    with ended_by(InvalidRequest, job) as ended:
        script = Script()

        def each(step):
            if step == 3:
                script.opt.state[script.model[0].weight]["odd"] = torch.zeros(2).as_subclass(Odd)
                stopped(job)
                linger()

        script.train(STEPS, each=each)
    assert "odd" in ended.error.message
    assert attempts.saves == []


FULL = """
import sys
sys.path.insert(0, {root!r})
from fabric.checkpoints import DirectoryStore
from fabric.errors import Unavailable
from tests.training.workload import Script
import time
def full(*_put, **_options):
    raise Unavailable("the store is full: 0 bytes are free", code="store_full")
def each(step):
    if step == 3:
        DirectoryStore.put = full
        print("there", flush=True)
        time.sleep({waits})
Script().train(6, each=each, directory={folder!r})
"""


@pytest.mark.parametrize("waits", [30, 0.5])
def test_a_process_whose_last_save_failed_does_not_end_as_saved(tmp_path, waits):
    code = FULL.format(root=str(ROOT), folder=str(tmp_path), waits=waits)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1
    process.stdout.close()
