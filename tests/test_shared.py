"""What a folder's tests share is made once, and ended with the folder's last test."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from tests.shared import Shared

pytest_plugins = ["pytester"]
A, B = Path("a"), Path("b")


def test_what_a_folder_shares_is_made_once_and_ended_with_it_the_newest_first():
    shared, told, at_the_end = Shared(), [], []
    request = SimpleNamespace(session=SimpleNamespace(addfinalizer=at_the_end.append))

    @contextmanager
    def made(name):
        told.append(f"{name} begins")
        yield name
        told.append(f"{name} ends")

    for name in ("one", "two", "one"):
        assert shared.of(request, A, name, lambda name=name: made(name)) == name
    assert shared.of(request, B, "one", lambda: made("another")) == "another"
    shared.end(A)
    shared.end(A)
    assert told == ["one begins", "two begins", "another begins", "two ends", "one ends"]
    assert shared.of(request, A, "one", lambda: made("a new one")) == "a new one"
    for end in reversed(at_the_end):
        end()
    assert told[5:] == ["a new one begins", "a new one ends", "another ends"]


def test_it_ends_before_the_fixtures_that_it_uses_though_these_last_to_the_end_of_all(pytester):
    pytester.makeconftest("""
        from contextlib import contextmanager
        from pathlib import Path
        import pytest
        from tests.shared import shared

        told = []

        @pytest.fixture(scope="session")
        def database():
            yield
            told.append("database ends")

        @contextmanager
        def made():
            yield
            told.append("shared ends")

        @pytest.fixture
        def fabric(request, database):
            return shared.of(request, Path(__file__).parent, "fabric", made)

        @pytest.fixture(scope="module")
        def module(request, database):
            yield shared.of(request, Path(__file__).parent, "fabric", made)
            told.append("module ends")

        def pytest_unconfigure():
            print(told)
    """)
    pytester.makepyfile("def test_it(fabric, module): pass")
    said = pytester.runpytest_inprocess("-p", "no:xdist", "-p", "no:asyncio", "-p", "no:cacheprovider")
    said.stdout.fnmatch_lines(["['module ends', 'shared ends', 'database ends']"])
