"""Keeps what a job publishes under a name, as long as its account has room."""

from collections.abc import Callable

from fabric.storage.archive import Archive
from fabric.storage.layout import artifact_key
from fabric.storage.quota import ArchiveQuota


def publisher(archive: Archive, account_id: str, job_id: str, *, quota: ArchiveQuota) -> Callable[[str, bytes], None]:
    """What keeps what a job publishes under a name, as long as there is room."""

    def publish(name: str, data: bytes) -> None:
        quota.check_artifact(job_id, name)
        with quota.room(len(data)):
            archive.put(artifact_key(account_id, job_id, name=name), data)

    return publish
