"""Logs of several ranks and attempts, merged so that they can be read, with nothing lost."""

from hypothesis import given
from hypothesis import strategies as st

from fabric.cli.log_lines import LogLines


def shown(*pieces, headed=False):
    lines = LogLines(headed=headed)
    text = "".join(part for attempt, rank, data in pieces for part in lines.take(attempt=attempt, rank=rank, data=data))
    return text + "".join(lines.rest())


def test_one_rank_is_shown_as_it_writes():
    assert shown((1, 0, b"50 %"), (1, 0, b"\r100 %\n")) == "50 %\r100 %\n"


def test_ranks_never_speak_into_each_others_lines():
    pieces = [(1, 1, b"ste"), (1, 0, b"loss "), (1, 1, b"p 1\nst"), (1, 0, b"0.5\n"), (1, 1, b"ep 2\n")]
    assert shown(*pieces) == "[rank 1] step 1\n[rank 0] loss 0.5\n[rank 1] step 2\n"


def test_an_attempt_begins_with_a_line_of_its_own_for_people():
    pieces = [(1, 0, b"one\n"), (2, 0, b"two\n")]
    assert shown(*pieces) == "one\ntwo\n"
    assert shown(*pieces, headed=True) == "one\n── attempt 2 ──\ntwo\n"


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2), st.binary(max_size=8)), max_size=12))
def test_nothing_that_was_written_is_lost(pieces):
    pieces.sort(key=lambda piece: piece[0])
    text = shown(*pieces)
    for rank in range(3):
        said = b"".join(data for _, at, data in pieces if at == rank)
        assert sum(map(text.count, {chr(byte) for byte in said if chr(byte).isalnum()})) >= sum(
            chr(byte).isascii() and chr(byte).isalnum() for byte in said
        )


def test_a_line_without_end_is_not_held_back_for_ever():
    lines = LogLines(headed=False)
    list(lines.take(attempt=1, rank=1, data=b"x"))
    assert "".join(lines.take(attempt=1, rank=1, data=b"y" * 20_000)).startswith("[rank 1] xy")
