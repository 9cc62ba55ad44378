"""A folder that a command saved into comes back as it was, or as an older one, and never as half of one."""

import os
import random
import socket

import pytest

from fabric.checkpoints import Checkpoints, DirectoryStore, Watch, commit_directory, restore_directory
from fabric.checkpoints.folders import PACK_BYTES, SMALL_BYTES
from fabric.checkpoints.listing import entries_of
from fabric.errors import CheckpointDamaged, Conflict, InvalidRequest

JOB = "jobs/acme/j-1/checkpoint"


@pytest.fixture
def folder(tmp_path):
    """One of every kind of thing that is kept."""
    folder = tmp_path / "ckpt"
    (folder / "empty").mkdir(parents=True)
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "large.bin").write_bytes(random.Random(1).randbytes(SMALL_BYTES + 1))
    (folder / "small").write_bytes(b"small")
    (folder / "nothing").write_bytes(b"")
    (folder / "deep" / "er" / "a name, ünïcode\n").write_bytes(b"x")
    (folder / os.fsdecode(b"no \xff utf-8")).write_bytes(b"y")
    (folder / ".hidden").write_bytes(b"z")
    (folder / "run.sh").write_bytes(b"#!")
    (folder / "run.sh").chmod(0o750)
    os.utime(folder / "small", ns=(10**18 + 7, 10**18 + 7))
    (folder / "latest").symlink_to("deep/er")
    (folder / "deep" / "up").symlink_to("../small")
    return folder


@pytest.fixture
def job(tmp_path):
    store = DirectoryStore(tmp_path / "store")
    return lambda epoch=1: Checkpoints(store, prefix=JOB, epoch=epoch)


def told(folder):
    """Everything in a folder, to compare."""
    entries, left_out = entries_of(folder)
    contents = {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    return entries, left_out, contents


def test_a_folder_comes_back_as_it_was(folder, job, tmp_path):
    manifest = commit_directory(job(), folder, step=3)
    assert manifest.meta["directory"] == {"entries": 12, "left_out": []}
    assert restore_directory(job(2), tmp_path / "other").step == 3
    assert told(tmp_path / "other") == told(folder)
    assert (tmp_path / "other" / "latest").readlink().as_posix() == "deep/er"


def test_restoring_replaces_what_is_there_and_leaves_nothing_beside(folder, job, tmp_path):
    before = told(folder)
    commit_directory(job(), folder)
    (folder / "small").write_bytes(b"changed")
    (folder / "more").write_bytes(b"more")
    restore_directory(job(2), folder)
    assert told(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt", "store"]


def test_nothing_committed_restores_nothing_and_keeps_what_is_there(folder, job):
    assert restore_directory(job(), folder) is None
    assert (folder / "small").exists()


def test_an_empty_or_missing_folder_is_a_checkpoint_too(job, tmp_path):
    commit_directory(job(), tmp_path / "missing")
    restore_directory(job(2), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_many_small_files_share_shards(job, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(500):
        (folder / f"f{number}").write_bytes(b"x" * number)
    manifest = commit_directory(job(), folder)
    assert len(manifest.shards) == 2
    restore_directory(job(2), tmp_path / "out")
    assert told(tmp_path / "out") == told(folder)
    assert PACK_BYTES > SMALL_BYTES


def test_damage_falls_back_to_the_folder_before(folder, job, tmp_path):
    first = job()
    commit_directory(first, folder, step=1)
    before = told(folder)
    (folder / "small").write_bytes(b"newer")
    newest = commit_directory(first, folder, step=2)
    large = next(shard for shard in newest.shards if shard.name.startswith("file-"))
    first.store.put(f"{JOB}/{large.key}", b"damaged")
    again = job(2)
    assert restore_directory(again, tmp_path / "out").step == 1
    assert told(tmp_path / "out") == before
    first.store.delete_folder(f"{JOB}/data")
    with pytest.raises(CheckpointDamaged):
        restore_directory(again, tmp_path / "out")
    assert told(tmp_path / "out") == before, "what is there stays until something whole can replace it"


def test_what_leaves_the_folder_or_is_no_file_is_left_out_and_named(folder, job, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "deep" / "out").symlink_to("../../secret")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()  # noqa: PTH109
    os.chdir(folder)  # a socket's path is short
    listener.bind("socket")
    os.chdir(here)
    manifest = commit_directory(job(), folder)
    listener.close()
    assert manifest.meta["directory"]["left_out"] == ["deep/out", "out", "socket"]
    restore_directory(job(2), tmp_path / "restored")
    assert not (tmp_path / "restored" / "out").is_symlink()


def test_a_folder_that_is_never_quiet_is_not_committed_half(folder, job, monkeypatch):
    first = job()
    commit_directory(first, folder, step=1)
    put = type(first.begin(0)).put

    def writing(draft, name, data):
        with (folder / "large.bin").open("ab") as file:
            file.write(b"more")
        return put(draft, name, data)

    monkeypatch.setattr("fabric.checkpoints.draft.Draft.put", writing)
    with pytest.raises(Conflict, match="rename them") as raised:
        commit_directory(first, folder, step=2)
    assert raised.value.code == "directory_busy"
    monkeypatch.undo()
    assert first.newest().step == 1
    assert len(first.store.folders(f"{JOB}/data")) == 1


def test_a_checkpoint_that_is_not_of_a_folder_is_not_restored_as_one(job, tmp_path):
    first = job()
    draft = first.begin(1)
    draft.put("state", b"x")
    first.commit(draft)
    with pytest.raises(InvalidRequest) as raised:
        restore_directory(job(2), tmp_path / "out")
    assert raised.value.code == "not_a_directory_checkpoint"


@pytest.mark.parametrize("path", ["../out", "/etc/cron.d/x", "deep/../../out", "%2e%2e/out", "..%2Fout", ""])
def test_no_listing_leads_out_of_the_folder(job, tmp_path, path):
    first = job()
    draft = first.begin(1)
    draft.put("pack-000000", b"x")
    draft.put("listing", b'[{"path":"%s","kind":"file","mode":420,"size":1,"shard":"pack-000000"}]' % path.encode())
    first.commit(draft, meta={"directory": {}})
    with pytest.raises(CheckpointDamaged):
        restore_directory(job(2), tmp_path / "deep" / "folder")
    assert not (tmp_path / "out").exists()


def test_a_watch_asks_for_a_commit_once_when_a_changed_folder_is_quiet(folder, job):
    watch = Watch(folder, quiet_s=0.0)
    assert watch.is_due()
    watch.commit(job())
    assert not watch.is_due()
    assert not watch.changed()
    (folder / "small").write_bytes(b"changed")
    assert watch.is_due()
    patient = Watch(folder, quiet_s=1000.0)
    assert not patient.is_due()
    assert not Watch(folder / "missing", quiet_s=0.0).is_due()


def test_what_is_written_while_the_store_answers_is_not_taken_for_committed(folder, job, monkeypatch):
    watch, checkpoints = Watch(folder, quiet_s=0.0), job()
    commit = checkpoints.commit

    def slow(*args, **kwargs):
        made = commit(*args, **kwargs)
        (folder / "small").write_bytes(b"the last words")
        return made

    monkeypatch.setattr(checkpoints, "commit", slow)
    watch.commit(checkpoints)
    assert watch.changed()
    assert watch.is_due()
    monkeypatch.undo()
    watch.commit(checkpoints)
    assert not watch.changed()
    restored = Watch(folder)
    restored.restored()
    assert not restored.changed()
