"""A folder that outlives its job's attempts: how any command in any language becomes preemptible.

The command finds its folder in `FABRIC_CHECKPOINT_DIR`, as it was committed last. It is committed whenever the command has
written to it and then been quiet for a moment, when a checkpoint is asked for, and after it has ended with exit code 75
("evicted, requeue me") or well. What it holds in a file `step`, a whole number, counts as its step. Rank 0's folder is
kept; the other ranks find a copy. Knows neither Ray nor torch.
"""

import os
import threading
from pathlib import Path
from typing import Final

import structlog

from fabric.adapters.archive_quota import NO_ROOM
from fabric.checkpoints import Checkpoints, Watch, restore_directory
from fabric.checkpoints.listing import entries_of
from fabric.context import Context
from fabric.errors import FabricError, InvalidRequest

FOLDER_VARIABLE: Final = "FABRIC_CHECKPOINT_DIR"
QUIET_VARIABLE: Final = "FABRIC_CHECKPOINT_QUIET_S"
QUIET_S: Final = 2.0
"""For so long the command must not have written, or what is committed might be half of something."""
_LOOK_S: Final = 0.25
_AGAIN_S: Final = 5.0
_STEP_FILE: Final = "step"
_STEP_BYTES_MAX: Final = 32
_log = structlog.get_logger(__name__)


class KeptFolder:
    """One attempt's hold on its folder. `open` before the command runs, `close` when it has ended."""

    def __init__(self, folder: Path, context: Context, *, quiet_s: float = QUIET_S) -> None:
        self.folder = folder
        self._context = context
        self._watch = Watch(folder, quiet_s=quiet_s)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Make the folder what was committed last, and watch it from now on.

        Raises:
            CheckpointDamaged: there are checkpoints, and none of them is whole.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoints = self._context.checkpoints
        if checkpoints is None:
            return
        try:
            restore_directory(checkpoints, self.folder)
        except InvalidRequest as error:
            # The job's own code saved in another way: that is how it will load, too.
            if error.code != "not_a_directory_checkpoint":
                raise
        self._watch.restored()
        if self._context.rank == 0:
            self._thread = threading.Thread(target=self._keep, args=(checkpoints,), name="fabric-folder", daemon=True)
            self._thread.start()

    def close(self, *, commit: bool) -> None:
        """The command has ended. With `commit` what it left is made durable, unless it is already.

        Raises:
            Unavailable: the store refuses; what was committed before is untouched.
            Conflict: a newer attempt has begun, or something still writes to the folder.
            RateLimited, InvalidRequest: there is no room for it (see `NO_ROOM`).
        """
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        checkpoints = self._context.checkpoints
        if commit and checkpoints is not None and self._context.rank == 0 and self._watch.changed():
            self._commit(checkpoints)

    def _keep(self, checkpoints: Checkpoints) -> None:
        while not self._closed.wait(_LOOK_S):
            try:
                wanted = self._context.save_requested and bool(entries_of(self.folder)[0])
                if self._watch.is_due() or wanted:
                    self._commit(checkpoints)
            except (FabricError, OSError) as error:
                # There will be another moment; whether the last one counts is said when the command has ended.
                _log.warning("folder_not_committed", why=str(error)[:500])
                if isinstance(error, FabricError) and error.code in NO_ROOM:
                    self._context.refuse(error.message)
                self._closed.wait(_AGAIN_S)  # whatever is in its way isn't gone the next moment

    def _commit(self, checkpoints: Checkpoints) -> None:
        self._watch.commit(checkpoints, step=step_in(self.folder))


def step_in(folder: Path) -> int:
    """What the file `step` says, 0 if there is none or it says something else."""
    try:
        with (folder / _STEP_FILE).open("rb") as file:
            said = file.read(_STEP_BYTES_MAX).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(said) if said.isdecimal() and len(said) < 19 else 0  # noqa: PLR2004  # of 64 bits for certain


def quiet_s() -> float:
    """How long the command must be quiet, as the job's environment has it."""
    try:
        return max(0.0, float(os.environ.get(QUIET_VARIABLE, QUIET_S)))
    except ValueError:
        return QUIET_S
