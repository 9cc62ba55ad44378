"""A real bucket server that is stopped and started under the doors: told at once meanwhile, in use again by itself."""

import asyncio
import io

import boto3
import pytest
from moto.server import ThreadedMotoServer

from fabric import outage
from fabric.api import archive_watch
from fabric.api.gate_client import GateClient
from fabric.errors import Unavailable
from fabric.storage import s3
from fabric.storage.archive import DirectoryArchive, S3Archive
from fabric.storage.s3 import Place
from fabric.storage.s3_clients import S3Credentials
from fabric.system.ports import free_port


class Store:
    """A bucket's server, at the same address each time."""

    def __init__(self):
        self.port = free_port()
        self.server = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()

    def stop(self):
        if self.server is not None:
            self.server.stop()
            self.server = None


@pytest.fixture
def store():
    store = Store()
    store.start()
    yield store
    store.stop()


class Counted(S3Archive):
    """A real archive that tells how often it was asked."""

    asked = 0

    def get_up_to(self, key, limit_bytes):
        self.asked += 1
        return super().get_up_to(key, limit_bytes)


@pytest.fixture
def archive(store, monkeypatch):
    monkeypatch.setattr(s3, "MAX_ATTEMPTS", 2)
    monkeypatch.setattr(archive_watch, "SLOW_S", 0.0)
    monkeypatch.setattr(outage, "PAUSE_S", 0.3)
    key = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=store.url, **key).create_bucket(Bucket="outages")
    credentials = S3Credentials(access_key_id="a", secret_access_key="b")
    return Counted(Place(bucket="outages", endpoint_url=store.url, region="us-east-1", credentials=credentials))


async def test_while_a_bucket_is_away_one_call_tries_it_and_the_others_are_told_at_once(store, archive):
    port = GateClient(None, archive=archive)
    await port.put_blob("jobs/a", b"kept")
    store.stop()
    with pytest.raises(Unavailable):
        await port.small_blob("jobs/a", limit_bytes=99)
    before = archive.asked
    refused = await asyncio.gather(
        *(port.small_blob("jobs/a", limit_bytes=99) for _ in range(50)), return_exceptions=True
    )
    assert archive.asked <= before + 1, "nobody waits for what is known to be away"
    assert {type(each) for each in refused} == {Unavailable}
    assert any("the archive is away since" in each.message for each in refused)
    store.start()
    async with asyncio.timeout(60):
        while True:
            try:
                found = await port.small_blob("jobs/a", limit_bytes=99)
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                break
    assert found == b"kept"
    assert await asyncio.gather(*(port.small_blob("jobs/a", limit_bytes=99) for _ in range(5))) == [b"kept"] * 5


@pytest.mark.parametrize("call", ["get", "get_up_to", "fetch", "exists", "delete"])
def test_a_disk_that_fails_under_an_archive_is_unavailable(tmp_path, monkeypatch, call):
    archive = DirectoryArchive(tmp_path)
    archive.put("jobs/a", b"kept")

    def fails(*_, **__):
        raise OSError(5, "Input/output error")

    for name in ("open", "is_file", "unlink"):
        monkeypatch.setattr(type(tmp_path), name, fails)
    more = {"get_up_to": (9,), "fetch": (io.BytesIO(),)}.get(call, ())
    with pytest.raises(Unavailable, match="Input/output error") as failed:
        getattr(archive, call)("jobs/a", *more)
    assert failed.value.code == "archive_failed"
