"""A folder that outlives its job's attempts: how any command in any language becomes preemptible.

The command finds its folder in `FABRIC_CHECKPOINT_DIR`, as it was committed last. It is committed whenever the command has
written to it and then been quiet for a moment, when a checkpoint is asked for, and after it has ended with exit code 75
("evicted, requeue me") or well. A command that is never quiet is made to stand still for a moment every now and then, at one
at which no file is half written: shortly before it is ended, too, and a command that can't save is ended at such a moment.
Between its end and the word on how it ended nothing is committed: what it was just writing may be half of something. Nor is
anything while the job's own code saves by itself.
What the folder holds in a file `step`, a whole number, counts as its step. Rank 0's folder is kept; the other ranks find a
copy. Knows neither Ray nor torch.
"""

import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

import structlog

from fabric.checkpoints import Checkpoints, DraftedCut, Watch, restore_directory
from fabric.checkpoints.listing import entries_of
from fabric.context import Context
from fabric.errors import Conflict, FabricError, InvalidRequest
from fabric.storage.quota import NO_ROOM
from fabric.worker.freeze import Rest, mapped_by, written_by

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
_NAME: Final = "checkpoint"
_STEP_FILE: Final = "step"
_STEP_BYTES_MAX: Final = 32
_log = structlog.get_logger(__name__)


class Processes(Protocol):
    """The command's."""

    @property
    def has_ended(self) -> bool:
        """Whether its first process has, whatever else still lives."""

    def processes(self) -> Collection[int]:
        """All that live."""

    def frozen(self) -> AbstractContextManager[Collection[int]]:
        """Inside, all of them stand still; `Conflict` if they don't in time."""


