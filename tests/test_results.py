"""A result is data: what can be is read without running anything, and nothing that is read grows out of proportion."""

import datetime as dt
import itertools
import math
import pickle
import struct
import uuid
import zoneinfo
from collections import OrderedDict, deque
from decimal import Decimal
from fractions import Fraction
from typing import ClassVar

import cloudpickle
import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fabric.results import ResultUnreadable, pack_error, pack_value, read_parcel
from fabric.results.parcel import MAGIC

ROME = zoneinfo.ZoneInfo("Europe/Rome")
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.decimals(allow_nan=False),
    st.fractions(), st.datetimes(timezones=st.none() | st.just(dt.UTC) | st.just(ROME)), st.dates(), st.timedeltas(),
    st.uuids(), st.complex_numbers(allow_nan=False),
)  # fmt: skip
KEYS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.dates(), st.tuples(st.integers(), st.text())
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(KEYS, inner), st.sets(KEYS), st.frozensets(KEYS),
        st.lists(inner).map(deque), st.dictionaries(KEYS, inner).map(OrderedDict),
    ),
    max_leaves=25,
)  # fmt: skip


class Runs:
    """Code of the job's choice: whoever unpickles it runs it."""

    ran: ClassVar = []

    def __reduce__(self):
        return Runs.ran.append, ("here",)


class Own(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a}{b}")


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same(x, y) and same(v, w) for (x, v), (y, w) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and repr(a) == repr(b) if not isinstance(a, set | frozenset) else a == b


@given(VALUES)
def test_plain_values_come_back_as_what_they_were_and_as_data(value):
    parcel = read_parcel(pack_value(value))
    assert parcel.is_data
    assert parcel.pickle is None
    assert same(parcel.value(), value)


@given(st.binary(max_size=300))
def test_no_bytes_after_the_mark_do_anything_but_be_refused(data):
    for bytes_ in (MAGIC + data, MAGIC + len(data).to_bytes(4, "little") + data):
        try:
            parcel = read_parcel(bytes_)
            parcel.value() if parcel.is_data else None
        except ResultUnreadable:
            pass


@given(VALUES, st.data())
def test_a_changed_byte_is_another_value_or_is_refused(value, data):
    packed = bytearray(pack_value(value))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        parcel = read_parcel(bytes(packed))
        parcel.value() if parcel.is_data else None
    except ResultUnreadable:
        pass


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6).reshape(2, 3), np.float32(1.5), np.array(["a", "bcd"]), np.zeros((0, 3)), np.zeros((), dtype=bool),
        np.array(["2026-01-01"], dtype="datetime64[ns]"), np.array([1 + 2j]), np.int64(-1), np.bool_(1),
    ],
)  # fmt: skip
def test_arrays_are_data(value):
    parcel = read_parcel(pack_value({"x": value}))
    found = parcel.value()["x"]
    assert parcel.is_data
    assert type(found) is type(value)
    assert found.dtype == value.dtype
    np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint8]
)
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3)])
def test_tensors_are_data(dtype, shape):
    value = torch.ones(shape).to(dtype)
    parcel = read_parcel(pack_value([value, value.T if value.ndim == 2 else value]))
    first, second = parcel.value()
    assert parcel.is_data
    assert first.dtype == dtype
    assert torch.equal(first, value)
    assert second.shape == (value.T if value.ndim == 2 else value).shape


def test_a_models_state_is_data_with_its_parameters_and_its_metadata():
    state = torch.nn.Linear(2, 3).state_dict()
    parcel = read_parcel(pack_value((state, torch.nn.Parameter(torch.ones(2)))))
    found, parameter = parcel.value()
    assert parcel.is_data
    assert type(found) is OrderedDict
    assert found._metadata == state._metadata
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert type(parameter) is torch.nn.Parameter
    assert parameter.requires_grad


@pytest.mark.parametrize(
    "value",
    [Runs, Own("a", "b"), object(), np.array([None]), torch.ones(2).to_sparse(), memoryview],
)
def test_what_is_not_plain_is_a_pickle_that_says_what_it_is(value):
    parcel = read_parcel(pack_value(value))
    assert not parcel.is_data
    assert parcel.pickle is not None
    assert parcel.type_name == f"{type(value).__module__}.{type(value).__qualname__}"
    assert parcel.text


