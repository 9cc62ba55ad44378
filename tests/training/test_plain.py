"""What may be state comes back as what it was, whatever was done to the original since."""

import enum
import random
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import Conflict, InvalidRequest
from training.state import randomness, shards
from training.state.plain import plain, restored
from training.state.registry import Registry

WORDS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
STATES = st.recursive(
    WORDS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.sets(st.text() | st.integers(), max_size=4)
    ),
    max_leaves=20,
)


class Colour(enum.IntEnum):
    RED = 3


def through_bytes(value):
    return restored(shards.load(shards.dump(plain(value, "state"))))


@given(STATES)
def test_plain_values_come_back_as_what_they_were(state):
    back = through_bytes(state)
    assert (back, type(back)) == (state, type(state))


@pytest.mark.parametrize(
    ("value", "worth"),
    [
        (np.float64(0.5), 0.5),
        (np.int32(7), 7),
        (Colour.RED, 3),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (torch.float16, torch.float16),
        (torch.Size([2, 3]), (2, 3)),
    ],
)
def test_words_of_libraries_are_kept_as_what_they_are_worth(value, worth):
    back = through_bytes(value)
    assert (back, type(back)) == (worth, type(worth))


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "complex128", "uint32"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_arrays_come_back_with_type_and_shape(dtype, shape):
    array = np.ones(shape, dtype)
    back = through_bytes({"a": [array]})["a"][0]
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_what_was_taken_does_not_change_with_the_original():
    original = {"tensor": torch.zeros(2), "array": np.zeros(2), "list": [1]}
    taken = plain(original, "state")
    original["tensor"].add_(1)
    original["array"] += 1
    original["list"].append(2)
    back = restored(taken)
    assert (back["tensor"].sum(), back["array"].sum(), back["list"]) == (0, 0, [1])


@pytest.mark.parametrize("value", [object(), lambda: 1, np.array([object()]), range(3), torch.nn.Linear(1, 1)])
def test_what_is_no_plain_value_is_refused_by_its_path(value):
    with pytest.raises(InvalidRequest) as raised:
        plain({"a": [0, value]}, "state")
    assert raised.value.facts["path"] == "state.a[1]"


def test_all_generators_go_on_as_if_nothing_was_drawn_between():
    states = randomness.capture()

    def drawn():
        return random.random(), np.random.rand(), torch.rand(3).tolist()  # noqa: NPY002

    first = drawn()
    randomness.restore(shards.load(shards.dump(plain(states, "random"))) | {"numpy": states["numpy"]})
    assert drawn() == first


def generators():
    yield "torch", torch.Generator().manual_seed(1), lambda dice: torch.rand(3, generator=dice).tolist()
    yield "numpy", np.random.default_rng(1), lambda dice: dice.random(3).tolist()
    yield "python", random.Random(1), lambda dice: [dice.random() for _ in range(3)]


@pytest.mark.parametrize(("name", "dice", "draw"), list(generators()))
def test_generators_of_a_scripts_own_are_tracked(name, dice, draw):
    registry = Registry()
    registry.track(name, dice)
    kept = shards.load(shards.dump(registry.whole(registry.copied())))
    first = draw(dice)
    assert draw(dice) != first
    registry.load(kept)
    assert draw(dice) == first


def test_two_objects_can_not_share_a_name():
    registry = Registry()
    registry.track("best", {})
    with pytest.raises(Conflict, match="differently"):
        registry.track("best", {})
