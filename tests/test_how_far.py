"""A run says in lines of its own how far it is, what fails at once, and what its tests took."""

from types import SimpleNamespace

from tests.how_far import HowFar


def report(nodeid, *, when="call", duration=0.0, failed=False):
    return SimpleNamespace(nodeid=nodeid, when=when, duration=duration, failed=failed)


def test_a_run_says_how_far_it_is_every_half_minute_and_what_fails_at_once():
    said, clock = [], [0.0]
    run = HowFar("some", say=said.append, now=lambda: clock[0])
    run.pytest_xdist_node_collection_finished(ids=["a", "b", "c", "d"])
    for at, (nodeid, failed) in enumerate((("a", False), ("b", True), ("c", False))):
        clock[0] = 20.0 * at
        run.pytest_runtest_logreport(report(nodeid, failed=failed))
        run.pytest_runtest_logreport(report(nodeid, when="teardown"))
    assert said == ["some: FAILED b", "some: 2 of 4 tests (50 %) in 0:40, 1 failed"]


def test_what_is_written_at_the_end_is_what_took_long_the_longest_first_with_all_cases(tmp_path):
    said = []
    run = HowFar("some", say=said.append, now=lambda: 0.0)
    for nodeid, duration in (
        ("x.py::test_a[1]", 0.6),
        ("x.py::test_a[2]", 0.6),
        ("x.py::test_b", 0.9),
        ("y.py::test_c", 7.0),
    ):
        run.pytest_runtest_logreport(report(nodeid, duration=duration))
    run.wrote(tmp_path / "build" / "slowest-some.txt")
    assert (tmp_path / "build" / "slowest-some.txt").read_text() == "   7.0 y.py::test_c\n   1.2 x.py::test_a\n"
    assert said[1:] == ["   7.0 y.py::test_c", "   1.2 x.py::test_a"]