def test_reading_a_parcel_runs_nothing_of_it():
    for packed in (pack_value(Runs()), pack_error(Own("a", Runs())), cloudpickle.dumps(Runs()), pack_value([Runs()])):
        parcel = read_parcel(packed)
        assert not parcel.is_data
        assert parcel.size == len(packed)
    assert Runs.ran == []


def test_subclasses_with_code_of_their_own_are_no_data():
    class Dict(dict):
        pass

    class Int(int):
        pass

    class Array(np.ndarray):
        pass

    for value in (Dict(), Int(3), np.ones(2).view(Array), np.array([(1, 2.0)], dtype="i4,f8")):
        assert not read_parcel(pack_value([value])).is_data


def test_what_is_shared_often_is_not_written_out_for_ever(monkeypatch):
    monkeypatch.setattr("fabric.results.plain.NODES_MAX", 20_000)
    value = []
    for _ in range(40):
        value = [value, value]
    assert not read_parcel(pack_value(value)).is_data
    value.append(value)
    assert not read_parcel(pack_value(value)).is_data


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no", 3), KeyError("x"), FileNotFoundError(2, "gone", "/x"), ZeroDivisionError(), StopIteration(4),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), MemoryError(), RuntimeError({"a": (1, 2)}),
    ],
)  # fmt: skip
def test_a_built_in_exception_is_made_anew_without_unpickling(error):
    error.add_note("hint")
    parcel = read_parcel(pack_error(error))
    found = parcel.value()
    assert parcel.is_data
    assert parcel.is_error
    assert parcel.pickle is None
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.__notes__ == ["hint"]


def test_any_other_exception_tells_its_type_and_text():
    parcel = read_parcel(pack_error(Own("a\x1b[2J", "b")))
    assert (parcel.is_data, parcel.is_error, parcel.text) == (False, True, "a\x1b[2Jb")
    assert parcel.type_name.endswith(".Own")
    nested = read_parcel(pack_error(ValueError(Runs())))
    assert not nested.is_data
    assert nested.type_name == "builtins.ValueError"


def test_a_value_whose_repr_fails_or_is_endless_is_packed_all_the_same():
    class Mute:
        def __repr__(self):
            raise RuntimeError

    class Loud:
        def __repr__(self):
            return "x" * 10**6

    assert "Mute" in read_parcel(pack_value(Mute())).text
    assert len(read_parcel(pack_value(Loud())).text) == 2_000


def parcel_of(tree, *buffers, form="data", **head):
    encoded = msgspec.msgpack.encode({"form": form, "tree": tree, "sizes": [len(b) for b in buffers], **head})
    return MAGIC + len(encoded).to_bytes(4, "little") + encoded + b"".join(buffers)


def deep(levels):
    tree = 1
    for _ in range(levels):
        tree = ["list", tree]
    return tree


@pytest.mark.parametrize(
    "packed",
    [
        parcel_of(deep(100)),
        parcel_of(["array", "|O", [1], 0], b"x" * 8),
        parcel_of(["array", "O,O", [1], 0], b"x" * 8),
        parcel_of(["array", "<f8", [2**40], 0], b"x" * 8),
        parcel_of(["array", "<f8", [-1], 0], b"x" * 8),
        parcel_of(["list", ["bytes", 0], ["bytes", 0]], b"x" * 8),
        parcel_of(["list", ["bytes", -1]], b"x" * 8),
        parcel_of(["tensor", "Tensor", [1], 0, 0], b"x" * 4),
        parcel_of(["tensor", "float32", [2**33], 0, 0], b"x" * 4),
        parcel_of(["builtins.eval", "1"]),
        parcel_of({"a": 1}),
        parcel_of(["dict", None, ["list"], 1]),
        parcel_of(["datetime", "2026-01-01", 0, "../../etc/passwd"]),
        parcel_of(["decimal", "x"]),
        parcel_of(["_array", 1]),
        parcel_of(["tuple", "touch x"], form="error", kind="os.system"),
        parcel_of(["tuple", "1"], form="error", kind="builtins.eval"),
        parcel_of(["tuple", "1"], form="error", kind="builtins.ExceptionGroup"),
        parcel_of(None, b"x", sizes=[2]),
        MAGIC + b"\xff\xff\xff\xff",
        MAGIC,
        parcel_of(["int", b"\x01" * 5_000]),
        parcel_of(["fraction", b"\x01" * 5_000, b"\x03" * 5_000]),
        parcel_of(["datetime", "2026-01-01T00:00:00", 0, "America"]),
        parcel_of(["datetime", "2026-01-01T00:00:00", 0, "x" * 5_000]),
    ],
)
def test_a_forged_parcel_is_refused(packed):
    with pytest.raises(ResultUnreadable):
        read_parcel(packed).value()


