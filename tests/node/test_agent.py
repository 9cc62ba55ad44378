"""What an agent reads of a job's folder is a log, and no more of it than everybody can carry; and how it lets a lease go."""

import asyncio
import os
import subprocess
import sys

import pytest

from fabric.node.agent import NodeAgent, Watch
from fabric.storage import log_ends
from fabric.storage.archive import DirectoryArchive
from fabric.system import processes
from fabric.system.processes import LEASE_VARIABLE
from fabric.worker import members

KEY = "jobs/acme/j/logs/000001/000000"


@pytest.fixture
def archive(tmp_path):
    return DirectoryArchive(tmp_path / "archive")


@pytest.fixture
def agent(archive):
    return NodeAgent(meter="cpu", archive=archive)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "job"
    made.mkdir()
    return made


async def tidied(agent, folder):
    await agent.tidy(str(folder), str(folder / "log"), KEY)
    assert not folder.exists()


async def test_a_log_is_kept_and_its_folder_removed(agent, archive, folder):
    (folder / "log").write_bytes(b"hello\n")
    assert await agent.read_log(str(folder / "log"), offset=2, limit=3) == b"llo"
    await tidied(agent, folder)
    assert archive.get(KEY) == b"hello\n"


async def test_of_a_log_without_end_its_beginning_and_its_end_are_kept(agent, archive, folder, monkeypatch):
    monkeypatch.setattr(log_ends, "LOG_BYTES_MAX", 1_000)
    lines = b"".join(b"line %05d\n" % number for number in range(5_000))
    (folder / "log").write_bytes(lines)
    await tidied(agent, folder)
    head, [end] = archive.get(KEY), [key for key in archive.list(KEY.rsplit("/", 1)[0]) if key != KEY]
    assert lines.startswith(head)
    assert head.endswith(b"\n")
    note, _, tail = archive.get(end).partition(b"\n")
    assert lines.endswith(tail)
    assert 990 < len(head) + len(tail) + 22 <= 1_022
    left_out = len(lines) - len(head) - len(tail)
    told = f"[… {left_out // 11:,} lines, {left_out:,} bytes were left out here: print less, or write to storage …]"
    assert note.decode() == told


@pytest.mark.parametrize("kind", ["pipe", "link", "endless", "nothing"])
async def test_what_is_no_plain_file_is_no_log(agent, archive, folder, tmp_path, kind):
    log = folder / "log"
    match kind:
        case "pipe":
            os.mkfifo(log)
        case "link":
            (tmp_path / "secret").write_bytes(b"another's")
            log.symlink_to(tmp_path / "secret")
        case "endless":
            log.symlink_to("/dev/zero")
    assert await agent.read_log(str(log), offset=0, limit=10) == b""
    await tidied(agent, folder)
    assert not archive.exists(KEY)


async def test_processes_are_looked_at_once_where_a_lease_leaves_only_its_runner(agent, process, monkeypatch):
    runner = process("-c", "import time; time.sleep(120)")
    lease_id = f"job-{runner.pid}.1"  # no other test's, whose processes might carry the same mark
    looks = []
    look = processes.all_processes

    def all_processes():
        looks.append(1)
        return look()

    monkeypatch.setattr(members, "all_processes", all_processes)
    monkeypatch.setattr(processes, "all_processes", all_processes)
    await agent.attach(Watch(lease_id=lease_id, devices=("0",), roots=(runner.pid,)))
    (cut,), clear = await agent.release(lease_id, acknowledged=0)
    assert (cut.lease_id, cut.seq, clear) == (lease_id, 1, True)
    assert len(looks) == 1


@pytest.fixture
def process():
    """Starts Python, and ends it with the test."""
    started = []

    def start(*words, **options):
        started.append(subprocess.Popen([sys.executable, *words], **options))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


async def test_what_escaped_from_a_runner_is_metered_and_ended_when_the_lease_is_released(agent, process):
    environment = {**os.environ, LEASE_VARIABLE: "job-2.1"}
    busy = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    escaped = process("-c", busy, env=environment, start_new_session=True)
    runner = process("-c", "import time; time.sleep(60)")
    await agent.attach(Watch(lease_id="job-2.1", devices=("0",), roots=(runner.pid,)))
    await asyncio.sleep(0.5)
    cuts, clear = await agent.release("job-2.1", acknowledged=0)
    assert clear
    assert sum(cut.busy_us for cut in cuts) > 0
    assert escaped.wait(10) == -9
    assert runner.poll() is None
