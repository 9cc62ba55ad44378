"""How a job's code is set up, run and judged, in the runner's process.

A function is called in the runner. A Python script runs there too (`__main__`, its own arguments and directory), so that
`ray.init()` in it finds the connection that is already there and all it starts is captured into the lease. It runs in a
thread: `signal.signal` is accepted but only a SIGTERM handler is ever called, when the fabric asks the job to stop. Any
other command is a child process in its own process group; it gets SIGTERM, and says by exit code 75 that it has saved.
"""

import errno
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec
import stamina

from fabric import context
from fabric.adapters import function_call
from fabric.adapters.archive import Archive
from fabric.adapters.cluster_settings import result_key
from fabric.adapters.error_text import error_text, shortened
from fabric.adapters.inheritance import withheld
from fabric.adapters.job_output import end_of_log, logged
from fabric.adapters.kept_folder import FOLDER_VARIABLE, KeptFolder, quiet_s
from fabric.adapters.payload import Payload, read_payload
from fabric.adapters.private_folder import WORK, make_private, rooms_of
from fabric.adapters.processes import LEASE_VARIABLE
from fabric.adapters.results import keep_result
from fabric.adapters.working_folder import forget_modules, unpacked
from fabric.errors import FabricError, InvalidRequest, Unavailable
from fabric.gate.events import LeaseOutcome
from fabric.gate.instructions import Lease
from fabric.results import pack_error

EXIT_SAVED: Final = 75
LOSS_EVERY_VARIABLE: Final = "FABRIC_LOSS_EVERY_S"
"""How often, as the gate has learned, what isn't saved is lost here: a session takes snapshots accordingly."""
_PYTHONS: Final = ("python", "python3", "python3.11")
"""`python train.py` runs in the runner itself, like `train.py`, so that the script has its `fabric.context`."""
T = TypeVar("T")
_ERROR_LINES: Final = 12
ENDED_UNSAVED: Final = "it ended when it was asked to stop, and saved nothing"
KEEP_TRYING_S: Final = 60.0
"""How long what a job leaves is offered to a storage that is away: it was paid for, and is lost otherwise."""
_TRY_EVERY_S: Final = 5.0
_TRY_ONCE_S: Final = 0.01
_OURS: Final = ("fabric.", "training.")


class Save(NamedTuple):
    """A checkpoint that became durable."""

    step: int
    write_us: int
    size: int = 0
    restore_us: int = 0
    """From the attempt's start to its first step; 0 = not known."""


class JobEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How one rank ended. What comes from its own process never says LOST: who is to blame for that the platform saw itself,
    or nobody (see `testimony`).
    """

    outcome: LeaseOutcome
    error: str = ""
    result_ref: str = ""
    saves: tuple[Save, ...] = ()
    step: int = 0
    """The last one it reported."""
    again: bool = False
    """It ended by itself to be queued anew: exit code 75 while nobody had asked it to stop."""
    reusable: bool = False
    """Whether the process may run another function of the same account."""
    used_ray: bool = False
    """Whether the job started Ray tasks or actors: then its placement group can't be kept."""


class Wishes(Protocol):
    """Whoever hands the fabric's wishes on to a job's own process."""

    def ask_to_stop(self, reason: str, *, seconds_left: float, save: bool) -> None:
        """Save, and end."""

    def ask_to_save(self) -> None:
        """Save, and go on."""


