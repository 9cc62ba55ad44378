"""What a job leaves in its folder, or says that it has left, costs no more than there is, and is made nowhere else."""

import os
import stat

import msgspec
import pytest

from fabric.checkpoints import Checkpoints, DirectoryStore, commit_directory, folders, listing, restore_directory
from fabric.checkpoints.folders import PACK_BYTES
from fabric.checkpoints.listing import Entry, entries_of
from fabric.errors import CheckpointDamaged, InvalidRequest, Unavailable
from fabric.system.private_folder import clear

JOB = "jobs/acme/j-1/checkpoint"
MIB = 2**20


@pytest.fixture
def job(tmp_path):
    store = DirectoryStore(tmp_path / "store")
    return lambda epoch=1: Checkpoints(store, prefix=JOB, epoch=epoch)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


def sparse(path, size, *, data=()):
    with path.open("wb") as file:
        for offset, said in data:
            file.seek(offset)
            file.write(said)
        file.truncate(size)
    return path


def on_disk(path):
    return sum(each.lstat().st_blocks * 512 for each in path.rglob("*") if each.is_file())


def committed(checkpoints, entries, **shards):
    """A checkpoint of a folder whose listing says this, as whoever writes to the store can make it."""
    draft = checkpoints.begin(1)
    for name, data in shards.items():
        draft.put(name.replace("_", "-"), data)
    draft.put("listing", entries if isinstance(entries, bytes) else msgspec.json.encode(entries))
    return checkpoints.commit(draft, meta={"directory": {}})


def file(path, **more):
    return {"path": path, "kind": "file", "mode": 0o644, "size": 0, **more}


def test_a_sparse_file_is_kept_as_what_it_holds_and_comes_back_sparse(folder, job, tmp_path):
    size, words = (
        64 * 2**30,
        [(0, b"begin"), (3 * MIB, b"x" * 70_000), (40 * 2**30 + 5, b"middle"), (size_end := 64 * 2**30 - 3, b"end")],
    )
    sparse(folder / "huge", size, data=words)
    manifest = commit_directory(job(), folder, step=1)
    assert manifest.bytes < MIB
    assert on_disk(tmp_path / "store") < 2 * MIB
    assert restore_directory(job(2), tmp_path / "out").step == 1
    restored = tmp_path / "out" / "huge"
    assert restored.stat().st_size == size == size_end + 3
    assert on_disk(tmp_path / "out") < 2 * MIB
    with restored.open("rb") as again:
        for offset, said in words:
            again.seek(offset)
            assert again.read(len(said)) == said
        again.seek(MIB)
        assert again.read(MIB) == bytes(MIB)
    assert entries_of(folder)[0] == entries_of(tmp_path / "out")[0]


@pytest.mark.parametrize("size", [MIB, MIB + 1, 5 * MIB - 1])
def test_a_file_that_is_one_hole_comes_back_as_one(folder, job, tmp_path, size):
    sparse(folder / "hole", size)
    assert commit_directory(job(), folder).bytes < MIB
    restore_directory(job(2), tmp_path / "out")
    assert (tmp_path / "out" / "hole").read_bytes() == bytes(size)


def test_a_file_of_countless_holes_has_a_listing_with_an_end(folder, job, tmp_path, monkeypatch):
    monkeypatch.setattr("fabric.checkpoints.holes.GAP_BYTES", 4096)
    monkeypatch.setattr("fabric.checkpoints.holes.EXTENTS_MAX", 16)
    words = [(at * 64 * 1024, bytes([at % 250 + 1])) for at in range(1000)]
    sparse(folder / "holes", 1000 * 64 * 1024, data=words)
    manifest = commit_directory(job(), folder)
    placed = msgspec.json.decode(job(2).read(manifest, "listing"), type=list[Entry])
    assert 0 < len(placed[0].extents) <= 16
    restore_directory(job(2), tmp_path / "out")
    assert (tmp_path / "out" / "holes").read_bytes() == (folder / "holes").read_bytes()


