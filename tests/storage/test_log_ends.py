"""However a log is cut on its way (pages, its beginning and end in the archive), no character is, and nothing is told twice."""

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.cluster import logs
from fabric.cluster.logs import JobLogs
from fabric.log_text import LogText, last_lines
from fabric.storage import log_ends
from fabric.storage.archive import DirectoryArchive
from fabric.storage.log_ends import incomplete, keep_log, read_part
from fabric.worker.job_output import end_of_log

KEY = "jobs/acme/job-1/logs/000001/000000"
NOTE = "were left out here"
CJK = st.text(alphabet="汉字あ한ß€😀ab\n", max_size=400)


class Machine:
    """A rank that writes, a node that keeps its log in the end, and a reader that asks again."""

    def __init__(self, folder):
        self.file = folder / "log"
        self.file.write_bytes(b"")
        self.archive = DirectoryArchive(folder / "archive")
        self.runs = True
        self.logs = JobLogs(archive=self.archive, agents=self, attempts_of=self._attempts)
        self.had, self.told = {}, []

    def _attempts(self, _):
        attempt = SimpleNamespace(
            lease=SimpleNamespace(account_id="acme", epoch=1),
            ranks=lambda: [(SimpleNamespace(rank=0, log_file=self.file), "10.0.0.1")],
        )
        return [attempt] if self.runs else []

    async def read_log(self, address, path, *, offset, limit):
        return read_part(path, offset, limit)

    def write(self, data):
        with self.file.open("ab") as log:
            log.write(data)

    def end(self):
        keep_log(self.archive, self.file, KEY)
        self.file.unlink()

    async def ask(self):
        """A page, and whether it had anything."""
        page = [chunk async for chunk in self.logs.read("job-1", account_id="acme", offsets=self.had)]
        for chunk in page:
            had = self.had.get("1/0", 0)
            assert chunk.offset >= had, "nothing is told twice"
            assert chunk.offset == had or NOTE in chunk.data.decode(), "nothing is left out without a word"
            self.had["1/0"] = chunk.offset + len(chunk.data)
            self.told.append(chunk.data)
        return bool(page)

    def text(self):
        texts = LogText()
        found = "".join(texts.take(attempt=1, rank=0, data=data) for data in self.told)
        return found + "".join(text for _, _, text in texts.rest())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@settings(deadline=None, max_examples=150)
@given(
    pieces=st.lists(st.tuples(st.text(alphabet="汉字あ한ß€😀ab\n", max_size=400), st.integers(0, 2)), max_size=12),
    most=st.integers(64, 400), page=st.integers(1, 300), late=st.booleans(),
)  # fmt: skip
async def test_whoever_follows_or_comes_late_reads_whole_characters_to_the_end(place, pieces, most, page, late):
    """Random writes cut at random bytes, pages of random sizes, and an end at which the log is longer than is kept."""
    import tempfile
    from pathlib import Path

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=place) as folder:
        patch.setattr(log_ends, "LOG_BYTES_MAX", most)
        patch.setattr(log_ends, "SLACK_BYTES", 200)
        patch.setattr(logs, "_CHUNK_BYTES", page)
        machine = Machine(Path(folder))
        written = ""
        for text, asked in pieces:
            data = text.encode()
            machine.write(data[: len(data) // 2])
            for _ in range(0 if late else asked):
                await machine.ask()
            machine.write(data[len(data) // 2 :])
            written += text
        machine.end()
        while await machine.ask():
            pass
        machine.runs = False
        while await machine.ask():
            pass
        told = machine.text()
        assert "\N{REPLACEMENT CHARACTER}" not in told
        if NOTE not in told:
            assert told == written
        else:
            before, _, after = told.partition("[… ")
            assert written.startswith(before.removesuffix("\n"))
            assert written.endswith(after.partition("…]\n")[2])
            assert len(after.encode()) > most // 4, "the end is there"


@given(st.text(max_size=50), st.lists(st.integers(0, 200), max_size=8), st.integers(0, 2))
def test_text_is_the_same_however_its_bytes_are_cut(text, cuts, rank):
    data, texts = text.encode("utf-8", "replace"), LogText()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[one:two] for one, two in itertools.pairwise(edges)]
    found = "".join(texts.take(attempt=1, rank=rank, data=piece) for piece in pieces)
    assert found == data.decode()
    assert list(texts.rest()) == []


@given(st.binary(max_size=60), st.integers(0, 60))
def test_bytes_that_are_no_text_hide_nothing_of_what_is(data, cut):
    texts = LogText()
    found = "".join(texts.take(attempt=1, rank=0, data=part) for part in (data[:cut], data[cut:]))
    found += "".join(text for _, _, text in texts.rest())
    assert found == data.decode("utf-8", "replace")


@given(st.text(min_size=1, max_size=20))
def test_the_first_bytes_of_a_character_are_known_for_it(text):
    data = text.encode("utf-8", "replace")
    for end in range(len(data) + 1):
        whole = data[: end - incomplete(data[:end])]
        assert whole.decode() == data[:end].decode(errors="ignore")


def test_a_line_of_many_megabytes_is_kept_at_both_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(log_ends, "LOG_BYTES_MAX", 1 << 20)
    (tmp_path / "log").write_bytes("汉".encode() * (1 << 20) + b"the end without a line's end")
    archive = DirectoryArchive(tmp_path / "archive")
    keep_log(archive, tmp_path / "log", KEY)
    kept = b"".join(archive.get(key) for key in archive.list("jobs"))
    assert kept.decode().endswith("the end without a line's end")
    assert "[… 0 lines, 2,09" in kept.decode()


def test_the_end_of_a_log_is_told_as_a_terminal_shows_it(tmp_path):
    log = tmp_path / "log"
    bar = "".join(f"\r{percent:3d} % 汉" for percent in range(100)) + "\n"
    log.write_bytes(b"x" * (1 << 20) + b"\n" + b"first\r\n" + bar.encode() * 3 + b"\x80Error: broken\n\n")
    told = end_of_log(log, 5)
    assert told.split("\n") == [" 99 % 汉", " 99 % 汉", " 99 % 汉", "\N{REPLACEMENT CHARACTER}Error: broken"] or told.split("\n") == [
        "first", " 99 % 汉", " 99 % 汉", " 99 % 汉", "\N{REPLACEMENT CHARACTER}Error: broken",
    ]  # fmt: skip
    assert end_of_log(tmp_path / "nothing", 5) == ""
    assert last_lines(b"one\rtwo\r", 3) == "two"
