"""What holds for every test: nothing of the caller's environment leaks in, nothing is left in their home.

And a PostgreSQL server, and an engine, for those that need a real one.
"""

import asyncio
import atexit
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil
import pytest
import structlog
from hypothesis import HealthCheck, settings

from fabric.system.ports import free_port
from tests import how_far, slow
from tests.shared import shared

SERVERS = {"postgres_server": "postgres", "moto_url": "s3", "rig": "vllm"}
"""Fixtures that start one, and the marker of who asks for them."""
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NO_POSTGRES = "PostgreSQL's server programs are missing: install Debian's package postgresql to run these tests"

for name in [name for name in os.environ if name.startswith("FABRIC_")]:
    del os.environ[name]
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["XDG_STATE_HOME"] = home = tempfile.mkdtemp(prefix="fabric-tests-")
atexit.register(shutil.rmtree, home, ignore_errors=True)

# A shell that runs the tests in its background has them, and all that they start, ignore Ctrl-C: nothing could be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A shared machine is sometimes slow: how long an example takes is no property of the code.
settings.register_profile("fabric", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", settings.get_profile("fabric"), max_examples=5_000)
settings.load_profile("fabric")


def pytest_addoption(parser):
    parser.addoption("--measure-slow", action="store_true", help="write tests/slow.txt by how long each test takes")
    parser.addoption(
        "--how-far", metavar="NAME", help="say now and then how far this run is, and write build/slowest-NAME.txt"
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    if hasattr(config, "workerinput"):
        return
    if config.option.measure_slow:
        config.pluginmanager.register(slow.Stopwatch())
    if config.option.how_far:
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        config.pluginmanager.register(how_far.HowFar(config.option.how_far, say=terminal.write_line))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Slow tests are marked, by measurement, and those that start a server, by their fixtures. Long ones run when they are
    asked for, by `-m soak`.
    """
    listed = slow.listed(slow.LIST.read_text(encoding="utf-8"))
    for item in items:
        if slow.function_of(item.nodeid) in listed:
            item.add_marker("slow")
        for server in SERVERS.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(SERVERS[server])
    if "soak" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("soak")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """What a folder's tests share ends with the last of them."""
    try:
        return (yield)
    finally:
        if nextitem is not None and nextitem.path.parent != item.path.parent:
            shared.end(item.path.parent)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Where tests run beside each other, those that share an engine, a cluster, or a file's fixtures, stay together; those that
    take long go first, so that nobody is left with them at the end.
    """
    from xdist.scheduler import LoadScopeScheduling  # there only where it is used

    seconds = slow.by_file(slow.LIST.read_text(encoding="utf-8"))

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _shared_by(Path(nodeid.partition("::")[0]))

        def _assign_work_unit(self, node):
            longest = max(self.workqueue, key=self._takes)
            self.workqueue.move_to_end(longest, last=False)
            super()._assign_work_unit(node)

        def _takes(self, scope):
            files = {nodeid.partition("::")[0] for nodeid in self.workqueue[scope]}
            return sum(seconds.get(file, 0.0) for file in files), len(self.workqueue[scope])

    return Together(config, log)


def _shared_by(test: Path) -> str:
    """One engine at a time is enough for a machine; a folder shares a cluster, and others share what their file does. `live` is
    the longest by far: two halves of it, each with a fabric, so that nobody waits for its end alone.
    """
    if test.parts[1] == "live":
        return f"{test.parent}, {'a to k' if test.name < 'test_l' else 'l to z'}"
    if test.parts[1].startswith("live") or test.parent.name == "ray_cluster":
        return str(test.parent)
    on_the_engine = test.name.startswith(("test_live", "test_schema")) and test.parts[1] == "serving"
    return "engine" if on_the_engine or test.name == "test_clients_of_the_endpoint.py" else str(test)


@pytest.fixture(autouse=True)
def _logs_as_before():
    """How this process logs is the process': a command run within it sets it, and later tests' lines would be gone."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(autouse=True)
def _no_lease_is_left():
    """What a process of a job is told in its environment is told to that process: the next test would run as one of the job's."""
    before = _told()
    yield
    for name in _told().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _told():
    return {name: value for name, value in os.environ.items() if name.startswith("FABRIC_") or name in RANKS}


@pytest.fixture
def state_dir(tmp_path, monkeypatch):
    """A state directory of this test's own, which everything that reads the settings uses."""
    monkeypatch.setenv("FABRIC_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """A bucket server of this process' own; every test names buckets of its own."""
    from moto.server import ThreadedMotoServer  # takes a while to import, and few tests need it

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


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
        # As another user by `setpriv`: Popen(user=...) forks, and gRPC's handlers of a fork may end the child where a client is open.
        other = ["setpriv", f"--reuid={self.user}", "--"] if self.user is not None else []
        command = [*other, str(self.programs / program), *arguments]
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory)

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
        # A backend outlives its postmaster for a moment, and would still take a commit; the postmaster starts others for those that end.
        postmaster = psutil.Process(self.process.pid)
        postmaster.suspend()
        while postmaster.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        children = postmaster.children(recursive=True)
        for process in children:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(children, timeout=60)

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
    if _programs() is None:
        pytest.skip(NO_POSTGRES)
    with running_postgres() as server:
        yield server


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A server of its own."""
    programs = _programs()
    assert programs is not None, NO_POSTGRES
    port = free_port()
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


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A model that was trained for some seconds."""
    from training.demo import byte_lm

    folder = tmp_path_factory.mktemp("models") / "byte-lm"
    byte_lm.train(steps=40, export_to=str(folder), directory=folder.with_name("run"))
    return folder


@pytest.fixture(scope="session")
def rig(model_folder, tmp_path_factory):
    """One real engine for all live tests of the session."""
    from tests.serving.rig import Rig

    rig = Rig(model_folder, tmp_path_factory.mktemp("replica")).start()
    yield rig
    left = rig.stop()
    rig.wire.close()
    assert left == []