@dataclass(slots=True)
class Stage:
    """Everything one rank of one attempt runs with."""

    lease: Lease
    folder: Path
    log_file: Path
    archive: Archive
    context: context.Context
    master: tuple[str, int]
    local: tuple[int, int] = (0, 1)
    """Which of how many ranks it is that share this node's devices."""
    process: "subprocess.Popen[bytes] | None" = None
    sigterm: list[Callable[[int, Any], object]] = field(default_factory=list)
    told: frozenset[str] = frozenset()
    """The variables in which the fabric tells the job who it is."""
    fork: "Wishes | None" = None
    """The process of its own that the job runs in, if it does."""

    def ask_to_save(self) -> None:
        """Set the job's flag."""
        self.context.ask_to_save()
        if self.fork is not None:
            self.fork.ask_to_save()

    def ask_to_stop(self, reason: str, *, seconds_left: float, save: bool) -> None:
        """Set the job's flag, and signal whoever listens to signals instead."""
        self.context.ask_to_stop(reason, seconds_left=seconds_left, save=save)
        if self.fork is not None:
            self.fork.ask_to_stop(reason, seconds_left=seconds_left, save=save)
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        for handler in self.sigterm:
            threading.Thread(target=handler, args=(signal.SIGTERM, None), daemon=True).start()


def perform(stage: Stage) -> JobEnd:
    """Run the job to its end; never raises."""
    try:
        make_private(stage.folder)
    except (FabricError, OSError) as error:
        return JobEnd(outcome=LeaseOutcome.INTERRUPTED, error=f"it has no folder to run in: {error}")
    with logged(stage.log_file):
        try:
            return _performed(stage)
        finally:
            forget_modules(stage.folder)


def _performed(stage: Stage) -> JobEnd:
    try:
        payload = read_payload(stage.lease.payload)
        given = frozenset({*payload.env, *payload.runtime_env.get("env_vars", {})})
        with _as_job(stage, payload.env, given=given):
            return _call(stage, payload) if payload.is_call else _run(stage, payload, given=given)
    except context.Saved:
        return JobEnd(outcome=LeaseOutcome.SAVED)
    except SystemExit as exit_:
        return _exited(stage, exit_.code)
    except FabricError as error:
        if _is_refusal_of_ours(error):
            # Nobody else saw it: that is worth another try, and no refund.
            return JobEnd(outcome=LeaseOutcome.INTERRUPTED, error=f"{error.code}: {error.message}")
        return JobEnd(outcome=LeaseOutcome.FAILED, error=f"{error.code}: {error.message}")
    except BaseException as error:  # noqa: BLE001  # a job may raise anything, and none of it may end the runner
        told = error_text(error)
        sys.stderr.write(f"{told}\n")
        return JobEnd(outcome=LeaseOutcome.FAILED, error=shortened(told), result_ref=_kept_error(stage, error))


def _call(stage: Stage, payload: Payload) -> JobEnd:
    result = function_call.call(payload, stage.archive, folder=stage.folder / WORK)
    if stage.context.rank != 0:
        return JobEnd(outcome=LeaseOutcome.SUCCEEDED)
    packed = function_call.packed(result)
    key = result_key(stage.lease.account_id, stage.lease.job_id)
    result_ref = _patiently(stage, lambda: keep_result(stage.archive, key, packed))
    return JobEnd(outcome=LeaseOutcome.SUCCEEDED, result_ref=result_ref)


def _patiently(stage: Stage, keep: Callable[[], T]) -> T:
    """Keep what the job leaves, as often as it takes: for a minute, or for as long as the job may stay."""
    left_s = stage.context.deadline_s_left()
    try_s = max(KEEP_TRYING_S if left_s is None else min(left_s, KEEP_TRYING_S), _TRY_ONCE_S)
    for attempt in stamina.retry_context(on=Unavailable, attempts=None, timeout=try_s, wait_max=_TRY_EVERY_S):
        with attempt:
            return keep()
    raise AssertionError("a retry ends with an answer or an error")


def _is_refusal_of_ours(error: FabricError) -> bool:
    """Whether the fabric's own code, rather than the job's, has said that something is away: the frame that raised it tells."""
    if not isinstance(error, Unavailable) or (frame := error.__traceback__) is None:
        return False
    while frame.tb_next is not None:
        frame = frame.tb_next
    return str(frame.tb_frame.f_globals.get("__name__", "")).startswith(_OURS)


