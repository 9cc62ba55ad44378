"""From a cluster file to the stores it names: the journal, the archive, the cluster's settings."""

from urllib.parse import quote

from fabric.adapters.archive import Archive, open_archive
from fabric.adapters.cluster_settings import ClusterSettings
from fabric.adapters.journal import Journal
from fabric.settings import ClusterConfig, DirectoryArchive, PostgresJournal, SqliteJournal


def open_journal_of(config: ClusterConfig) -> Journal:
    """The journal, not yet taken over."""
    match config.journal:
        case SqliteJournal(path=path):
            from fabric.adapters.journal_sqlite import SqliteJournal as Sqlite  # noqa: PLC0415 - only one is needed

            path.parent.mkdir(parents=True, exist_ok=True)
            return Sqlite(path)
        case PostgresJournal(dsn=dsn):
            from fabric.adapters.journal_postgres import PostgresJournal as Postgres  # noqa: PLC0415

            return Postgres(dsn.get_secret_value())


def open_archive_of(config: ClusterConfig) -> Archive:
    """The archive, opened where it is."""
    archive = config.archive
    if isinstance(archive, DirectoryArchive):
        return open_archive(str(archive.path))
    endpoint = f"?endpoint={quote(archive.endpoint, safe=':/')}" if archive.endpoint else ""
    return open_archive(f"s3://{archive.bucket}/{archive.prefix}{endpoint}")


def cluster_settings(config: ClusterConfig) -> ClusterSettings:
    """How the Ray side watches and meters."""
    return ClusterSettings(
        namespace=config.ray.namespace,
        tick_s=config.metering.tick_s,
        meter="cpu" if config.ray.mode == "local" else "auto",
        reconcile_s=0.0,
    )
