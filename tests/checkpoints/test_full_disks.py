"""A disk that is full or breaks at any call: what was saved stays whole, the error says what to do, and the next save works."""

import errno
import resource
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from fabric.checkpoints import Checkpoints, DirectoryStore, directory, draft
from fabric.errors import Conflict, Unavailable
from tests.checkpoints.conftest import JOB


def leftovers(root):
    return list(root.rglob("*.draft"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


def test_a_shard_that_does_not_fit_says_how_much_is_missing_and_leaves_what_was_saved(root, save):
    first = Checkpoints(DirectoryStore(root), prefix=JOB, epoch=1)
    save(first, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        with pytest.raises(Unavailable, match="free some space") as raised:
            save(first, 2, state=bytes(2**20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (raised.value.code, raised.value.facts["size_bytes"]) == ("store_full", 2**20)
    assert leftovers(root) == []
    assert first.load()[1] == {"state": b"state 1"}
    assert save(first, 2, state=bytes(2**20)).step == 2


def test_a_disk_that_is_really_full_leaves_what_was_saved_and_goes_on_when_there_is_room(tmp_path, save):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        first = Checkpoints(DirectoryStore(small), prefix=JOB, epoch=1, keep=1)
        save(first, 1, state=bytes(400_000))
        with pytest.raises(Unavailable, match="free some space") as raised:
            save(first, 2, state=bytes(900_000))
        assert raised.value.code == "store_full"
        assert leftovers(small) == []
        assert first.newest().step == 1
        assert save(first, 2, state=bytes(300_000)).step == 2
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


class Breaking:
    """A stand-in for a disk: fails the nth call that changes something."""

    def __init__(self, monkeypatch, error):
        self.left, self.error = -1, error
        monkeypatch.setattr(directory, "_write_all", self.breaking(directory._write_all))
        monkeypatch.setattr(directory, "_linked", self.breaking(directory._linked))
        monkeypatch.setattr(directory.os, "fsync", self.breaking(directory.os.fsync))
        for name in ("replace", "mkdir"):
            monkeypatch.setattr(Path, name, self.breaking(getattr(Path, name)))

    def breaking(self, original):
        def called(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                raise OSError(self.error, "injected")
            return original(*args, **kwargs)

        return called


@pytest.mark.parametrize(("error", "code"), [(errno.ENOSPC, "store_full"), (errno.EIO, "store_failed")])
def test_whichever_call_to_the_disk_fails_what_was_acknowledged_is_whole(root, save, monkeypatch, error, code):
    disk, failed = Breaking(monkeypatch, error), 0
    for at in range(1, 60):
        shutil.rmtree(root, ignore_errors=True)
        first = Checkpoints(DirectoryStore(root), prefix=JOB, epoch=1)
        save(first, 1, a=b"a1", b=b"b1")
        disk.left = at
        try:
            save(first, 2, a=b"a2", b=b"b2")
        except Unavailable as raised:
            failed += 1
            assert raised.code == code  # noqa: PT017 - not every call fails
            least = 1
        else:
            least = 2
        reached, disk.left = disk.left <= 0, -1
        reader = Checkpoints(DirectoryStore(root), prefix=JOB, epoch=9)
        manifest, shards = reader.load()
        assert manifest.step >= least
        assert shards == {"a": f"a{manifest.step}".encode(), "b": f"b{manifest.step}".encode()}
        assert reader.passed_over == ()
        assert leftovers(root) == []
        try:
            save(first, 3, a=b"a3", b=b"b3")
        except Conflict:  # it was told that its record isn't there, and it is: it can't know what is newest
            first = Checkpoints(DirectoryStore(root), prefix=JOB, epoch=2)
            save(first, 3, a=b"a3", b=b"b3")
        assert reader.load()[0].step == 3
        if not reached:
            break
    assert failed >= 8, "there are so many calls in a save"


def test_what_fails_while_a_large_value_goes_to_the_disk_is_told_although_the_last_sync_finds_nothing(
    root, save, monkeypatch
):
    """A system tells a failed write once, to whoever syncs next: here that is the thread beside the writing."""
    monkeypatch.setattr(directory, "_LARGE_BYTES", 1)
    monkeypatch.setattr(directory, "_SYNC_EVERY_S", 0.0)
    monkeypatch.setattr(draft, "_LARGE_BYTES", 1)
    write, synced, broken = directory._write_all, threading.Event(), [False]

    def writing(file, data):
        write(file, data)
        assert synced.wait(10)

    def sync(handle):
        first, broken[0] = broken[0], False
        synced.set()
        if first:
            raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(directory, "_write_all", writing)
    monkeypatch.setattr(directory.os, "fdatasync", sync)
    first = Checkpoints(DirectoryStore(root), prefix=JOB, epoch=1)
    save(first, 1, state=b"s" * 100_000)
    assert first.load()[1] == {"state": b"s" * 100_000}
    broken[0] = True
    synced.clear()
    with pytest.raises(Unavailable) as raised:
        save(first, 2, state=b"t" * 100_000)
    assert raised.value.code == "store_failed"
    assert leftovers(root) == []
    assert first.load()[0].step == 1


def test_a_file_system_without_hard_links_is_found_out_before_it_is_trusted(root, save, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "injected")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(Unavailable, match="hard links") as raised:
        save(Checkpoints(DirectoryStore(root), prefix=JOB), 1)
    assert raised.value.code == "store_without_create_once"
    assert leftovers(root) == []
