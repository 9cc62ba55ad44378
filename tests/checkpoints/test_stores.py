"""What a store promises, it keeps, whether it is a directory or a bucket."""

import pickle
import threading

import pytest

from fabric.checkpoints import DirectoryStore, S3Store, store_of
from fabric.errors import InvalidConfig, InvalidRequest, NotFound
from fabric.storage.archive import DirectoryArchive, S3Archive
from fabric.storage.s3 import Place
from tests.checkpoints.conftest import OWN
from tests.checkpoints.stepped import MemoryStore


@pytest.fixture(params=["directory", "bucket", "memory"])
def any_store(request, tmp_path):
    """The stand-in as well: what is claimed with it must be claimed of it."""
    match request.param:
        case "directory":
            return DirectoryStore(tmp_path / "store")
        case "bucket":
            return request.getfixturevalue("s3")
        case _:
            return MemoryStore()


def test_bytes_are_kept_replaced_listed_copied_and_forgotten(any_store, tmp_path):
    store = any_store
    assert store.put("a/b/1", b"one")
    assert store.put("a/b/1", memoryview(b"uno"))
    assert store.put("a/c", bytearray(b"c"))
    assert store.put("ab", b"")
    assert (store.get("a/b/1"), b"".join(store.chunks("a/b/1")), store.get("ab")) == (b"uno", b"uno", b"")
    assert store.keys("a") == ["a/b/1", "a/c"]
    assert store.keys("none") == []
    assert [name for name in store.folders("a") if name != "c"] == ["b"]
    assert store.folders("none") == []
    store.copy("a/b/1", "x/y")
    store.delete("a/b/1")
    store.delete("a/b/1")
    assert store.get("x/y") == b"uno"
    store.delete_folder("a")
    store.delete_folder("a")
    store.tidy("x")
    assert store.keys("a") == []
    for missing in (lambda: store.get("a/c"), lambda: list(store.chunks("a/c")), lambda: store.copy("a/c", "z")):
        with pytest.raises(NotFound):
            missing()


def test_of_many_that_create_one_key_exactly_one_does(any_store):
    gate, made = threading.Barrier(8), []

    def create(number):
        gate.wait()
        if any_store.put("log/1", str(number).encode(), once=True):
            made.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert any_store.get("log/1") == str(made[0]).encode()


def test_a_file_is_told_by_the_digest_of_what_was_kept(store, tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert store.put_file("k", tmp_path / "f") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        3,
    )
    assert store.get("k") == b"abc"


def test_a_store_crosses_processes_and_shows_no_secret(store):
    store.put("k", b"v")
    assert pickle.loads(pickle.dumps(store)).get("k") == b"v"
    assert "secret" not in repr(store)


@pytest.mark.parametrize("key", ["", "/", "a//b", "../x", "a/../../x", "a/.hidden", "a b", "x" * 1000])
def test_no_key_leaves_the_store(store, key):
    for call in (store.get, store.delete, store.delete_folder, lambda bad: store.put(bad, b""), store.keys):
        with pytest.raises(InvalidRequest):
            call(key)


def test_a_store_is_where_its_archive_is(tmp_path, s3, moto_url, bucket):
    directory = DirectoryArchive(tmp_path / "archive")
    directory.put("k", b"v")
    assert store_of(directory).get("k") == b"v"
    archive = S3Archive(
        Place(bucket=bucket, prefix="p", endpoint_url=moto_url, region="us-east-1", credentials=OWN, sse="AES256")
    )
    archive.put("k", b"v")
    found = store_of(archive)
    assert isinstance(found, S3Store)
    found.put("l", b"w")
    assert (found.get("k"), archive.get("l")) == (b"v", b"w")
    with pytest.raises(InvalidConfig):
        store_of(object())
