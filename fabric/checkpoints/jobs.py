"""The checkpoints of a job in the archive."""

from pathlib import Path

from fabric.checkpoints.checkpoints import Checkpoints
from fabric.checkpoints.near import near_store
from fabric.checkpoints.stores import store_of
from fabric.storage.archive import Archive
from fabric.storage.layout import checkpoint_prefix
from fabric.storage.quota import ArchiveQuota


def checkpoints_in(
    archive: Archive,
    account_id: str,
    job_id: str,
    *,
    epoch: int = 0,
    attempt_id: str = "",
    stage_dir: str = "",
    quota: ArchiveQuota | None = None,
) -> Checkpoints:
    """A job's checkpoints: nothing of another account's can be read or written through them."""
    return Checkpoints(
        store_of(archive),
        prefix=checkpoint_prefix(account_id, job_id),
        tenant=f"jobs/{account_id}",
        epoch=epoch,
        attempt_id=attempt_id,
        local=near_store(Path(stage_dir)) if stage_dir else None,
        quota=quota,
    )
