"""Runs of frameworks that save a folder of their own: it is committed, restored and ended like any checkpoint.

Such a run is saved where its framework can, at the end of a step, not at any instant as with `training.session`.
"""

import os
import time
from pathlib import Path

from fabric import context
from fabric.checkpoints import commit_directory, restore_directory
from training.loop.stepping import is_out_of_memory
from training.progress import say
from training.state.stopping import stop_of
from training.state.vault import SessionNumber, checkpoints_of


class FolderRun:
    """One attempt of such a run. Rank 0 saves; the framework's own ranks agree among themselves."""

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        """Inside the fabric the job's checkpoints; outside those of `directory` or FABRIC_CHECKPOINT_DIR, or none."""
        self.job = context.current()
        self._number = SessionNumber(self.job, directory)
        self._checkpoints = checkpoints_of(self.job, directory, number=self._number.number)
        self._stop = stop_of(self.job, is_kept=self._checkpoints is not None)
        self.resumed_at = 0

    def restored(self, folder: Path) -> Path | None:
        """The newest checkpoint, as `folder`; None (and nothing done) at the very start."""
        if self._checkpoints is None:
            return None
        folder.parent.mkdir(parents=True, exist_ok=True)
        manifest = restore_directory(self._checkpoints, folder)
        if manifest is None:
            return None
        self.resumed_at = manifest.step
        return folder

    @property
    def is_kept(self) -> bool:
        """Whether there is a place for its state."""
        return self._checkpoints is not None

    @property
    def is_asked_to_stop(self) -> bool:
        return self._stop.wait(0)

    @property
    def is_save_wanted(self) -> bool:
        """Whether the framework should save at the end of this step."""
        return (self.is_asked_to_stop and self._stop.is_save_wanted()) or self._stop.is_snapshot_wanted()

    def keep(self, folder: Path, *, step: int) -> None:
        """Commit what the framework has saved; durable on return."""
        if self._checkpoints is None or self.job.rank != 0:
            return
        began = time.monotonic()
        commit_directory(self._checkpoints, folder, step=step)
        if self.is_asked_to_stop:
            say(f"{self._stop.reason} at step {step}: durable in {1000 * (time.monotonic() - began):.0f} ms")

    def leave_if_asked(self) -> None:
        """End the attempt here if the fabric wants it to end."""
        if self.is_asked_to_stop:
            raise self._stop.ending()

    def listen(self) -> None:
        """The framework has begun, and may have taken the signal for itself, to save elsewhere or to end as if all was done."""
        self._stop.listen()

    def close(self, error: BaseException | None = None) -> None:
        """The run is over. One that ran out of memory is gone on with by the next one in this process, as `session`'s are."""
        if error is not None and is_out_of_memory(error):
            self._number.give_back()
        self._stop.close()
