"""From a cluster file to the stores it names: the journal, the archive, the cluster's settings."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir
from typing import Final

from pydantic import SecretStr

from fabric.cluster.settings import ClusterSettings
from fabric.config.cluster import ClusterConfig, PostgresJournal, SqliteJournal
from fabric.config.cluster import DirectoryArchive as ConfiguredDirectory
from fabric.config.cluster import S3Credentials as ConfiguredCredentials
from fabric.extras import needed
from fabric.journal.store import Journal
from fabric.payments.alipay import Alipay
from fabric.payments.by_hand import Operator
from fabric.payments.port import Takers
from fabric.storage.archive import Archive, DirectoryArchive, S3Archive
from fabric.storage.quota import ArchiveLimits
from fabric.storage.s3 import Place
from fabric.storage.s3_clients import S3Credentials
from fabric.system.disk_watch import DiskLimits

_KEPT_IN: Final = ("env", "shared-credentials-file", "config-file")
"""As boto3 calls them."""
ANSWERS_S: Final = 60.0
"""What whoever has time gives a bucket."""
SOON_S: Final = 15.0
"""What a door does, of which clients wait for an answer."""
_NAME_CHARS: Final = 16
"""Of a fabric's name, in paths: sockets of a job's libraries lie below, and a socket's path is short."""


def open_journal_of(config: ClusterConfig) -> Journal:
    """The journal, not yet taken over."""
    match config.journal:
        case SqliteJournal(path=path):
            from fabric.journal.sqlite import SqliteJournal as Sqlite  # noqa: PLC0415 - only one is needed

            path.parent.mkdir(parents=True, exist_ok=True)
            return Sqlite(path)
        case PostgresJournal(dsn=dsn):
            from fabric.journal.postgres import PostgresJournal as Postgres  # noqa: PLC0415

            return Postgres(dsn.get_secret_value())


def open_archive_of(config: ClusterConfig, *, answers_s: float = ANSWERS_S) -> Archive:
    """The archive. It pickles with its credentials: that is how agents and runners come by them.

    Args:
        config: the cluster file's.
        answers_s: how long a bucket may say nothing until a request to it counts as failed.
    """
    archive = config.archive
    if isinstance(archive, ConfiguredDirectory):
        return DirectoryArchive(archive.path)
    return S3Archive(
        Place(
            bucket=archive.bucket,
            prefix=archive.prefix,
            endpoint_url=archive.endpoint,
            region=archive.region,
            credentials=_revealed(archive.credentials),
            sse=archive.sse,
            kms_key_id=archive.kms_key_id,
            read_timeout_s=answers_s,
        )
    )


def with_bucket_keys(config: ClusterConfig) -> ClusterConfig:
    """The same, with the keys to its bucket that this process has from its own environment or files, where the file names
    none: the processes of a cluster of ours inherit neither. Keys that renew themselves are left to every process.
    """
    archive = config.archive
    if isinstance(archive, ConfiguredDirectory) or archive.credentials is not None:
        return config
    import boto3  # noqa: PLC0415  # takes 100 ms and is not needed with a directory

    found = boto3.Session().get_credentials()
    if found is None or found.method not in _KEPT_IN:
        return config
    keys = found.get_frozen_credentials()
    credentials = ConfiguredCredentials(
        access_key_id=SecretStr(str(keys.access_key)),
        secret_access_key=SecretStr(str(keys.secret_key)),
        session_token=SecretStr(keys.token) if keys.token else None,
    )
    return config.model_copy(update={"archive": archive.model_copy(update={"credentials": credentials})})


def _revealed(given: ConfiguredCredentials | None) -> S3Credentials | None:
    if given is None:
        return None
    return S3Credentials(
        access_key_id=given.access_key_id.get_secret_value(),
        secret_access_key=given.secret_access_key.get_secret_value(),
        session_token=given.session_token.get_secret_value() if given.session_token else None,
    )


def providers_of(config: ClusterConfig, *, now_us: Callable[[], int]) -> Takers | None:
    """Whoever takes payments here: the provider that customers pay at, and the operator; None = nobody but by hand.

    Raises:
        InvalidConfig: a key of it is none.
        InvalidRequest: its library is not installed (`needs_extra`).
    """
    by_hand = Operator(now_us)
    if config.payments == "stripe" and (stripe := config.stripe) is not None:
        needed("stripe", by="payments: stripe")
        from fabric.payments.stripe import Stripe  # noqa: PLC0415 - an extra

        return (
            Stripe(
                api_key=stripe.api_key.get_secret_value(),
                webhook_secret=stripe.webhook_secret.get_secret_value(),
                return_url=stripe.return_url,
                save_cards=stripe.save_cards,
                api=stripe.api,
            ),
            by_hand,
        )
    if config.payments == "alipay" and (alipay := config.alipay) is not None:
        return (
            Alipay(
                app_id=alipay.app_id,
                private_key=alipay.private_key.get_secret_value(),
                alipay_public_key=alipay.alipay_public_key.get_secret_value(),
                notify_url=alipay.notify_url,
                return_url=alipay.return_url,
                now_us=now_us,
                gateway=alipay.gateway,
            ),
            by_hand,
        )
    return None


def cluster_settings(config: ClusterConfig, *, key: bytes) -> ClusterSettings:
    """How the Ray side watches and meters. `key` is the fabric's."""
    return ClusterSettings(
        namespace=config.ray.namespace,
        key=key,
        own_cluster=config.ray.mode == "local",
        tick_s=config.metering.tick_s,
        meter="cpu" if config.ray.mode == "local" else "auto",
        limits=archive_limits(config),
        disk=DiskLimits(attempt_bytes=config.storage.attempt_bytes, attempt_files=config.storage.attempt_files),
        work_dir=work_dir_of(config),
        stage_dir=config.staging.path / work_dir_of(config).name if config.staging else None,
    )


def archive_limits(config: ClusterConfig) -> ArchiveLimits:
    """How much an account's jobs may keep."""
    storage = config.storage
    return ArchiveLimits(
        account_bytes=storage.account_bytes,
        account_values=storage.account_values,
        checkpoint_bytes=storage.checkpoint_bytes,
    )


def work_dir_of(config: ClusterConfig) -> Path:
    """Where this fabric's jobs keep their files while they run, on every node: no other fabric of a machine has the same."""
    whose = hashlib.sha256(f"{config.signing_key}\n{config.ray.namespace}".encode()).hexdigest()
    return Path(gettempdir()) / f"fabric-work-{config.name[:_NAME_CHARS]}-{whose[:8]}"
