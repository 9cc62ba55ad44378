"""What the tests of a folder share and is dear to start, such as a Ray cluster: from the first that asks for it to the last test of
the folder. What a fixture of the scope `package` has made pytest ends only where a folder is a package of Python's, and elsewhere at
the end of all: a fabric that nobody needed any more took a part of the machine from all later tests.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


class Shared:
    """By folder and name."""

    def __init__(self) -> None:
        self._made: dict[Path, tuple[ExitStack, dict[str, Any]]] = {}

    def of(
        self, request: pytest.FixtureRequest, folder: Path, name: str, make: Callable[[], AbstractContextManager[T]]
    ) -> T:
        """What `make` has made for that folder, now or before. It ends before what the fixture that asks for it uses itself."""
        if folder not in self._made:
            self._made[folder] = ExitStack(), {}
            request.session.addfinalizer(lambda: self.end(folder))
        stack, made = self._made[folder]
        if name not in made:
            made[name] = stack.enter_context(make())
        found: T = made[name]
        return found

    def end(self, folder: Path) -> None:
        """End what that folder's tests share, the newest first."""
        if folder in self._made:
            self._made.pop(folder)[0].close()


shared = Shared()
"""Of this process."""
