"""A SQLite file with one connection that writes and one that reads, each owned by a thread of its own."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import apsw

P = ParamSpec("P")
T = TypeVar("T")


class SqliteFile:
    """What a store in a file begins from: its calls run where their connection lives."""

    def __init__(self, path: Path | str, *, name: str, translating: Callable[[Callable[[], Any]], Any]) -> None:
        """Nothing is opened.

        Args:
            path: of the file.
            name: of its threads.
            translating: runs a call and says SQLite's errors in our words.
        """
        self.path = Path(path)
        self._translating = translating
        self._writer: apsw.Connection | None = None
        self._reader: apsw.Connection | None = None
        self._writing = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-write")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-read")

    async def close(self) -> None:
        await self._in(self._reading, self._close_reader)
        await self._in(self._writing, self._close_writer)

    async def _in(self, thread: ThreadPoolExecutor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in the thread that owns the connection; a cancelled caller doesn't stop a commit half-way."""
        loop = asyncio.get_running_loop()
        run: Callable[[], T] = partial(self._translating, partial(call, *args, **kwargs))
        return await asyncio.shield(loop.run_in_executor(thread, run))

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
