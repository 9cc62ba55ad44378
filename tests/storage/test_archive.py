"""The archive keeps bytes whole, in a directory and in a bucket alike."""

import pickle
import random
import tempfile
from dataclasses import replace

import boto3
import pytest
import stamina
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import InvalidRequest, NotFound, Unavailable
from fabric.storage.archive import PART_BYTES, DirectoryArchive, S3Archive
from fabric.storage.keys import checked_key
from fabric.storage.s3 import Place
from fabric.storage.s3_clients import S3Credentials
from tests.checkpoints.faulty_bucket import DROP_BEFORE, INTERNAL, TRUNCATE, FaultyBucket


@pytest.fixture(params=["directory", "bucket"])
def archive(request, tmp_path, monkeypatch):
    if request.param == "directory":
        return DirectoryArchive(tmp_path / "archive")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    url = request.getfixturevalue("moto_url")
    bucket = f"bucket-{abs(hash(request.node.name)) % 10**8}"
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket=bucket)
    return S3Archive(Place(bucket=bucket, prefix="fabric/x", endpoint_url=url))


def test_what_was_put_is_got_again(archive):
    archive.put("jobs/a/1", b"one")
    archive.put("jobs/a/1", b"two")
    assert archive.get("jobs/a/1") == b"two"
    assert archive.exists("jobs/a/1")


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, 2 * PART_BYTES + 17])
def test_a_value_of_any_size_comes_into_a_file_behind_what_is_there(archive, size):
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    archive.put("k", data)
    with tempfile.SpooledTemporaryFile(PART_BYTES) as file:
        file.write(b"before")
        archive.fetch("k", file)
        file.seek(0)
        assert file.read() == b"before" + data


def test_what_is_larger_than_wanted_is_not_read(archive):
    archive.put("k", b"12345")
    assert archive.get_up_to("k", 5) == b"12345"
    assert archive.get_up_to("k", 4) is None


def test_what_is_not_there_is_not_found(archive):
    assert not archive.exists("jobs/none")
    with pytest.raises(NotFound) as raised:
        archive.get("jobs/none")
    assert raised.value.code == "blob_not_found"
    with pytest.raises(NotFound):
        archive.get_up_to("jobs/none", 10)
    with tempfile.TemporaryFile() as file, pytest.raises(NotFound):
        archive.fetch("jobs/none", file)


def test_a_folder_is_listed_in_order_and_without_its_neighbours(archive):
    for key in ("a/2", "a/1", "a/b/3", "ab/4"):
        archive.put(key, b"")
    assert archive.list("a") == ["a/1", "a/2", "a/b/3"]
    assert archive.list("") == ["a/1", "a/2", "a/b/3", "ab/4"]
    assert archive.list("zzz") == []


def test_what_was_deleted_is_gone_and_deleting_again_is_fine(archive):
    archive.put("k", b"v")
    archive.delete("k")
    archive.delete("k")
    assert not archive.exists("k")


def test_an_archive_crosses_processes_and_opens_the_same_store(archive):
    archive.put("k", b"v")
    assert pickle.loads(pickle.dumps(archive)).get("k") == b"v"


def test_credentials_travel_with_the_archive_and_are_never_shown(monkeypatch, moto_url):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    own = S3Credentials(access_key_id="AKIA", secret_access_key="very-secret", session_token="as-secret")
    archive = S3Archive(Place(bucket="travels", endpoint_url=moto_url, region="us-east-1", credentials=own))
    archive._bucket.client.create_bucket(Bucket="travels")
    archive.put("k", b"v")
    there = pickle.loads(pickle.dumps(archive))
    assert there.get("k") == b"v"
    assert there._bucket.client._request_signer._credentials.secret_key == "very-secret"
    assert "secret" not in repr(own).replace("secret_access_key", "") + repr(archive)


