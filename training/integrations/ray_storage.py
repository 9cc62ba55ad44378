"""Where a run of Ray Train is kept, and under what name, so that the job's next attempt finds it: Ray goes on from what it finds
under a run's name by itself.

Ray's own defaults are a folder of the attempt's, which goes with it, and a name with the time in it. Plain decisions; knows no Ray.
"""

import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

from fabric.errors import InvalidRequest

SNAPSHOT: Final = "checkpoint_manager_snapshot.json"
"""Which of a run's checkpoints count, as Ray writes it after each."""
FOLDER: Final = "ray_train"
_DEFAULT_NAME: Final = re.compile(r"ray_train_run-\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CHECKPOINT: Final = "checkpoint_"
_ODD: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_NAME_CHARS_MAX: Final = 80


class Asked(NamedTuple):
    """What a script's `RunConfig` says."""

    storage_path: str
    name: str
    has_filesystem: bool = False
    """Whether a filesystem of the script's own is named."""


class Place(NamedTuple):
    """Where a run is kept."""

    storage_path: str
    name: str
    is_kept: bool
    """Whether the fabric keeps it with the job."""
    is_own: bool
    """Whether the fabric has chosen the folder, so that nothing else of the script's is in it."""
    note: str = ""
    """What the job's owner should know; "" = nothing."""

    @property
    def run(self) -> Path:
        """Its folder, if it is kept."""
        return Path(self.storage_path) / self.name


def place_of(
    asked: Asked, *, default: str, kept: Path, job_id: str, function: str, number: int, nodes: int = 1
) -> Place:
    """Where a run goes, and by what name.

    Args:
        asked: by the script.
        default: Ray's storage path where a script names none.
        kept: the job's folder that is kept; beside it lies what goes with the attempt.
        job_id: "" outside the fabric.
        function: the name of what it trains with.
        number: which run of this function it is in this process, counted from 1.
        nodes: of the job's Ray.

    Raises:
        InvalidRequest: `storage_not_shared`: several nodes would write into a folder that one of them has.
    """
    own_name = f"{_plain(function)}-{number}"
    has_name = _DEFAULT_NAME.fullmatch(asked.name) is None
    is_default = asked.storage_path == default and not asked.has_filesystem
    if not is_default and (asked.has_filesystem or _URI.match(asked.storage_path)):
        name = asked.name if has_name or not job_id else f"{_plain(job_id)}-{own_name}"
        return Place(asked.storage_path, name, is_kept=False, is_own=False)
    goes = bool(job_id) and _is_below(asked.storage_path, kept.parent)
    is_inside = _is_below(asked.storage_path, kept)
    if is_default or is_inside or goes:
        if nodes > 1:
            raise InvalidRequest(
                f"this job's Ray has {nodes} nodes, and RunConfig(storage_path) is a folder that one of them has: name a storage"
                ' that all of them reach, such as storage_path="s3://bucket/runs", or submit the job for one node',
                code="storage_not_shared",
            )
        path = asked.storage_path if is_inside else str(kept / FOLDER)
        note = (
            ""
            if is_default or is_inside
            else f"storage_path={asked.storage_path!r} goes with this attempt: {path} is used"
        )
        return Place(path, asked.name if has_name else own_name, is_kept=True, is_own=not is_inside, note=note)
    note = (
        f"storage_path={asked.storage_path!r} is not the job's: what is there is found again only if that is the same folder on"
        " every node; without storage_path, the fabric keeps it"
    )
    name = asked.name if has_name or not job_id else f"{_plain(job_id)}-{own_name}"
    return Place(asked.storage_path, name, is_kept=False, is_own=False, note=note if job_id else "")


def reports_in(run: Path) -> int:
    """How many reports a run has had when its last checkpoint came; 0 = there is none."""
    return int(_snapshot(run).get("current_report_index", 0))


def forget_unfinished(run: Path) -> None:
    """Delete checkpoints that were being written when their attempt ended: what is written by that name again is not mixed with
    them.
    """
    import shutil  # noqa: PLC0415  # seldom needed

    known = {each["checkpoint_dir_name"] for each in _snapshot(run).get("checkpoint_results", ())}
    latest = _snapshot(run).get("latest_checkpoint_result")
    known |= {latest["checkpoint_dir_name"]} if latest else set()
    if run.is_dir():
        for folder in run.iterdir():
            if folder.name.startswith(_CHECKPOINT) and folder.is_dir() and folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)


def renamed_from(run: Path, *, claimed: Collection[str]) -> list[str]:
    """Runs beside one that begins, which nobody in this process has gone on with: its script may name it anew each time."""
    if (run / SNAPSHOT).exists() or not run.parent.is_dir():
        return []
    return sorted(
        folder.name for folder in run.parent.iterdir() if folder.name not in claimed and (folder / SNAPSHOT).exists()
    )


def _snapshot(run: Path) -> dict[str, Any]:
    try:
        found = json.loads((run / SNAPSHOT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_below(path: str, folder: Path) -> bool:
    return os.path.isabs(path) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))  # noqa: PTH117


def _plain(name: str) -> str:
    return _ODD.sub("_", name).strip("_.")[:_NAME_CHARS_MAX] or "run"