def test_what_a_sparse_file_holds_is_kept_in_parts_that_fit_the_memory(folder, job, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "PACK_BYTES", 100_000)
    words = [(at * MIB, bytes([at + 1]) * 130_000) for at in range(5)]
    sparse(folder / "parts", 50 * MIB, data=words)
    manifest = commit_directory(job(), folder)
    assert max(shard.size for shard in manifest.shards) <= 100_000
    restore_directory(job(2), tmp_path / "out")
    assert (tmp_path / "out" / "parts").read_bytes() == (folder / "parts").read_bytes()


def test_a_folder_of_too_many_files_is_refused_with_the_number(folder, job, monkeypatch):
    monkeypatch.setattr(listing, "ENTRIES_MAX", 10)
    for number in range(11):
        (folder / str(number)).touch()
    with pytest.raises(InvalidRequest, match="at most 10") as raised:
        commit_directory(job(), folder)
    assert raised.value.code == "checkpoint_too_many_files"


def test_a_folder_deeper_than_python_can_call_is_kept_or_refused(folder, job):
    here = os.getcwd()  # noqa: PTH109
    os.chdir(folder)
    try:
        for _ in range(1200):
            os.mkdir("d")  # noqa: PTH102
            os.chdir("d")
    finally:
        os.chdir(here)
    try:
        with pytest.raises(InvalidRequest) as raised:
            commit_directory(job(), folder)
    finally:
        clear(folder)
    assert raised.value.code == "checkpoint_too_deep"
    assert not folder.exists()


HOSTILE = {
    "a file below a file": [file("a"), file("a/b")],
    "a file below a link": [{"path": "a", "kind": "link", "target": "."}, file("a/b")],
    "a file in no folder": [file("a/b")],
    "a name twice": [file("a"), file("a")],
    "a name in two spellings": [file("a"), file("%61")],
    "a link over a file": [file("a"), {"path": "a", "kind": "link", "target": "b"}],
    "a device": [{"path": "a", "kind": "device", "mode": 0o666}],
    "a pipe": [{"path": "a", "kind": "fifo", "mode": 0o666}],
    "a hard link": [{"path": "a", "kind": "hardlink", "target": "/etc/passwd"}],
    "a size below nothing": [file("a", size=-1, shard="pack-000000")],
    "more than the shard has": [file("a", size=5, shard="pack-000000")],
    "beyond the shard's end": [file("a", size=1, offset=4, shard="pack-000000")],
    "before its beginning": [file("a", size=1, offset=-1, shard="pack-000000")],
    "one shard for many files": [file(str(at), size=3, shard="pack-000000") for at in range(100)],
    "a shard that isn't there": [file("a", size=1, shard="pack-000001")],
    "the listing itself": [file("a", size=1, shard="listing")],
    "a large file of another size": [file("a", size=9, shard="file-00000000")],
    "a large file for two names": [file("a", size=4, shard="file-00000000"), file("b", size=4, shard="file-00000000")],
    "data before the file's beginning": [file("a", size=9, shard="sparse-00000000", extents=[[-1, 4]])],
    "data beyond the file's end": [file("a", size=9, shard="sparse-00000000", extents=[[6, 4]])],
    "data that lies on data": [file("a", size=9, shard="sparse-00000000", extents=[[0, 3], [2, 1]])],
    "data of which there is none": [file("a", size=99, shard="sparse-00000000", extents=[[0, 5]])],
    "more than any file may have": [file("a", size=2**70, shard="sparse-00000000", extents=[])],
    "a time out of time": [file("a", mtime_ns=10**30)],
    "a mode out of range": [file("a", mode=2**40)],
    "a name that is too long": [file("a" * 300)],
    "a name with a zero": [file("a%00b")],
    "a word in place of a size": b'[{"path":"a","kind":"file","size":"4"}]',
    "no list": b"{}",
    "not JSON": b"\xff",
}


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE)
def test_a_listing_that_no_folder_could_have_is_damaged_and_makes_nothing(entries, job, tmp_path):
    committed(job(), entries, pack_000000=b"1234", file_00000000=b"1234", sparse_00000000_000000=b"1234")
    (tmp_path / "work" / "out").mkdir(parents=True)
    with pytest.raises(CheckpointDamaged):
        restore_directory(job(2), tmp_path / "work" / "out")
    assert [path.name for path in (tmp_path / "work").rglob("*")] == ["out"]