def _run(stage: Stage, payload: Payload, *, given: Container[str]) -> JobEnd:
    folder = unpacked(stage.archive, payload.working_dir_blob, into=stage.folder / WORK)
    if not payload.entrypoint:
        raise InvalidRequest("the payload names neither a function nor an entry point", code="payload_invalid")
    command = (payload.entrypoint,) if isinstance(payload.entrypoint, str) else payload.entrypoint
    command += payload.args
    if len(command) > 1 and command[0] in _PYTHONS and command[1].endswith(".py"):
        command = command[1:]
    kept = KeptFolder(stage.folder / "checkpoint", stage.context, quiet_s=quiet_s())
    kept.open()
    os.environ[FOLDER_VARIABLE] = str(kept.folder)
    end = JobEnd(outcome=LeaseOutcome.FAILED)
    try:
        run = _run_python if command[0].endswith(".py") else partial(_run_command, given=given)
        end = run(stage, folder, command)
    except SystemExit as exit_:
        end = _exited(stage, exit_.code)
    finally:
        failed = end.outcome not in (LeaseOutcome.SAVED, LeaseOutcome.SUCCEEDED)
        lost = _closed(stage, kept, commit=not failed and stage.context.save_wanted)
    return end if failed or lost is None else lost


def _closed(stage: Stage, kept: KeptFolder, *, commit: bool) -> JobEnd | None:
    """Commit what the job left, if it ended well. What can't be committed for what it is has failed; where the store refuses
    it, it is worth another try.
    """
    try:
        _patiently(stage, lambda: kept.close(commit=commit))
    except (FabricError, OSError) as error:
        refused = isinstance(error, FabricError) and _is_refusal_of_ours(error)
        outcome = LeaseOutcome.INTERRUPTED if refused else LeaseOutcome.FAILED
        return JobEnd(outcome=outcome, error=f"what it left could not be committed: {error}")
    return None


def _run_python(stage: Stage, folder: Path, command: tuple[str, ...]) -> JobEnd:
    script = folder / command[0]
    if not script.is_file():
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise InvalidRequest(
            f"{command[0]} is not in the working directory, which has: {there}", code="script_not_found"
        )
    os.chdir(folder)
    sys.argv = list(command)
    sys.path.insert(0, str(script.parent))
    with _signals_noted(stage):
        runpy.run_path(str(script), run_name="__main__")
    return JobEnd(outcome=LeaseOutcome.SUCCEEDED)


def _run_command(stage: Stage, folder: Path, command: tuple[str, ...], *, given: Container[str]) -> JobEnd:
    kept_back = {name for name in withheld(os.environ, apart=True) if name not in given and name not in stage.told}
    environment = {name: value for name, value in os.environ.items() if name not in kept_back}
    try:
        stage.process = subprocess.Popen(  # noqa: S603  # the job itself
            command, cwd=folder, start_new_session=True, env=environment
        )
    except OSError as error:
        raise _unrunnable(folder, command[0], error) from None
    if stage.context.stop_requested:
        os.killpg(stage.process.pid, signal.SIGTERM)
    return _exited(stage, stage.process.wait())


def _unrunnable(folder: Path, word: str, error: OSError) -> InvalidRequest:
    """Why a command could not be started, and what helps."""
    about, name = f"{word} can't be run: {error.strerror}", word.removeprefix("./")
    if isinstance(error, PermissionError):
        remedy = f"run `chmod +x {name}`, or name what runs it, such as `sh {name}`, and submit it again"
        return InvalidRequest(f"{about}: {remedy}", code="not_executable")
    if error.errno == errno.ENOEXEC:
        remedy = "begin it with a line such as `#!/bin/sh`, or name what runs it"
        return InvalidRequest(f"{about}: {remedy}", code="not_executable")
    remedy = f": write ./{name}" if "/" not in word and (folder / word).is_file() else ""
    return InvalidRequest(f"{about}{remedy}", code="script_not_found")


