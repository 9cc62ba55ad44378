"""Functions and generators go on where they were; their states are plain, and come back as what they were."""

import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import context
from fabric.errors import Conflict, InvalidRequest
from tests.training.workload import Attempts, ended_by, linger, running, stopped
from training.functions import resumable
from training.state.packing import packed, unpacked

LIMIT = 60


@resumable
def walk(saved, limit, each=lambda at: None):
    """A random walk whose dice are part of the state."""
    dice, at, path = random.Random(7), 0, []
    if saved is not None:
        at, path, dice_state = saved
        dice.setstate(dice_state)
    while at < limit:
        at += 1
        path.append(dice.randint(0, 9))
        each(at)
        yield at, path, dice.getstate()
    return path


@resumable
def count(checkpoint, limit, each=lambda number: None):
    number = checkpoint.load(0)
    while number < limit:
        number += 1
        each(number)
        checkpoint.save(number)
    return number


def evicted_by(dice):
    def each(_at):
        if dice.random() < 0.2:
            stopped(context.current())

    return each


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path)


def test_functions_load_neither_torch_nor_numpy():
    code = "import sys, training.functions; print(sorted({'torch', 'numpy', 'ray'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


@pytest.mark.parametrize("work", [walk, count])
def test_a_function_that_is_evicted_returns_what_it_would_have(attempts, work):
    seed = random.randrange(2**32)
    each = evicted_by(random.Random(seed))
    assert attempts.run(lambda job: work(LIMIT, each)) == work(LIMIT), f"seed {seed}"
    assert attempts.count > 1


def test_outside_the_fabric_functions_just_run_and_keep_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (len(walk(LIMIT)), count(LIMIT)) == (LIMIT, LIMIT)
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "fabric-session"]


def test_with_a_directory_a_function_goes_on_when_it_is_called_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FABRIC_CHECKPOINT_DIR", str(tmp_path))
    seen = []

    def fails(number):
        seen.append(number)
        if number == 5 and len(seen) == 5:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        count(8, fails)
    assert count(8, seen.append) == 8
    assert seen == [1, 2, 3, 4, 5, 5, 6, 7, 8]


def test_a_generator_deep_in_its_work_is_saved_at_its_last_yield_and_ended(attempts, monkeypatch):
    monkeypatch.setattr(
        "training.functions._COPY_SHARE_MAX", float("inf")
    )  # every yield is copied, however long it takes

    def each(at):
        time.sleep(0.05)
        if at == 9 and attempts.count == 1:
            stopped(context.current())
            linger()

    job = attempts.next()
    with ended_by(context.Saved, job):
        walk(LIMIT, each)
    assert attempts.saves == [8]
    with running(attempts.next()):
        assert walk(LIMIT) == walk(LIMIT)


def test_a_state_that_is_slow_to_copy_is_not_copied_at_every_yield(attempts, monkeypatch):
    copies = []

    def slow(value):
        copies.append(value)
        time.sleep(0.02)
        return packed(value)

    monkeypatch.setattr("training.functions.packed", slow)
    with running(attempts.next()):
        walk(LIMIT)
    assert len(copies) < 5


def test_a_state_that_was_not_copied_is_waited_for(attempts, monkeypatch):
    def slow(value):
        time.sleep(0.02)
        return packed(value)

    def each(at):
        if at == 30:
            stopped(context.current())

    monkeypatch.setattr("training.functions.packed", slow)
    job = attempts.next()
    with ended_by(context.Saved, job):
        walk(LIMIT, each)
    assert attempts.saves == [30]


def test_a_step_is_shown_as_the_function_counts_it(attempts):
    @resumable
    def work(checkpoint):
        for epoch in range(3):
            checkpoint.save({"epoch": epoch}, step=100 * epoch)

    with running(attempts.next()):
        work()
    assert attempts.saves == [0, 100, 200]


def test_what_can_not_be_kept_is_named(attempts):
    @resumable
    def work(saved):
        yield {"open": [1, object()]}

    with running(attempts.next()), pytest.raises(InvalidRequest) as raised:
        work()
    assert raised.value.code == "untrackable_state"
    assert "state[1].open[1]" in raised.value.message


def test_a_checkpoint_of_another_kind_is_refused(attempts):
    job = attempts.next()
    draft = job.checkpoints.begin(3)
    draft.put("state", b"PK\x03\x04 of torch")
    job.checkpoints.commit(draft)
    with running(attempts.next()), pytest.raises(Conflict) as raised:
        walk(LIMIT)
    assert raised.value.code == "checkpoint_of_another_kind"


WORDS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.text() | st.integers() | st.tuples(st.integers(), st.text())
STATES = st.recursive(
    WORDS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(KEYS, max_size=4)
        | st.frozensets(KEYS, max_size=4)
    ),
    max_leaves=20,
)


def told(value):
    """The value with its types, which `==` doesn't compare."""
    if isinstance(value, list | tuple):
        return type(value), [told(item) for item in value]
    if isinstance(value, dict):
        return dict, [(told(key), told(item)) for key, item in value.items()]
    return type(value), value


@given(STATES)
def test_a_plain_state_comes_back_as_what_it_was(state):
    assert told(unpacked(packed(state))) == told(state)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "complex128", "uint8", "<U5", "datetime64[s]"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_arrays_come_back_with_type_and_shape(dtype, shape):
    array = np.zeros(shape, dtype)
    (back,) = unpacked(packed([array]))
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("value", [object(), [lambda: 1], {"a": {1, object}}, np.array([object()]), range(3)])
def test_what_is_not_plain_is_refused(value):
    with pytest.raises(InvalidRequest):
        packed(value)
