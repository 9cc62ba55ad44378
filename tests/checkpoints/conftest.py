"""A store of each kind, and the bucket server that the tests of buckets share."""

import itertools

import boto3
import pytest

from fabric.checkpoints import Checkpoints, DirectoryStore, S3Store
from fabric.storage.s3 import Place
from fabric.storage.s3_clients import S3Credentials

JOB = "jobs/acme/j-1/checkpoint"
OWN = S3Credentials(access_key_id="AKIA", secret_access_key="secret")
_numbers = itertools.count()


@pytest.fixture
def bucket(moto_url):
    name = f"bucket-{next(_numbers)}"
    boto3.client(
        "s3", endpoint_url=moto_url, region_name="us-east-1", aws_access_key_id="AKIA", aws_secret_access_key="secret"
    ).create_bucket(Bucket=name)
    return name


@pytest.fixture
def s3(moto_url, bucket):
    return S3Store(Place(bucket=bucket, prefix="fabric/x", endpoint_url=moto_url, region="us-east-1", credentials=OWN))


@pytest.fixture(params=["directory", "bucket"])
def store(request, tmp_path):
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    return request.getfixturevalue("s3")


@pytest.fixture
def attempt(store):
    """An attempt of the job, by epoch."""

    def begin(epoch=1, **options):
        return Checkpoints(store, prefix=JOB, epoch=epoch, **options)

    return begin


@pytest.fixture
def save():
    """Commit one checkpoint."""

    def save(checkpoints, step, **shards):
        draft = checkpoints.begin(step)
        for name, data in (shards or {"state": f"state {step}".encode()}).items():
            draft.put(name, data)
        return checkpoints.commit(draft)

    return save
