"""Checkpoints near by: a node's memory (or NVMe), in which shards are staged before they are sent to the store.

A process that is killed while it sends leaves its checkpoint here, whole; the job's next attempt on this node makes it
durable (`Checkpoints.recover`), and reads from here what it would otherwise fetch. Memory is shared, so a share of it is
left to others: what doesn't fit goes to the store at once. What nobody came back for is forgotten after a day.
"""

import os
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from fabric.checkpoints.directory import DirectoryStore
from fabric.errors import Unavailable

LEAVE_FREE: Final = 0.5
"""The share of the node's memory (or disk) that is never used for staging."""
FORGET_S: Final = 86_400.0


def near_store(folder: Path) -> DirectoryStore:
    """The store in this folder, readable by its owner alone; what is older than a day in it goes.

    Raises:
        Unavailable: somebody else has made the folder (`stage_dir_not_ours`).
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise Unavailable(
            f"{folder} was made by somebody else, or others may read it: remove it, or stage checkpoints elsewhere"
            " (`staging: {path: ...}` in the cluster file)",
            code="stage_dir_not_ours",
        )
    forget_old(folder)
    return DirectoryStore(folder, durable=False, leave_free=LEAVE_FREE)


def forget_old(folder: Path, *, older_than_s: float = FORGET_S) -> None:
    """Delete drafts that were not written to for so long."""
    before = time.time() - older_than_s
    for draft in folder.glob("**/data/*"):
        with suppress(OSError):
            if not draft.is_symlink() and draft.is_dir() and _written_at(draft) < before:
                shutil.rmtree(draft, ignore_errors=True)


def _written_at(folder: Path) -> float:
    return max((path.lstat().st_mtime for path in folder.rglob("*")), default=folder.lstat().st_mtime)
