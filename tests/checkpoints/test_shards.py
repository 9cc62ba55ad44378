"""A state comes back bit for bit, or is refused by name; bytes that are no shard are refused and run nothing."""

import collections
import contextlib
import io
import math
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fabric.errors import CheckpointDamaged, InvalidRequest
from training.state import shards

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
STATES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers() | st.tuples(st.integers()), inner, max_size=4)
    ),
    max_leaves=12,
)
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip


def back(state):
    return shards.load(bytes(shards.dump(state)))


def same(one, other):
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@given(STATES)
def test_plain_values_come_back_as_they_were_and_of_their_types(state):
    found = back(state)
    assert same(state, found)
    assert repr(found) == repr(state)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(dtype):
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (3, 5, size), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(3, 5)
    found = back({"x": tensor})["x"]
    assert (found.dtype, found.shape) == (dtype, tensor.shape)
    assert torch.equal(found.contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8))


def test_scalars_empties_strides_and_parameters_come_back():
    state = {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "turned": torch.arange(12).reshape(3, 4).T,
        "part": torch.arange(100)[10:20],
        "parameter": nn.Parameter(torch.ones(2)),
        "conjugate": torch.tensor([1 + 2j]).conj(),
    }
    found = back(state)
    assert all(torch.equal(found[name], state[name].detach()) for name in state)
    assert found["part"].untyped_storage().nbytes() == 80, "a part is kept, not what it is a part of"
    found["scalar"].add_(1)


def test_tied_weights_stay_tied_and_are_kept_once():
    weight = torch.randn(1000)
    data = shards.dump({"a": weight, "b": weight, "c": weight.clone()})
    found = shards.load(data)
    assert found["a"] is found["b"]
    assert found["c"] is not found["a"]
    assert len(data) < 2.5 * 4000


def test_memory_is_used_again_and_nothing_of_the_last_save_shows():
    kept = shards.dump({"a": torch.randn(1000), "b": "x" * 100})
    for state in ({"a": torch.ones(3), "c": torch.zeros(5)}, {"a": torch.randn(2000)}, {}):
        data = shards.dump(state, into=kept)
        assert bytes(data) == bytes(shards.dump(state))
        assert (data.obj is kept.obj) == (len(data) <= len(kept))


def test_a_model_and_its_optimizer_train_on_as_if_nothing_happened():
    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(4, 8)).square().sum().backward()
        optimizer.step()

    def fresh():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        return model, torch.optim.AdamW(model.parameters())

    model, optimizer = fresh()
    step(model, optimizer)
    data = shards.dump({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    other, other_optimizer = fresh()
    state = shards.load(data)
    other.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    for _ in range(3):
        step(model, optimizer)
        step(other, other_optimizer)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_numbers_that_only_look_like_more_than_plain_are_kept_as_plain():
    found = back(collections.OrderedDict(loss=np.float64(0.5), size=torch.Size([1, 2])))
    assert found == {"loss": 0.5, "size": (1, 2)}
    assert type(found["loss"]) is float


def test_a_sparse_tensor_is_kept_as_one():
    found = back(torch.tensor([0.0, 2.0, 0.0]).to_sparse())
    assert found.is_sparse
    assert found.to_dense().tolist() == [0, 2, 0]


class Tracked(torch.Tensor):
    """A subclass, as DTensor is one."""


@pytest.mark.parametrize(
    "value",
    [
        object(), {1, 2}, print, np.zeros(3), torch.zeros(3, device="meta"),
        torch.zeros(3).as_subclass(Tracked), {frozenset(): 1},
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_can_not_be_kept_is_refused_by_name(value):
    with pytest.raises(InvalidRequest, match=r"state\['extra'\]\['thing'\]\[1\].* can't be saved") as raised:
        shards.dump({"extra": {"thing": [0, value]}})
    assert raised.value.code == "state_not_kept"


def test_a_state_that_holds_itself_is_refused():
    state = {}
    state["self"] = state
    with pytest.raises(InvalidRequest, match="nested"):
        shards.dump(state)


class Bomb:
    """Runs when it is unpickled."""

    ran = False

    def __reduce__(self):
        return setattr, (Bomb, "ran", True)


def test_a_pickle_is_not_loaded_and_nothing_of_it_runs():
    archive = io.BytesIO()
    torch.save(Bomb(), archive)
    for data in (
        pickle.dumps(Bomb()),
        archive.getvalue(),
        b"",
        b"FABRIC-SHARD-1\n",
        shards._MAGIC + pickle.dumps(Bomb()),
    ):
        with pytest.raises(CheckpointDamaged):
            shards.load(data)
    assert not Bomb.ran


def test_bytes_that_were_tampered_with_are_refused_or_are_other_values_but_nothing_else():
    dice = random.Random(1)
    whole = bytes(shards.dump({"a": torch.arange(10.0), "b": [1, (2, "x")], "c": {3: torch.zeros(0)}, "d": 2**80}))
    for _ in range(3_000):
        data = bytearray(whole)
        for _ in range(dice.randrange(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        with contextlib.suppress(CheckpointDamaged):
            shards.load(data[: dice.randrange(len(data))] if dice.random() < 0.2 else data)


def test_a_fingerprint_is_of_names_and_shapes_and_not_of_values():
    one, two = nn.Linear(2, 3), nn.Linear(2, 3)
    name = shards.fingerprint(one.state_dict(), name="Linear")
    assert name == shards.fingerprint(two.state_dict(), name="Linear")
    assert name.startswith("Linear[2 tensors, 9 values, ")
    assert name != shards.fingerprint(nn.Linear(3, 2).state_dict(), name="Linear")


def test_deferred_tensors_are_made_for_who_asks_and_stay_tied():
    weight = torch.arange(6.0).reshape(2, 3)
    tree = {"model": {"a": weight, "b": weight, "n": 3}, "opt": [torch.ones(5), (torch.zeros(0),)]}
    found = shards.load(shards.dump(tree), deferred=True)
    assert found["model"]["n"] == 3
    assert not isinstance(found["model"]["a"], torch.Tensor)
    model = shards.made(found["model"])
    assert torch.equal(model["a"], weight)
    assert model["a"] is model["b"]
    opt = shards.made(found["opt"])
    assert torch.equal(opt[0], torch.ones(5))
    assert opt[1][0].shape == (0,)
