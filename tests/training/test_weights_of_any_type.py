"""Weights of any type that torch has: complex as in spectral networks, 8 bits, whole numbers; each is watched and checked."""

import math

import pytest
import torch
from torch import nn

from fabric.errors import JobFailed
from tests.training.test_loops import Evicts
from tests.training.workload import Attempts, ended_by
from training import session
from training.state.optimizer_state import OptimizerState
from training.state.plain import not_finite
from training.state.registry import Registry

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")
TYPES = {
    dtype: None
    for name in dir(torch)
    if isinstance(dtype := getattr(torch, name), torch.dtype)
    and not str(dtype).startswith(("torch.q", "torch.bit", "torch.int1", "torch.uint1"))
    and name not in {f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)}
}


def weight_of(dtype, values=(1.0, 0.5, 2.0, 4.0)):
    if "float4" in str(dtype):
        return torch.tensor([int(value * 2) for value in values], dtype=torch.uint8).view(dtype)
    return torch.tensor(values).to(dtype)


def tracked(weight):
    model = nn.Module()
    model.weight = nn.Parameter(weight, requires_grad=False)
    registry = Registry()
    registry.track("model", model)
    return registry, model


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_change_of_a_weight_of_any_type_is_seen(dtype):
    registry, model = tracked(weight_of(dtype))
    before = registry.digests()
    assert registry.digests() == before
    model.weight.data = weight_of(dtype, (1.0, 0.5, 2.0, 0.0))
    assert registry.digests() != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.complex128])
def test_weights_that_change_places_are_seen(dtype):
    registry, model = tracked(torch.arange(12.0).to(dtype).reshape(6, 2).t())
    before = registry.digests()
    model.weight.data = model.weight.data.flip(0)
    assert registry.digests() != before


def test_a_change_of_an_imaginary_part_alone_is_seen():
    registry, model = tracked(torch.tensor([1 + 2j, 3 - 1j]))
    before = registry.digests()
    model.weight.data = model.weight.data.conj().resolve_conj()
    assert registry.digests() != before


@pytest.mark.parametrize("dtype", [dtype for dtype in TYPES if dtype.is_floating_point or dtype.is_complex], ids=str)
def test_what_is_not_finite_is_counted_in_any_type(dtype):
    assert not_finite(weight_of(dtype)) == 0
    if dtype in {torch.float32, torch.bfloat16, torch.complex64, torch.complex32, torch.float8_e5m2}:
        assert not_finite(weight_of(dtype, (1.0, math.nan, math.inf, 2.0))) == 2


class Spectral(nn.Module):
    """Mixes frequencies with complex weights."""

    def __init__(self, dtype=torch.complex64):
        super().__init__()
        torch.manual_seed(0)
        self.mixes = nn.Parameter(torch.randn(5, dtype=dtype))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * self.mixes, n=8)


def trained(*, spoils_at=None, each=lambda step: None):
    model = Spectral()
    opt = torch.optim.Adam(model.parameters(), lr=1e-2)
    run = session(model=model, opt=opt, snapshot_every_s=math.inf)
    for step in run.steps(6):
        each(step)
        opt.zero_grad()
        loss = model(torch.randn(3, 8)).square().mean()
        (loss * (math.nan if step == spoils_at else 1)).backward()
        opt.step()
    return model.mixes.detach().clone()


def test_a_run_with_complex_weights_is_evicted_and_goes_on(tmp_path):
    attempts = Attempts(tmp_path)
    evicts, whole = Evicts(attempts, (2, 4)), trained()

    def work(job):
        evicts.job = job
        return trained(each=evicts)

    assert torch.equal(attempts.run(work), whole)
    assert attempts.count == 3


def test_a_complex_weight_that_has_diverged_is_not_saved(tmp_path):
    attempts = Attempts(tmp_path)
    with ended_by(JobFailed, attempts.next()) as ended:
        trained(spoils_at=5)
    assert ended.error.code == "not_finite"
    assert attempts.saves == []


@pytest.mark.parametrize("count", [4, 64])
def test_a_save_walks_the_modules_for_names_once_a_group(count):
    """A walk for each weight would take the grace of a large model."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(count)))
    opt = torch.optim.AdamW(model.parameters())
    walks = []

    def named():
        walks.append(1)
        return dict(model.named_parameters())

    state = OptimizerState("opt", opt, named)
    kept = state.live(state.copied(), tensor=lambda tensor: tensor)
    assert kept["param_groups"][0]["fabric.names"] == [name for name, _ in model.named_parameters()]
    assert len(walks) == 1