def test_everything_is_encrypted_at_rest_when_asked(archive):
    if isinstance(archive, DirectoryArchive):
        return
    place = replace(archive.place, sse="aws:kms", kms_key_id="alias/mine")
    sealed = pickle.loads(pickle.dumps(S3Archive(place)))
    sealed.put("k", b"v")
    about = sealed._bucket.client.head_object(**sealed._bucket.at("k"))
    assert about["ServerSideEncryption"] == "aws:kms"
    assert about["SSEKMSKeyId"].endswith("alias/mine")


@pytest.mark.parametrize(
    "key", ["", "/", "a//b", "../x", "a/../../x", "a/.hidden", "a\0b", "a b", "é", "x" * 1000, "a/"]
)
def test_no_key_leaves_the_archive(archive, key):
    with pytest.raises(InvalidRequest):
        archive.put(key, b"")
    with pytest.raises(InvalidRequest):
        archive.get(key)


@given(st.text(alphabet="ab./\\~-_ \0", max_size=12))
def test_a_key_that_passes_stays_below_the_root(tmp_path_factory, key):
    root = tmp_path_factory.getbasetemp() / "root"
    try:
        checked_key(key)
    except InvalidRequest:
        return
    assert (root / key).resolve().is_relative_to(root.resolve())
    assert key == (root / key).relative_to(root).as_posix()


def test_a_damaged_copy_in_a_bucket_is_never_handed_out(archive):
    if isinstance(archive, DirectoryArchive):
        return
    archive.put("k", b"value")
    client, at = archive._bucket.client, archive._bucket.at("k")
    client.put_object(**at, Body=b"valuE", Metadata=client.head_object(**at)["Metadata"])
    with stamina.set_testing(True, attempts=3), pytest.raises(Unavailable) as raised:
        archive.get("k")
    assert raised.value.code == "archive_damaged"


@pytest.mark.parametrize("fault", [TRUNCATE, DROP_BEFORE, INTERNAL])
def test_a_download_that_breaks_off_is_begun_again_where_it_began(archive, moto_url, fault):
    if isinstance(archive, DirectoryArchive):
        return
    data, faults = random.Random(1).randbytes(2 * PART_BYTES + 17), [fault, fault]
    archive.put("k", data)
    proxy = FaultyBucket(moto_url, fault_of=lambda request: faults.pop() if faults else None)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"before")
            S3Archive(replace(archive.place, endpoint_url=proxy.url)).fetch("k", file)
            file.seek(0)
            assert file.read() == b"before" + data
        assert len(proxy.seen) == 3
    finally:
        proxy.stop()


def test_a_bucket_that_is_not_there_is_no_missing_value(archive):
    if isinstance(archive, DirectoryArchive):
        return
    with pytest.raises(Unavailable, match="NoSuchBucket") as raised:
        S3Archive(replace(archive.place, bucket="nowhere-at-all")).get("k")
    assert raised.value.code == "archive_refused"


def test_a_directory_that_can_not_be_written_says_so_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable) as raised:
        DirectoryArchive(tmp_path).put("file/below", b"x")
    assert raised.value.code == "archive_failed"


def test_a_bucket_that_can_not_be_reached_is_unavailable(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with stamina.set_testing(True, attempts=3), pytest.raises(Unavailable):
        S3Archive(Place(bucket="nowhere", endpoint_url="http://127.0.0.1:9")).get("k")


def test_a_part_of_a_value_is_read_alone_and_beyond_its_end_is_nothing(archive):
    archive.put("k", b"0123456789")
    assert archive.get_range("k", 3, 4) == b"3456"
    assert archive.get_range("k", 8, 4) == b"89"
    assert archive.get_range("k", 10, 4) == archive.get_range("k", 99, 4) == b""
    with pytest.raises(NotFound):
        archive.get_range("none", 0, 4)


def test_what_is_kept_is_told_with_its_size_and_since_when(archive):
    assert archive.kept("blobs/a") == ()
    archive.put("blobs/a/1", b"123")
    archive.put("blobs/a/2", b"")
    archive.put("blobs/b/1", b"x")
    kept = archive.kept("blobs/a")
    assert [(each.key, each.bytes) for each in kept] == [("blobs/a/1", 3), ("blobs/a/2", 0)]
    assert all(each.at_us > 1_700_000_000_000_000 for each in kept)
