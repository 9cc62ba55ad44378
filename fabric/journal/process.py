"""The follower's process, as the gate keeps it: beside the gate, and never in its way.

It is `python -m fabric.journal`, tied to its parent by its standard input, over which it is told what to follow (with the
database's password, which is no argument that others could read) and whose end is its own. Nothing depends on it but speed:
while it is away, whoever asks reads from the journal itself.
"""

import asyncio
import subprocess
import sys
import time
from contextlib import suppress
from typing import Final

import msgspec
import structlog

from fabric.config.cluster import ClusterConfig, PostgresJournal, SqliteJournal
from fabric.journal.place import InDatabase, InFiles, Place

log = structlog.get_logger()

PAUSES_S: Final = (0.5, 1, 2, 5, 10, 30)
"""Before it is started again, each longer than the last, until it has stayed up for a while."""
LOOK_S: Final = 0.2
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
    """Keeps a follower's process running. Whose event loop that is doesn't matter: it is waited for by looking."""

    def __init__(self, place: Place, *, module: str = "fabric.journal", said: bytes = b"") -> None:
        """Nothing is started.

        Args:
            place: what it follows.
            module: what runs in it.
            said: what it is told, in a line of JSON; b"" = the place.
        """
        self._said = said or msgspec.json.encode(place)
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, while one runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    async def run(self) -> None:
        """Start it, and start it again whenever it ends; until cancelled, which ends it."""
        failures = 0
        try:
            while True:
                began = time.monotonic()
                self._process = await asyncio.to_thread(self._start)
                while await asyncio.sleep(LOOK_S, self._process.poll()) is None:
                    pass
                self._stop()
                lasted_s = time.monotonic() - began
                failures = 0 if lasted_s > WELL_S else failures + 1
                log.warning(
                    "follower_ended", follower=self._module, code=self._process.returncode, lasted_s=round(lasted_s)
                )
                await asyncio.sleep(PAUSES_S[min(failures, len(PAUSES_S) - 1)])
        finally:
            self._stop()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", self._module]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603 - a module of ours
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(self._said + b"\n")
            process.stdin.flush()
        return process

    def _stop(self) -> None:
        """At once, and let go of it: what it was about to keep is made again."""
        if self._process is None:
            return
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
