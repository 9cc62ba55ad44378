"""Digests of many tensors at once tell whatever changes in any of them."""

import pytest
import torch

from training.state.digests import digests

KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int16, torch.uint8)


def made(kind):
    dice = torch.Generator().manual_seed(1)
    return [(torch.rand(shape, generator=dice) * 100).to(kind) for shape in ((3,), (4, 5), (), (200, 300))]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("at", range(4))
def test_any_change_of_any_tensor_is_told(kind, at):
    tensors = made(kind)
    before = digests(tensors)
    assert digests(made(kind)) == before
    tensors[at].reshape(-1)[0] += 1
    assert digests(tensors) != before


def test_small_tensors_that_change_places_are_told():
    first, second = torch.arange(5.0), torch.arange(5.0, 10.0)
    assert digests([first, second]) != digests([second, first])
    assert digests([torch.tensor([1.0, 2.0, 3.0, 4.0])]) != digests([torch.tensor([2.0, 1.0, 3.0, 4.0])])


def test_a_sign_alone_is_told():
    assert digests([torch.tensor([0.0])]) != digests([torch.tensor([-0.0])])


def test_weights_that_want_gradients_and_views_are_read_as_they_are():
    weight = torch.nn.Parameter(torch.ones(4, 6))
    assert digests([weight, weight.detach().t()]) == digests([weight.detach(), torch.ones(6, 4)])