class KeptFolder:
    """One attempt's hold on its folder. `open` before the command runs, `close` when it has ended."""

    def __init__(self, folder: Path, context: Context, *, quiet_s: float = QUIET_S, every_s: float = EVERY_S) -> None:
        self.folder = folder
        self.command: Processes | None = None
        """Whoever writes to it; None before it has begun, and after its end."""
        self.saves_itself: Callable[[], bool] = lambda: False
        """Whether the job's own code keeps its state by itself: then what lies here is no state of the job's."""
        self.has_committed = False
        """Whether this attempt has committed it."""
        self._context = context
        self._watch = Watch(folder, quiet_s=quiet_s)
        self._every_s = every_s
        self._committed_at = time.monotonic()
        self._took_s = 0.0
        self._grace_s = 0.0
        self._rest = Rest()
        self._mapped: set[str] = set()
        """Files that the command has written to, perhaps, without any trace: by memory that it has mapped."""
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
        is_kept = self._context.rank == 0
        try:
            restore_directory(checkpoints, self.folder)
        except InvalidRequest as error:
            # The job's own code saved in another way: that is how it will load, and save, too.
            if error.code != "not_a_directory_checkpoint":
                raise
            is_kept = False
        self._watch.restored()
        if is_kept:
            checkpoints.yields = True
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
        if checkpoints is None or self._context.rank != 0 or not commit:
            return
        checkpoints.yields = False
        if self._watch.changed() or (self._mapped and entries_of(self.folder)[0]):
            began = time.monotonic()
            self._watch.commit(checkpoints, step=step_in(self.folder))
            self._mapped.clear()
            self._note(began)

    def is_at_rest(self, pids: Collection[int]) -> bool:
        """Whether no file in it is half written, as far as one can see from the files that these have open: for whoever ends
        a command, and asks again and again. The answer counts while they stand still.
        """
        return self._rest.is_at_rest(written_by(pids, self.folder), now=time.monotonic())

    def is_cut_off(self) -> bool:
        """Whether somebody was seen to end with a file of it open, just now."""
        return self._rest.is_cut_off(now=time.monotonic())

    def _keep(self, checkpoints: Checkpoints) -> None:
        while not self._closed.wait(_LOOK_S):
            try:
                self._look(checkpoints)
            except (FabricError, OSError) as error:
                if isinstance(error, FabricError) and error.code == "fenced":
                    # Another attempt has begun, or the job's own code saves. If it ends well, who closes finds out.
                    _log.info("folder_kept_no_more", why=error.message)
                    return
                # There will be another moment; whether the last one counts is said when the command has ended.
                _log.warning("folder_not_committed", why=str(error)[:500])
                if isinstance(error, FabricError) and error.code in NO_ROOM:
                    self._context.refuse(error.message)
                # Whatever is in its way isn't gone the next moment.
                self._closed.wait(_AGAIN_S if self._context.deadline_s_left() is None else _LOOK_S)

    def _look(self, checkpoints: Checkpoints) -> None:
        if (command := self.command) is None or command.has_ended or self.saves_itself():
            return
        wanted = self._context.save_requested and bool(entries_of(self.folder)[0])
        is_due = self._watch.is_due()
        if is_due and not self._note_mapped(command):
            began = time.monotonic()
            self._watch.commit_quiet(checkpoints, step=step_in(self.folder))
            self._note(began)
        elif is_due or wanted or (self._watch.is_unsaved and self._is_late()):
            self._cut(checkpoints, command)

    def _is_late(self) -> bool:
        """Whether what is never quiet is to be committed as it is."""
        since_s, left_s = time.monotonic() - self._committed_at, self._context.deadline_s_left()
        if left_s is None:
            return since_s >= max(self._every_s, _SHARE_OF_TIME * self._took_s)
        self._grace_s = max(self._grace_s, left_s)
        last_s = max(_LAST_S_MIN, _LAST_SHARE * self._grace_s, 2 * self._took_s)
        return self._context.save_wanted and left_s <= last_s and since_s >= max(_LAST_S_MIN, 2 * self._took_s)

    def _cut(self, checkpoints: Checkpoints, command: Processes) -> None:
        """Commit what the folder holds at one moment, at which no file is half written and the command lives."""
        began, beside, rest = time.monotonic(), self.folder.with_name(f".{self.folder.name}.cut"), Rest()
        shutil.rmtree(beside, ignore_errors=True)
        try:
            rest.is_at_rest(written_by(command.processes(), self.folder), now=began)
            self._note_mapped(command)
            drafted = self._watch.begin_cut(checkpoints, beside=beside, go_on=self._may_go_on(command))
            try:
                step = self._finished(drafted, command, rest)
                self._watch.commit_cut(drafted, step=step)
            except BaseException:
                drafted.abandon()
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        self._note(began)

    def _finished(self, drafted: DraftedCut, command: Processes, rest: Rest) -> int:
        """Finish the cut at a good moment; the step that the folder tells of then."""
        give_up_at = time.monotonic() + _WAIT_S
        self._note_mapped(command)
        while not self._closed.is_set() and not command.has_ended:
            # A look costs less than a freeze, and most of them find something half written.
            if rest.is_at_rest(written_by(command.processes(), self.folder), now=time.monotonic()):
                with command.frozen() as pids:
                    # Who has ended closes nothing: so it is asked last whether the command lives.
                    is_good = rest.is_at_rest(written_by(pids, self.folder), now=time.monotonic())
                    if is_good and not command.has_ended:
                        self._mapped |= mapped_by(pids, self.folder)
                        drafted.cut.finish(unsure=self._mapped)
                        return step_in(self.folder)
            if time.monotonic() > give_up_at:
                raise Conflict(
                    f"in {self.folder} files are half written all the time: write them beside their place and rename them",
                    code="directory_busy",
                )
            self._closed.wait(_BUSY_S)
        raise Conflict(f"{self.folder} is not committed as it was when its command ended", code="command_ended")

    def _note_mapped(self, command: Processes) -> bool:
        """Look which files are mapped; whether any is, or was."""
        self._mapped |= mapped_by(command.processes(), self.folder)
        return bool(self._mapped)

    def _may_go_on(self, command: Processes) -> Callable[[], bool]:
        """The notice doesn't wait until a large folder is copied, nor does the command's end: there is another commit then."""
        asked = self._context.deadline_s_left() is not None

        def may_go_on() -> bool:
            if self._closed.is_set() or command.has_ended:
                return False
            return asked or self._context.deadline_s_left() is None

        return may_go_on

    def _note(self, began: float) -> None:
        self._committed_at = time.monotonic()
        self._took_s = self._committed_at - began
        self.has_committed = True


def step_in(folder: Path) -> int:
    """What the file `step` says, 0 if there is none or it says something else."""
    try:
        with (folder / _STEP_FILE).open("rb") as file:
            said = file.read(_STEP_BYTES_MAX).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(said) if said.isdecimal() and len(said) < 19 else 0  # noqa: PLR2004  # of 64 bits for certain


def kept_folder(rank_folder: Path, context: Context, environment: Mapping[str, str]) -> KeptFolder:
    """That of a rank, with the times that the job's environment has for it."""
    return KeptFolder(
        rank_folder / _NAME,
        context,
        quiet_s=_seconds(environment, QUIET_VARIABLE, QUIET_S),
        every_s=_seconds(environment, EVERY_VARIABLE, EVERY_S),
    )


def _seconds(environment: Mapping[str, str], variable: str, otherwise: float) -> float:
    try:
        return max(0.0, float(environment.get(variable, otherwise)))
    except ValueError:
        return otherwise
