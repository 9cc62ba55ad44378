"""The archive keeps bytes whole, in a directory and in a bucket alike."""

import pickle
import socket

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from fabric.adapters.archive import DirectoryArchive, S3Archive, S3Credentials, checked_key
from fabric.errors import InvalidRequest, NotFound, Unavailable


@pytest.fixture(scope="module")
def moto_url():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


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
    return S3Archive(bucket, prefix="fabric/x", endpoint_url=url)


def test_what_was_put_is_got_again(archive):
    archive.put("jobs/a/1", b"one")
    archive.put("jobs/a/1", b"two")
    assert archive.get("jobs/a/1") == b"two"
    assert archive.exists("jobs/a/1")


def test_what_is_not_there_is_not_found(archive):
    assert not archive.exists("jobs/none")
    with pytest.raises(NotFound) as raised:
        archive.get("jobs/none")
    assert raised.value.code == "blob_not_found"


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
    archive = S3Archive("travels", endpoint_url=moto_url, region="us-east-1", credentials=own)
    archive._client.create_bucket(Bucket="travels")
    archive.put("k", b"v")
    there = pickle.loads(pickle.dumps(archive))
    assert there.get("k") == b"v"
    assert there._client._request_signer._credentials.secret_key == "very-secret"
    assert "secret" not in repr(own).replace("secret_access_key", "") + repr(archive)


def test_everything_is_encrypted_at_rest_when_asked(archive):
    if isinstance(archive, DirectoryArchive):
        return
    sealed = pickle.loads(pickle.dumps(S3Archive(**archive.place | {"sse": "aws:kms", "kms_key_id": "alias/mine"})))
    sealed.put("k", b"v")
    about = sealed._client.head_object(Bucket=sealed._bucket, Key="fabric/x/k")
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
    client = archive._client
    client.put_object(
        Bucket=archive._bucket,
        Key="fabric/x/k",
        Body=b"valuE",
        Metadata=client.head_object(Bucket=archive._bucket, Key="fabric/x/k")["Metadata"],
    )
    with pytest.raises(Unavailable) as raised:
        archive.get("k")
    assert raised.value.code == "archive_damaged"


def test_a_directory_that_can_not_be_written_says_so_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable) as raised:
        DirectoryArchive(tmp_path).put("file/below", b"x")
    assert raised.value.code == "archive_failed"


def test_a_bucket_that_can_not_be_reached_is_unavailable(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(Unavailable):
        S3Archive("nowhere", endpoint_url="http://127.0.0.1:9").get("k")
