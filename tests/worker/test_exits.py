"""What is said of how a program ended."""

from pathlib import Path

import pytest

from fabric.worker.exits import not_sent


@pytest.mark.parametrize(
    "said",
    [
        "cat: rows.csv: No such file or directory",
        "FileNotFoundError: [Errno 2] No such file or directory: 'rows.csv'",
        "FileNotFoundError: [Errno 2] No such file or directory: b'/w/rows.csv'",
        "Error: ENOENT: no such file or directory, open '/w/rows.csv'",
        "cat: /etc/shadows: No such file or directory\ncat: rows.csv: No such file or directory",
        "x" * 100_000 + "\ncat: rows.csv: No such file or directory",
    ],
)
def test_a_file_that_was_not_sent_is_named(said):
    assert not_sent(said, Path("/w")).startswith("rows.csv was not there")


@pytest.mark.parametrize("said", ["all is well", "cat: /etc/shadows: No such file or directory"])
def test_what_lies_elsewhere_on_the_node_is_not_told_to_be_sent(said):
    assert not_sent(said, Path("/w")) == ""


@pytest.mark.parametrize(
    "printed", ["\0", "/a", "no such file or directory: '", "x: no such file or directory, open '"]
)
def test_what_a_job_prints_is_looked_through_in_no_more_time_than_there_is_of_it(printed):
    """A look that takes its square would take hours."""
    not_sent(printed * (1_000_000 // len(printed)), Path("/w"))