PRIME = 2**61 - 1
"""Integers are hashed as what they leave when divided by it."""
ALIKE = [["int", (number * PRIME).to_bytes(12, "little", signed=True)] for number in range(8, 308)]
ALIKE_TUPLES = [["tuple", *pair] for pair in itertools.product([1, 1 + PRIME, 1 + 2 * PRIME, 1 + 3 * PRIME], repeat=5)]


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        (["set", *ALIKE], "one hash"),
        (["frozenset", *ALIKE_TUPLES], "one hash"),
        (["dict", None, *itertools.chain.from_iterable((key, 0) for key in ALIKE)], "one hash"),
        (["counter", None, *itertools.chain.from_iterable((key, 0) for key in ALIKE_TUPLES)], "one hash"),
        (["array", "<f8", [2**62] * 1_000, 0], "axes"),
        (["tensor", "float32", [2**62] * 1_000, 0, 0], "axes"),
    ],
)
def test_nothing_in_a_parcel_takes_time_with_the_square_of_its_size(tree, why):
    """Somebody's result of 16 MiB would keep whoever reads it for half a day."""
    with pytest.raises(ResultUnreadable, match=why):
        read_parcel(parcel_of(tree, b"")).value()


@pytest.mark.parametrize("around", [lambda tree: tree, lambda tree: ["list", ["tuple", tree]]])
def test_a_map_is_refused_before_it_is_made(around):
    with pytest.raises(ResultUnreadable, match="a map"):
        read_parcel(parcel_of(around({1: 2})))


def test_a_result_of_before_is_a_pickle_of_something():
    parcel = read_parcel(pickle.dumps(3))
    assert (parcel.is_data, parcel.type_name, parcel.unpickled()) == (False, "", 3)


def test_large_results_take_about_their_own_size():
    numbers = [float(n) for n in range(100_000)]
    assert len(pack_value(numbers)) < 8 * len(numbers) + 200
    assert read_parcel(pack_value(tuple(numbers))).value() == tuple(numbers)
    assert read_parcel(pack_value([Decimal(1), Fraction(1, 3), uuid.UUID(int=3), range(3), 2**70])).is_data


def test_a_result_with_code_of_another_python_is_told_and_not_run(monkeypatch):
    class Loss:
        def __repr__(self):
            return "<loss>"

    monkeypatch.setattr("fabric.results.parcel._PYTHON", "3.9")
    packed = pack_value(Loss())
    monkeypatch.undo()
    parcel = read_parcel(packed)
    assert parcel.python == "3.9"
    with pytest.raises(ResultUnreadable, match=r"3\.9.*<loss>") as failure:
        parcel.unpickled()
    assert failure.value.code == "result_other_python"


def test_a_result_without_code_is_read_by_any_python():
    assert read_parcel(pack_value(slice(1, 2))).python == ""


def test_a_zone_where_the_system_knows_none_says_which_package_has_them(monkeypatch):
    parcel = read_parcel(pack_value(dt.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("Asia/Shanghai"))))

    def unknown(key):
        raise zoneinfo.ZoneInfoNotFoundError(key)

    monkeypatch.setattr("fabric.results.plain.zoneinfo.ZoneInfo", unknown)
    monkeypatch.setattr("fabric.results.plain.zoneinfo.available_timezones", set)
    with pytest.raises(ResultUnreadable, match="tzdata"):
        parcel.value()
