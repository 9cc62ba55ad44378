"""The follower's process, as the gate keeps it: beside the gate, and never in its way.

It is `python -m fabric.journal`, tied to its parent by its standard input, over which it is told what to follow (with the
database's password, which is no argument that others could read) and whose end is its own. Nothing depends on it but speed:
while it is away, whoever asks reads from the journal itself.
"""

import asyncio
import sys
from contextlib import suppress
from typing import Final

import msgspec
import structlog

from fabric.config.cluster import ClusterConfig, PostgresJournal, SqliteJournal
from fabric.journal.place import InDatabase, InFiles, Place

log = structlog.get_logger()

PAUSES_S: Final = (0.5, 1, 2, 5, 10, 30)
"""Before it is started again, each longer than the last, until it has stayed up for a while."""
WELL_S: Final = 60.0
STOP_S: Final = 5.0


def place_of(config: ClusterConfig) -> Place:
    """Where a fabric's journal is."""
    match config.journal:
        case SqliteJournal(path=path):
            return InFiles(str(path))
        case PostgresJournal(dsn=dsn):
            return InDatabase(dsn.get_secret_value())


class FollowerProcess:
    """Keeps a follower's process running."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, while one runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def run(self) -> None:
        """Start it, and start it again whenever it ends; until cancelled, which ends it."""
        failures = 0
        try:
            while True:
                began = asyncio.get_running_loop().time()
                self._process = await self._start()
                ended = await self._process.wait()
                lasted_s = asyncio.get_running_loop().time() - began
                failures = 0 if lasted_s > WELL_S else failures + 1
                log.warning("follower_ended", code=ended, lasted_s=round(lasted_s))
                await asyncio.sleep(PAUSES_S[min(failures, len(PAUSES_S) - 1)])
        finally:
            await self._stop()

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fabric.journal"), stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(msgspec.json.encode(self._place) + b"\n")
            await process.stdin.drain()
        return process

    async def _stop(self) -> None:
        """At once: what it was about to keep is made again."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError, TimeoutError):
                self._process.kill()
                await asyncio.wait_for(self._process.wait(), STOP_S)