def _exited(stage: Stage, code: object) -> JobEnd:
    """What an exit code means. One that was asked to stop and let the signal end it has not failed, but saved nothing."""
    if code in (0, None):
        return JobEnd(outcome=LeaseOutcome.SUCCEEDED)
    if code == EXIT_SAVED:
        return JobEnd(outcome=LeaseOutcome.SAVED, again=not stage.context.stop_requested)
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM) and stage.context.stop_requested:
        return JobEnd(outcome=LeaseOutcome.INTERRUPTED, error=ENDED_UNSAVED)
    said = f"exit code {code}" if isinstance(code, int) else str(code)
    tail = end_of_log(stage.log_file, _ERROR_LINES)
    return JobEnd(outcome=LeaseOutcome.FAILED, error=f"{said}\n{tail}".rstrip())


def _kept_error(stage: Stage, error: BaseException) -> str:
    """Where the exception itself is kept, if there is room for it."""
    key = result_key(stage.lease.account_id, stage.lease.job_id)
    try:
        return keep_result(stage.archive, key, pack_error(error))
    except Exception:  # noqa: BLE001  # one that can't be kept is told as text
        return ""


@contextmanager
def _as_job(stage: Stage, variables: Mapping[str, str], *, given: Container[str]) -> Iterator[None]:
    """The job's environment, context, directory and arguments; afterwards the process is as it was."""
    lease, here = stage.lease, stage.context
    environment, folder, arguments, path = dict(os.environ), _where(), sys.argv, list(sys.path)
    temporary = tempfile.tempdir
    try:
        for name in withheld(environment, apart=False):
            if name not in given:
                del os.environ[name]
        work, home, tmp = rooms_of(stage.folder)
        os.environ.update({"HOME": str(home), "TMPDIR": str(tmp)})
        tempfile.tempdir = None  # it remembers what TMPDIR was
        os.chdir(work)
        os.environ.update(variables)
        if lease.loss_every_us is not None and LOSS_EVERY_VARIABLE not in variables:
            os.environ[LOSS_EVERY_VARIABLE] = f"{lease.loss_every_us / 1_000_000:.6g}"
        told = {
            LEASE_VARIABLE: lease.lease_id,
            "FABRIC_JOB_ID": lease.job_id,
            "FABRIC_ATTEMPT": str(lease.epoch),
            "FABRIC_DEVICES": ",".join(here.devices),
            "FABRIC_ACCELERATOR": here.accelerator,
            "FABRIC_MIX": lease.mix,
            "RANK": str(here.rank),
            "WORLD_SIZE": str(here.world_size),
            "LOCAL_RANK": str(stage.local[0]),
            "LOCAL_WORLD_SIZE": str(stage.local[1]),
            "MASTER_ADDR": stage.master[0],
            "MASTER_PORT": str(stage.master[1]),
            "PYTHONUNBUFFERED": "1",
        }
        stage.told = frozenset({*told, LOSS_EVERY_VARIABLE, FOLDER_VARIABLE})
        os.environ.update(told)
        if here.rank == 0 and lease.epoch > 1:
            here.begin()
        context.enter(here)
        yield
    finally:
        context.enter(None)
        _restore(environment)
        os.chdir(folder)
        sys.argv, sys.path[:] = arguments, path
        tempfile.tempdir = temporary


def _where() -> str:
    """The directory that the process is in; the root if that is no more."""
    try:
        return os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return "/"


def _restore(environment: Mapping[str, str]) -> None:
    """Only what differs: each variable that is set costs as much as reading ten."""
    now = dict(os.environ)
    for name in now.keys() - environment.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in environment.items() if now.get(name) != value})


@contextmanager
def _signals_noted(stage: Stage) -> Iterator[None]:
    """Lets a script set signal handlers although it isn't on the main thread."""
    original = signal.signal

    def noted(number: int, handler: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            return original(number, handler)
        if number == signal.SIGTERM and callable(handler):
            stage.sigterm[:] = [handler]
        return signal.SIG_DFL

    signal.signal = noted  # type: ignore[assignment]  # looser than the original, for handlers it ignores
    try:
        yield
    finally:
        signal.signal = original
