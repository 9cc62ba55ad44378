"""Where what belongs to a job is kept: its keys in the archive, and its account's cache on a node."""

from pathlib import Path
from typing import Final

from fabric.system.private_folder import CACHE


def lease_info_key(account_id: str, job_id: str) -> str:
    """Where the archive keeps the `LeaseInfo` of a job of kind LEASE, as JSON."""
    return f"jobs/{account_id}/{job_id}/lease"


def result_key(account_id: str, job_id: str) -> str:
    """Where the archive keeps a function's pickled result (or exception)."""
    return f"jobs/{account_id}/{job_id}/result"


PUBLISH_IT: Final = (
    "have its code publish one, fabric.context.current().publish(training.parcels.packed(folder)), as training/demo/byte_lm.py"
    " does, and run it again"
)
"""The remedy where a job was to leave a model and left none."""


def artifact_key(account_id: str, job_id: str, *, name: str) -> str:
    """Where the archive keeps what a job published under a name."""
    return f"jobs/{account_id}/{job_id}/artifacts/{name}"


def log_key(account_id: str, job_id: str, *, epoch: int, rank: int) -> str:
    """Where the archive keeps a rank's log once its attempt has ended."""
    return f"jobs/{account_id}/{job_id}/logs/{epoch:06d}/{rank:06d}"


def checkpoint_prefix(account_id: str, job_id: str) -> str:
    """Below which the archive keeps what a job saved."""
    return f"jobs/{account_id}/{job_id}/checkpoint"


def cache_folder(work_dir: Path, account_id: str) -> Path:
    """Where a node keeps what an account's jobs read."""
    return work_dir / CACHE / account_id
