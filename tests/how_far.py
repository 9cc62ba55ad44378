"""How far a run of many tests is, said in a line now and then, and what its tests took.

`pytest --how-far NAME` says what fails when it fails, half a minute's progress in one line, and writes `build/slowest-NAME.txt` at
its end: the seconds of each test that took more than one, as `tests/slow.txt` has them, the longest first.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests import slow

EVERY_S: Final = 30.0
TOLD: Final = 15
"""So many of the longest are shown at the end."""


class HowFar:
    """Instead of a dot for each test. `now` counts seconds, `say` writes a line."""

    def __init__(self, name: str, *, say: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self.name, self.say, self.now = name, say, now
        self.began = self.said_at = now()
        self.total = self.failed = 0
        self.done: set[str] = set()
        self.seconds: dict[str, float] = defaultdict(float)
        self.is_over = False

    @property
    def line(self) -> str:
        minutes, seconds = divmod(int(self.now() - self.began), 60)
        part = f"{len(self.done):,} of {self.total:,} tests ({100 * len(self.done) // max(1, self.total)} %)"
        return f"{self.name}: {part} in {minutes}:{seconds:02}" + (f", {self.failed} failed" if self.failed else "")

    @property
    def slowest(self) -> list[tuple[str, float]]:
        return sorted(self.seconds.items(), key=lambda item: -item[1])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.total = len(ids)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.total = len(session.items) or self.total

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_report_teststatus(self):
        category, letter, word = yield
        return (category, letter, word) if self.is_over else (category, "", "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[slow.function_of(report.nodeid)] += report.duration
        if report.failed:
            self.failed += 1
            self.say(f"{self.name}: FAILED {report.nodeid}")
        if report.when == "teardown":
            self.done.add(report.nodeid)
        if self.now() - self.said_at >= EVERY_S:
            self.said_at = self.now()
            self.say(self.line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.is_over = True
        self.say(self.line)
        self.wrote(Path(session.config.rootpath, "build", f"slowest-{self.name}.txt"))

    def wrote(self, file: Path) -> None:
        """The file, and its first lines for whoever looks."""
        lines = [f"{each:6.1f} {name}" for name, each in self.slowest if each > slow.SLOW_S]
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self.say(f"{self.name}: seconds of its longest tests, all of them in {file.parent.name}/{file.name}")
        for line in lines[:TOLD]:
            self.say(line)
