"""Where a model comes from: a folder on the node, a packed one in the archive, or what a job left there.

A job's model is what it published (`fabric.context.Context.publish`), else the newest checkpoint of a command that
exported into its kept folder (`fabric run`), in that folder or in `model` below it. Everything is verified while it is
read; nothing of a model is executed or unpickled.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fabric.checkpoints import is_of_folder, restore_directory
from fabric.checkpoints.jobs import checkpoints_in
from fabric.errors import InvalidRequest, NotFound
from fabric.storage.archive import Archive
from fabric.storage.layout import PUBLISH_IT, artifact_key
from serving.replica.model_data import check_data
from training.parcels import unpacked

ARCHIVE: Final = "archive:"
JOB: Final = "job:"
ARTIFACT: Final = "model"
"""Under which name a job publishes one."""
_COMPLETE: Final = "config.json"
"""Written last by whoever exports a model."""


def folder_of(source: str, archive: Archive | None, *, cache: Path, sought: str = _COMPLETE) -> Path:
    """The folder of a model, or of an adapter, on this node; what comes out of the archive is kept in `cache`.

    Args:
        source: a path, `archive:KEY`, or `job:ACCOUNT/ID`.
        archive: the fabric's; needed for the last two.
        cache: a folder of ours.
        sought: the file by which a folder is known for one, written last.

    Raises:
        InvalidRequest: there is no model in it (code `bad_source`), or one that somebody made holds code (`bad_model`).
        NotFound: there is nothing by that name.
    """
    if source.startswith(ARCHIVE):
        found = _from_archive(source.removeprefix(ARCHIVE), _needed(archive, source), cache)
    elif source.startswith(JOB):
        account_id, _, job_id = source.removeprefix(JOB).partition("/")
        found = _from_job(account_id, job_id, _needed(archive, source), cache)
    else:
        return _model_in(Path(source), source, sought)
    folder = _model_in(found, source, sought)
    return check_data(folder) if sought == _COMPLETE else folder  # of an adapter only data is taken over


def _from_archive(key: str, archive: Archive, cache: Path) -> Path:
    whole = archive.get(key)
    folder = cache / f"archive-{hashlib.sha256(whole).hexdigest()[:32]}"
    if not folder.exists():
        _made(folder, lambda fresh: unpacked(whole, fresh))
    return folder


def _from_job(account_id: str, job_id: str, archive: Archive, cache: Path) -> Path:
    published = artifact_key(account_id, job_id, name=ARTIFACT)
    if archive.exists(published):
        return _from_archive(published, archive, cache)
    checkpoints = checkpoints_in(archive, account_id, job_id)
    manifest = checkpoints.newest()
    if manifest is None:
        raise NotFound(f"job {job_id} has published no model and left no checkpoint: {PUBLISH_IT}", job=job_id)
    if not is_of_folder(manifest):
        raise InvalidRequest(
            f"job {job_id} has published no model, and what it saved at step {manifest.step} is no folder: {PUBLISH_IT}",
            code="no_model",
        )
    told = hashlib.sha256(repr(manifest).encode()).hexdigest()[:16]
    folder = cache / f"job-{job_id}-{told}"
    if not folder.exists():
        _made(folder, lambda fresh: restore_directory(checkpoints, fresh))
    return folder


def _made(folder: Path, fill: Callable[[Path], object]) -> None:
    """Fill a folder beside it, then give it its name: half a model has none."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(fresh)
        if not folder.exists():
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _model_in(folder: Path, source: str, sought: str) -> Path:
    for place in (folder, folder / "model"):
        if (place / sought).is_file():
            return place
    if sought != _COMPLETE:
        raise InvalidRequest(
            f"there is no adapter in {source}: it has no {sought}. Save one there with peft's save_pretrained",
            code="bad_source",
        )
    raise InvalidRequest(
        f"there is no model in {source}: it has no {_COMPLETE}. Export one there (training.export)",
        code="bad_source",
    )


def _needed(archive: Archive | None, source: str) -> Archive:
    if archive is None:
        raise InvalidRequest(f"{source} needs the fabric's archive, which is not known here", code="bad_source")
    return archive
