"""What a folder's tests share is made once, and ended with the folder's last test."""

from contextlib import contextmanager
from pathlib import Path

from tests.shared import Shared

A, B = Path("a"), Path("b")


def test_what_a_folder_shares_is_made_once_and_ended_with_it_the_newest_first():
    shared, told = Shared(), []

    @contextmanager
    def made(name):
        told.append(f"{name} begins")
        yield name
        told.append(f"{name} ends")

    for name in ("one", "two", "one"):
        assert shared.of(A, name, lambda name=name: made(name)) == name
    assert shared.of(B, "one", lambda: made("another")) == "another"
    shared.end(A)
    shared.end(A)
    assert told == ["one begins", "two begins", "another begins", "two ends", "one ends"]
    shared.end_all()
    assert told[-1] == "another ends"
    assert shared.of(A, "one", lambda: made("a new one")) == "a new one"
