"""Which tests are slow: measured, and kept in `slow.txt`, which gives them the marker `slow` that `make check` leaves out.

`make slow` measures on an idle machine and writes the file anew: a line for each test function whose cases take more than
`SLOW_S` altogether, with what its file sets up for it. What isn't in it, such as a new test, counts as quick.
"""

from collections import defaultdict
from pathlib import Path
from typing import Final

import pytest

SLOW_S: Final = 1.0
LIST: Final = Path(__file__).parent / "slow.txt"
ALWAYS: Final = "tests/test_tidy.py"
"""Quick whatever it takes: the style is what `make check` is for."""
HEAD: Final = (
    "# Seconds that the cases of a test take together, where these are more than one: written by `make slow`.\n"
)


def listed(text: str) -> dict[str, float]:
    """Tests, as `function_of` names them, and their seconds."""
    lines = (line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(seconds) for seconds, name in lines}


def by_file(text: str) -> dict[str, float]:
    """What the tests of each file that are listed take together."""
    seconds: dict[str, float] = defaultdict(float)
    for name, each in listed(text).items():
        seconds[name.partition("::")[0]] += each
    return seconds


def written(seconds: dict[str, float]) -> str:
    slow = sorted((name, each) for name, each in seconds.items() if each > SLOW_S and not name.startswith(ALWAYS))
    return HEAD + "".join(f"{each:6.1f} {name}\n" for name, each in slow)


def function_of(nodeid: str) -> str:
    """The test without its case: `tests/gate/test_gate.py::test_it`."""
    return nodeid.partition("[")[0].partition("@")[0]


class Stopwatch:
    """Adds up what each test took, also where they ran beside each other, and writes the list when all are over."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[function_of(report.nodeid)] += report.duration

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        kept = listed(LIST.read_text(encoding="utf-8")) if LIST.exists() else {}
        kept = {
            name: each for name, each in kept.items() if Path(session.config.rootpath, name.partition("::")[0]).exists()
        }
        LIST.write_text(written(kept | self.seconds), encoding="utf-8")
