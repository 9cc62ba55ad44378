"""What an agent reads of a job's folder is a log, and no more of it than everybody can carry."""

import os

import pytest

from fabric.adapters import node_agent
from fabric.adapters.archive import DirectoryArchive
from fabric.adapters.node_agent import NodeAgent

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


async def test_of_a_log_without_end_the_beginning_is_kept_and_it_says_so(agent, archive, folder, monkeypatch):
    monkeypatch.setattr(node_agent, "LOG_BYTES_MAX", 1_000)
    (folder / "log").write_bytes(b"y\n" * 5_000)
    await tidied(agent, folder)
    kept = archive.get(KEY)
    assert kept.startswith(b"y\n" * 500)
    assert kept[1_000:] == b"\n[9000 more bytes were not kept: print less, or write to storage]\n"


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
