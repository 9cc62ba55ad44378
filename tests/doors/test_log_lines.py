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


CUT = st.lists(st.integers(1, 9), min_size=1, max_size=40)


def cut(data, sizes):
    at = 0
    while at < len(data):
        for size in sizes:
            yield data[at : at + size]
            at += size


@given(st.text(max_size=80), CUT)
def test_a_character_is_never_cut_wherever_the_pieces_end(text, sizes):
    data = text.encode("utf-8", "replace")
    assert shown(*((1, 0, piece) for piece in cut(data, sizes))) == data.decode()


LINES = st.lists(st.text(alphabet="汉字あ€😀ab\r ", max_size=12), max_size=6)


@given(LINES, LINES, CUT, st.randoms())
def test_lines_of_a_gang_come_whole_wherever_the_pieces_end(zero, one, sizes, order):
    said = {rank: "".join(f"{line}\n" for line in lines) for rank, lines in ((0, zero), (1, one))}
    queues = {rank: list(cut(text.encode(), sizes)) for rank, text in said.items()}
    pieces = [(1, 1, b"")]
    while any(queues.values()):
        rank = order.choice([rank for rank in queues if queues[rank]])
        pieces.append((1, rank, queues[rank].pop(0)))
    told = shown(*pieces)
    for rank, text in said.items():
        heard = "".join(
            line.removeprefix(f"[rank {rank}] ") for line in _cut_lines(told) if line.startswith(f"[rank {rank}] ")
        )
        assert heard == text


def _cut_lines(text):
    """At each mark of a rank, as the marks come at the beginnings of lines only."""
    import re

    return re.split(r"(?=\[rank )", text)[1:]


def test_a_progress_bar_is_shown_as_it_moves():
    lines = LogLines(headed=False)
    seen = ["".join(lines.take(attempt=1, rank=0, data=f"\r{percent} %".encode())) for percent in (1, 2, 3)]
    assert seen == ["\r1 %", "\r2 %", "\r3 %"]
    gang = LogLines(headed=False)
    list(gang.take(attempt=1, rank=1, data=b""))
    seen = ["".join(gang.take(attempt=1, rank=1, data=f"{percent} %\r".encode())) for percent in (1, 2, 3)]
    assert "".join(seen) == "[rank 1] 1 %\r[rank 1] 2 %\r"
    assert "".join(gang.rest()) == "[rank 1] 3 %\r\n"


def test_a_progress_bar_of_anothers_job_has_a_line_for_each_of_its_states():
    lines = LogLines(headed=False, raw=False)
    text = "".join(lines.take(attempt=1, rank=0, data=b"\r1 %\r2 %\r\nend\x1b[0m\n"))
    assert text == "\n1 %\n2 %\nend\\x1b[0m\n"


def test_a_line_of_a_hundred_megabytes_passes_in_bounded_memory():
    import tracemalloc

    lines = LogLines(headed=False)
    list(lines.take(attempt=1, rank=1, data=b""))
    piece = b"x" * 262_144
    tracemalloc.start()
    passed = sum(len(text) for _ in range(400) for text in lines.take(attempt=1, rank=1, data=piece))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert passed >= 400 * 262_144
    assert peak < 16 * 2**20
