"""The list of slow tests names tests that there are, and the stopwatch writes what it has read."""

import re
from pathlib import Path

from tests import slow

ROOT = Path(__file__).parent.parent


def test_what_is_listed_as_slow_is_there():
    """A file may have its tests from another: a name is looked for in all of them."""
    listed = slow.listed(slow.LIST.read_text(encoding="utf-8"))
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py")]
    there = {name for source in sources for name in re.findall(r"(?:def |^)(test_\w+|Test\w+)", source, re.MULTILINE)}
    assert listed
    for name in listed:
        file, *parts = name.split("::")
        assert (ROOT / file).is_file(), name
        assert parts[0] in there, name


def test_what_needs_a_ray_cluster_is_where_make_test_looks_for_it():
    """That half of the run collects these folders alone."""
    (said,) = re.findall(r"^RAYS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    folders = [ROOT / word for word in said.replace("$(wildcard tests/live*)", "").split()]
    marked = [file for file in (ROOT / "tests").rglob("*.py") if "pytest.mark.ray" in file.read_text(encoding="utf-8")]
    marked.remove(Path(__file__))
    assert len(marked) > 20
    for file in marked:
        is_live = file.relative_to(ROOT / "tests").parts[0].startswith("live")
        assert is_live or any(folder in file.parents for folder in folders), file


def test_a_test_is_slow_by_all_of_its_cases():
    watch = slow.Stopwatch()
    for case, seconds in (("[a]", 0.6), ("[b@c]", 0.6), ("", 0.3)):
        name = "tests/test_x.py::test_it" if case else "tests/test_x.py::test_quick"
        watch.pytest_runtest_logreport(Report(nodeid=name + case, duration=seconds))
    assert slow.listed(slow.written(watch.seconds)) == {"tests/test_x.py::test_it": 1.2}


class Report:
    def __init__(self, *, nodeid, duration):
        self.nodeid, self.duration = nodeid, duration


def test_what_a_file_takes_is_what_its_slow_tests_take():
    text = slow.HEAD + "   1.5 tests/a.py::test_a\n   2.0 tests/a.py::test_b\n   4.0 tests/b.py::test_c\n"
    assert slow.by_file(text) == {"tests/a.py": 3.5, "tests/b.py": 4.0}


def test_a_list_that_is_written_is_read_as_it_was():
    seconds = {"tests/b.py::test_b": 3.5, "tests/a.py::test_a": 2.0}
    assert slow.listed(slow.written(seconds)) == seconds
    assert slow.listed(slow.HEAD + "\n") == {}
