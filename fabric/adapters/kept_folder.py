"""A folder that outlives its job's attempts: how any command in any language becomes preemptible.

The command finds its folder in `FABRIC_CHECKPOINT_DIR`, as it was committed last. It is committed whenever the command has
written to it and then been quiet for a moment, when a checkpoint is asked for, and after it has ended with exit code 75
("evicted, requeue me") or well. A command that is never quiet is made to stand still for a moment every now and then, at one
at which no file is half written: shortly before it is ended, too, and a command that can't save is ended at such a moment.
What the folder holds in a file `step`, a whole number, counts as its step. Rank 0's folder is kept; the other ranks find a
copy. Knows neither Ray nor torch.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

import structlog

from fabric.adapters.archive_quota import NO_ROOM
from fabric.adapters.freeze import Rest, written_by
from fabric.checkpoints import Checkpoints, Cut, Watch, restore_directory
from fabric.checkpoints.listing import entries_of
from fabric.context import Context
from fabric.errors import Conflict, FabricError, InvalidRequest, Unavailable

FOLDER_VARIABLE: Final = "FABRIC_CHECKPOINT_DIR"
QUIET_VARIABLE: Final = "FABRIC_CHECKPOINT_QUIET_S"
QUIET_S: Final = 2.0
"""For so long the command must not have written, or what is committed might be half of something."""
EVERY_VARIABLE: Final = "FABRIC_CHECKPOINT_EVERY_S"
EVERY_S: Final = 30.0
"""So often what is never quiet is committed, unless that takes more than one part in `_SHARE_OF_TIME` of the time."""
_SHARE_OF_TIME: Final = 10
_LOOK_S: Final = 0.25
_AGAIN_S: Final = 5.0
_BUSY_S: Final = 0.005
_LAST_SHARE: Final = 1 / 4
"""In the last part of its grace a command that goes on is committed as it is,"""
_LAST_S_MIN: Final = 1.5
"""or so long before its end."""
_WAIT_S: Final = 6.0
"""How long a moment is waited for at which no file is half written."""
_STEP_FILE: Final = "step"
_STEP_BYTES_MAX: Final = 32
_log = structlog.get_logger(__name__)


class Processes(Protocol):
    """The command's."""

    def processes(self) -> Collection[int]:
        """All that live."""

    def frozen(self) -> AbstractContextManager[Collection[int]]:
        """Inside, all of them stand still."""


class KeptFolder:
    """One attempt's hold on its folder. `open` before the command runs, `close` when it has ended."""

    def __init__(self, folder: Path, context: Context, *, quiet_s: float = QUIET_S, every_s: float = EVERY_S) -> None:
        self.folder = folder
        self.command: Processes | None = None
        """Whoever writes to it; None while nobody does."""
        self.has_committed = False
        """Whether its newest commit was made after the command was asked to stop."""
        self._context = context
        self._watch = Watch(folder, quiet_s=quiet_s)
        self._every_s = every_s
        self._committed_at = time.monotonic()
        self._took_s = 0.0
        self._grace_s = 0.0
        self._rest = Rest()
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

    def is_at_rest(self, pids: Collection[int]) -> bool:
        """Whether no file in it is half written, as far as one can see: for whoever ends a command that can't save, and asks
        again and again while its processes stand still.
        """
        return self._rest.is_at_rest(written_by(pids, self.folder), now=time.monotonic())

    def _keep(self, checkpoints: Checkpoints) -> None:
        while not self._closed.wait(_LOOK_S):
            try:
                self._look(checkpoints)
            except (FabricError, OSError) as error:
                # There will be another moment; whether the last one counts is said when the command has ended.
                _log.warning("folder_not_committed", why=str(error)[:500])
                if isinstance(error, FabricError) and error.code in NO_ROOM:
                    self._context.refuse(error.message)
                # Whatever is in its way isn't gone the next moment.
                self._closed.wait(_AGAIN_S if self._context.deadline_s_left() is None else _LOOK_S)

    def _look(self, checkpoints: Checkpoints) -> None:
        wanted = self._context.save_requested and bool(entries_of(self.folder)[0])
        if self._watch.is_due():
            self._commit(checkpoints)
        elif wanted or (self._watch.is_unsaved and self._is_late()):
            self._cut(checkpoints)

    def _is_late(self) -> bool:
        """Whether what is never quiet is to be committed as it is."""
        since_s, left_s = time.monotonic() - self._committed_at, self._context.deadline_s_left()
        if left_s is None:
            return since_s >= max(self._every_s, _SHARE_OF_TIME * self._took_s)
        self._grace_s = max(self._grace_s, left_s)
        last_s = max(_LAST_S_MIN, _LAST_SHARE * self._grace_s, 2 * self._took_s)
        return self._context.save_wanted and left_s <= last_s and since_s >= max(_LAST_S_MIN, 2 * self._took_s)

    def _commit(self, checkpoints: Checkpoints) -> None:
        began = time.monotonic()
        self._watch.commit(checkpoints, step=step_in(self.folder))
        self._note(began)

    def _cut(self, checkpoints: Checkpoints) -> None:
        """Commit what the folder holds at one moment, at which no file is half written."""
        if (command := self.command) is None:
            self._commit(checkpoints)
            return
        began, beside = time.monotonic(), self.folder.with_name(f".{self.folder.name}.cut")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            cut = Cut(self.folder, beside=beside, go_on=self._may_go_on())
            cut.copy()
            step = self._finished(cut, command)
            self._watch.commit_cut(checkpoints, cut, step=step)
        except Unavailable as error:
            if error.code != "node_full":
                raise
            with command.frozen():
                self._commit(checkpoints)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        self._note(began)

    def _finished(self, cut: Cut, command: Processes) -> int:
        """Finish the cut at a good moment; the step that the folder tells of then."""
        give_up_at = time.monotonic() + _WAIT_S
        rest = Rest()
        while True:
            # A look costs less than a freeze, and most of them find something half written.
            if rest.is_at_rest(written_by(command.processes(), self.folder), now=time.monotonic()):
                with command.frozen() as pids:
                    if rest.is_at_rest(written_by(pids, self.folder), now=time.monotonic()):
                        cut.finish()
                        return step_in(self.folder)
            if time.monotonic() > give_up_at or self._closed.wait(_BUSY_S):
                raise Conflict(
                    f"in {self.folder} files are half written all the time: write them beside their place and rename them",
                    code="directory_busy",
                )

    def _may_go_on(self) -> Callable[[], bool]:
        """The notice doesn't wait until a large folder is copied: there is another commit at the end."""
        asked = self._context.deadline_s_left() is not None
        return lambda: asked or self._context.deadline_s_left() is None

    def _note(self, began: float) -> None:
        self._committed_at = time.monotonic()
        self._took_s = self._committed_at - began
        self.has_committed = self._context.deadline_s_left() is not None


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
    return _seconds(QUIET_VARIABLE, QUIET_S)


def every_s() -> float:
    """How often what is never quiet is committed, as the job's environment has it."""
    return _seconds(EVERY_VARIABLE, EVERY_S)


def _seconds(variable: str, otherwise: float) -> float:
    try:
        return max(0.0, float(os.environ.get(variable, otherwise)))
    except ValueError:
        return otherwise
