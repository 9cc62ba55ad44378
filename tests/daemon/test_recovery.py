"""An end waits for a control store of Ray's that answers, and not for one that doesn't."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray

from fabric import daemon
from fabric.daemon import recovery
from fabric.daemon.state_dir import is_held
from fabric.errors import InvalidConfig


class Ended(BaseException):
    pass


@pytest.fixture
def ended(monkeypatch):
    said = []
    monkeypatch.setattr(recovery, "SILENT_S", 0.05)
    monkeypatch.setattr(daemon, "end_remains", said.append)

    def leave(code):
        raise Ended(code)

    monkeypatch.setattr("os._exit", leave)
    return said


async def test_where_ray_answers_the_end_goes_its_ordinary_way(ended, monkeypatch, tmp_path):
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(recovery, "SILENT_S", 30)
    await recovery.end_if_silent(tmp_path, tmp_path / "work")
    assert ended == []


async def test_where_ray_says_nothing_all_of_it_is_ended_at_once(ended, monkeypatch, tmp_path):
    goes = threading.Event()
    monkeypatch.setattr(ray, "nodes", lambda: goes.wait(30))
    (tmp_path / "work").mkdir()
    with pytest.raises(Ended):
        await recovery.end_if_silent(tmp_path, tmp_path / "work")
    goes.set()
    assert ended == [Path(tmp_path)]
    assert not (tmp_path / "work").exists()


AGAIN = """
import argparse, os, sys
from pathlib import Path
from fabric import daemon
from fabric.daemon import recovery

place, kept = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None
with daemon.held(place, kept=kept) as lock:
    print("held", lock, flush=True)
    sys.stdin.readline()
    if kept is None:
        os.execv = lambda program, words: execv(program, [program, __file__, str(place), words[words.index("--lock") + 1]])
        recovery.begin_again(argparse.Namespace(config=None, state_dir=place, any_port=False, lock=lock), ports=(1, 2, 3))
    assert not os.get_inheritable(lock)
"""


def test_nobody_comes_between_a_fabric_and_itself_as_it_begins_again(tmp_path):
    script = tmp_path / "again.py"
    script.write_text(AGAIN.replace("import argparse", "from os import execv\nimport argparse"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, script, tmp_path], **pipes) as process:
        assert process.stdout.readline().startswith("held")
        process.stdin.write("go on\n")
        process.stdin.flush()
        free = 0
        said = threading.Thread(target=process.stdout.readline)
        said.start()
        while said.is_alive():
            free += not is_held(tmp_path)
        assert not free
        process.stdin.write("end\n")
        process.stdin.flush()
        assert process.wait(60) == 0
        assert not is_held(tmp_path)


def test_a_beginning_that_fails_gives_the_lock_it_was_left_back(tmp_path, monkeypatch):
    """Else whoever begins once more, as this process does, would find itself in the way for ever."""
    with daemon.held(tmp_path) as lock:
        kept = os.dup(lock)

    def full(place):
        raise InvalidConfig(f"{place} can't be written")

    monkeypatch.setattr("fabric.daemon.state_dir.prepare", full)
    with pytest.raises(InvalidConfig), daemon.held(tmp_path, kept=kept):
        pytest.fail("it served from a directory that can't be written")
    assert not is_held(tmp_path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)
