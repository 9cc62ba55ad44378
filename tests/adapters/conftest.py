"""Journals to test, on SQLite and on a PostgreSQL server of our own."""

import asyncio
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from fabric.adapters.journal import Journal
from fabric.adapters.journal_postgres import PostgresJournal
from fabric.adapters.journal_sqlite import SqliteJournal

NO_POSTGRES = "PostgreSQL's server programs are missing: install Debian's package postgresql to run these tests"
_names = count(1)


@dataclass
class PostgresServer:
    """A server with its own port, socket and data directory, which can be killed and started again."""

    programs: Path
    directory: Path
    user: str | None
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return f"postgresql://fabric@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(self.programs / program), *arguments]
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(command, user=self.user, stdout=log, stderr=log, cwd=self.directory)

    def create(self) -> None:
        initdb = self.run("initdb", "-D", str(self.directory / "data"), "-U", "fabric", "-A", "trust", "-E", "UTF8")
        assert initdb.wait(120) == 0, (self.directory / "log").read_text()

    def start(self) -> None:
        self.process = self.run(
            "postgres", "-D", str(self.directory / "data"), "-p", str(self.port), "-k", str(self.directory),
            "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=32MB", "-c", "max_connections=40",
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL did not start within a minute"
            time.sleep(0.05)

    def kill(self) -> None:
        """As a crash would: every process of it at once."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(2)
            self.process.wait(60)

    def _answers(self) -> bool:
        async def ask() -> None:
            await (await asyncpg.connect(self.dsn, timeout=2)).close()

        try:
            asyncio.run(ask())
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return False
        return True


def _programs() -> Path | None:
    found = [shutil.which("initdb"), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True))]
    return next((Path(path).parent for path in found if path), None)


def _unprivileged() -> str | None:
    """Who runs the server: PostgreSQL refuses to be run by root."""
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    programs = _programs()
    if programs is None:
        pytest.skip(NO_POSTGRES)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = Path(tempfile.mkdtemp(prefix="fabric-pg-"))
    user = _unprivileged()
    directory.chmod(0o755)
    if user is not None:
        shutil.chown(directory, user)
    server = PostgresServer(programs, directory, user, port)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def make_journal(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Journal]:
    """A function that gives journals on one and the same new store."""
    if request.param == "sqlite":
        return lambda: SqliteJournal(tmp_path / "state" / "journal.sqlite")
    dsn = request.getfixturevalue("postgres_server").dsn
    schema = f"journal_{os.getpid()}_{next(_names)}"
    return lambda: PostgresJournal(dsn, schema=schema)


@pytest.fixture
async def journal(make_journal: Callable[[], Journal]) -> AsyncIterator[Journal]:
    journal = make_journal()
    await journal.open()
    yield journal
    await journal.close()
