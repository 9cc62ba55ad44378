"""A state in pieces is the state."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.gate.gate import Gate
from fabric.gate.pieces import pieces
from fabric.gate.state import SettledCalls
from tests.gate.conftest import submit, top_up


class Record(msgspec.Struct):
    name: str
    many: dict[str, int]
    inner: "Record | None" = None


@given(st.dictionaries(st.text(), st.integers(0, 2**40), max_size=40), st.integers(1, 20))
def test_however_it_is_cut_it_is_the_same(many, entries):
    record = Record(name="outer", many=many, inner=Record(name="inner", many=many))
    assert b"".join(pieces(record, entries=entries)) == msgspec.msgpack.encode(record)


@pytest.mark.parametrize("count", [15, 16, 17, 65_535, 65_536])
def test_a_dictionary_of_any_size_is_the_same(count):
    record = Record(name="", many={str(number): number for number in range(count)})
    found = list(pieces(record, entries=10))
    assert b"".join(found) == msgspec.msgpack.encode(record)
    assert max(map(len, found)) < 200


def test_a_large_dictionary_within_a_record_within_a_dictionary_is_cut_too():
    known = {f"call-{number}": None for number in range(1_000)}
    calls_of = {f"a{number}": SettledCalls(recent=known if number % 3 else {}, since_us=number) for number in range(25)}
    found = list(pieces(calls_of, entries=10))
    assert b"".join(found) == msgspec.msgpack.encode(calls_of)
    assert max(map(len, found)) < 500


def test_a_gates_snapshot_is_its_state(story):
    story.do(top_up(100))
    for number in range(20):
        story.do(submit(f"j{number}"))
    state = story.gate.state
    assert b"".join(pieces(state, entries=3)) == msgspec.msgpack.encode(state) == story.gate.snapshot()
    assert Gate.restore(story.gate.snapshot()).snapshot() == story.gate.snapshot()