def test_a_listing_of_more_files_than_may_be_kept_is_damaged(job, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "ENTRIES_MAX", 10)
    committed(job(), [file(str(number), shard="pack-000000") for number in range(11)], pack_000000=b"")
    with pytest.raises(CheckpointDamaged, match="11"):
        restore_directory(job(2), tmp_path / "out")


def test_no_part_is_read_into_memory_that_is_larger_than_parts_are(job, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "PACK_BYTES_MAX", 100)
    committed(job(), [file("a", size=1, shard="pack-000000")], pack_000000=bytes(101))
    with pytest.raises(CheckpointDamaged, match="101"):
        restore_directory(job(2), tmp_path / "out")
    monkeypatch.setattr(listing, "LISTING_BYTES_MAX", 10)
    committed(job(3), [file("a", shard="pack-000000")], pack_000000=b"")
    with pytest.raises(CheckpointDamaged, match="listing"):
        restore_directory(job(4), tmp_path / "out")


def test_a_checkpoint_of_more_than_the_disk_has_begins_nothing(job, tmp_path):
    made = committed(job(), [file("a", size=10**15, shard="file-00000000")], file_00000000=b"1234")
    claimed = [msgspec.structs.replace(s, size=10**15) if s.name.startswith("file") else s for s in made.shards]
    checkpoints = job(2)
    checkpoints.claim()
    checkpoints.log.append(
        lambda view: msgspec.structs.replace(
            made, slot=view.head + 1, shards=tuple(claimed), stands=(), writer=checkpoints.writer.id, epoch=2
        )
    )
    with pytest.raises(Unavailable, match="1000000000") as raised:
        restore_directory(job(3), tmp_path / "work" / "out")
    assert raised.value.code == "node_full"
    assert not (tmp_path / "work").exists() or list((tmp_path / "work").iterdir()) == []


def test_no_chain_of_links_leads_out_of_the_folder(job, tmp_path):
    """Each of them stays within by its words; together they lead above it."""
    entries = [
        *({"path": path, "kind": "folder", "mode": 0o755} for path in ("a", "a/b", "a/b/c", "top")),
        {"path": "a/b/c/x", "kind": "link", "target": "../../../top"},
        {"path": "out", "kind": "link", "target": "a/b/c/x/../../secret"},
        {"path": "around", "kind": "link", "target": "around"},
        {"path": "fine", "kind": "link", "target": "top"},
    ]
    (tmp_path / "secret").write_bytes(b"secret")
    committed(job(), entries)
    restore_directory(job(2), tmp_path / "folder")
    assert not (tmp_path / "folder" / "out").is_symlink()
    assert (tmp_path / "folder" / "fine").is_symlink()


def test_nobody_gets_more_rights_by_a_file_that_is_restored(job, tmp_path):
    committed(
        job(),
        [file("su", mode=0o6755, shard="pack-000000"), {"path": "dir", "kind": "folder", "mode": 0o2777}],
        pack_000000=b"",
    )
    restore_directory(job(2), tmp_path / "out")
    for name in ("su", "dir"):
        assert not (tmp_path / "out" / name).lstat().st_mode & (stat.S_ISUID | stat.S_ISGID)


def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(folder, job, monkeypatch):
    (folder / "a").write_bytes(b"a")
    found = entries_of(folder)
    (folder / "a").unlink()
    os.mkfifo(folder / "a")
    monkeypatch.setattr(folders, "entries_of", lambda _: found)
    with pytest.raises(Exception, match=r"busy|written to|changed"):
        commit_directory(job(), folder)


def test_packs_stay_below_what_a_reader_takes():
    assert PACK_BYTES + folders.SMALL_BYTES <= listing.PACK_BYTES_MAX
