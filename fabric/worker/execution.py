"""How a job's code is set up, run and judged.

A function is called in this process: the runner's, or one that is the job's alone where it uses Ray or torch. A script or a
command is a program of its own (`program`): its processes find the job's context over a socket, get a signal as the notice
to stop, and say by exit code 75 that they have saved. In processes of the job's own Ray is the lease's (`lease_ray`).
"""

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import stamina

from fabric import context
from fabric.context.host import ContextHost
from fabric.errors import FabricError, InvalidRequest, Unavailable
from fabric.gate.events import LeaseOutcome
from fabric.launched import meeting_of
from fabric.results import pack_error
from fabric.storage.layout import result_key
from fabric.storage.quota import NO_ROOM
from fabric.storage.results import keep_result
from fabric.system.inheritance import withheld
from fabric.system.private_folder import WORK, make_private, rooms_of
from fabric.system.processes import FABRIC_VARIABLE, LEASE_VARIABLE
from fabric.system.short_links import TEMPORARY, short_path
from fabric.worker import function_call
from fabric.worker.checkpoint_folder import FOLDER_VARIABLE, KeptFolder, kept_folder
from fabric.worker.error_text import error_text, shortened
from fabric.worker.exits import excused, exited, not_sent, saved, unless_ray
from fabric.worker.job_output import logged
from fabric.worker.job_signals import unblocked
from fabric.worker.lease_ray_settings import variables_for
from fabric.worker.own_environment import environment_now, put_back, withhold
from fabric.worker.payload import Payload, read_payload
from fabric.worker.program import Exit, Program
from fabric.worker.stage import JobEnd, Stage
from fabric.worker.stop_notice import SIGNAL_VARIABLE, shell_code, signal_number
from fabric.worker.working_folder import forget_modules, unpacked

LOSS_EVERY_VARIABLE: Final = "FABRIC_LOSS_EVERY_S"
"""How often, as the gate has learned, what isn't saved is lost here: a session takes snapshots accordingly."""
_PYTHONS: Final = ("python", "python3", "python3.11")
"""By these names a job means the interpreter that has its packages."""
T = TypeVar("T")
ENDED_COMMITTED: Final = "it ended when it was asked to stop; its folder was committed as it was then"
KEEP_TRYING_S: Final = 60.0
"""How long what a job leaves is offered to a storage that is away: it was paid for, and is lost otherwise."""
_TRY_EVERY_S: Final = 5.0
_TRY_ONCE_S: Final = 0.01
_OURS: Final = ("fabric.", "training.")


def perform(stage: Stage) -> JobEnd:
    """Run the job to its end; never raises."""
    try:
        make_private(stage.folder)
    except (FabricError, OSError) as error:
        return JobEnd(outcome=LeaseOutcome.INTERRUPTED, error=f"it has no folder to run in: {error}")
    with logged(stage.log_file), unblocked():
        try:
            return or_parked(stage, unless_ray(_performed(stage), stage))
        finally:
            forget_modules(stage.folder)


def or_parked(stage: Stage, end: JobEnd) -> JobEnd:
    """A job of which something was not saved for want of room is not over, however its attempt ended, unless that went well:
    it goes on from the checkpoint before, once there is room.
    """
    refused = stage.context.refused
    if not refused or end.outcome is LeaseOutcome.SUCCEEDED:
        return end
    error = end.error if refused in end.error else f"{end.error}\n{refused}".strip()
    return msgspec.structs.replace(end, outcome=LeaseOutcome.NO_ROOM, error=error, again=False)


def _performed(stage: Stage) -> JobEnd:
    try:
        payload = read_payload(stage.lease.payload)
        given = frozenset({*payload.env, *payload.runtime_env.get("env_vars", {})})
        with _as_job(stage, payload.env, given=given):
            return _call(stage, payload) if payload.is_call else _run(stage, payload, given=given)
    except context.Saved:
        return saved(stage)
    except SystemExit as exit_:
        return excused(exited(stage, exit_.code), asked=stage.context.stop_requested)
    except FabricError as error:
        return refused(error)
    except BaseException as error:  # noqa: BLE001  # a job may raise anything, and none of it may end the runner
        told = error_text(error)
        sys.stderr.write(f"{told}\n")
        kept = "" if stage.signalled else _kept_error(stage, error)
        helps = not_sent(str(error), stage.folder / WORK) if isinstance(error, FileNotFoundError) else ""
        said = f"{shortened(told)}\n{helps}".rstrip()
        end = JobEnd(outcome=LeaseOutcome.FAILED, error=said, result_ref=kept)
        return excused(end, asked=stage.signalled)


def refused(error: FabricError) -> JobEnd:
    """What an error means that speaks our language: where it is ours, nobody else saw it, and it is worth another try, and no
    refund.
    """
    outcome = LeaseOutcome.INTERRUPTED if _is_refusal_of_ours(error) else LeaseOutcome.FAILED
    return JobEnd(outcome=outcome, error=f"{error.code}: {error.message}")


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
    with suppress(Unavailable):
        return keep()
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
    script = _script_in(folder, command)
    kept = kept_folder(stage.folder, stage.context, os.environ)
    kept.open()
    os.environ[FOLDER_VARIABLE] = str(kept.folder)
    end = JobEnd(outcome=LeaseOutcome.FAILED)
    try:
        end = _run_program(stage, folder, script, command, kept, given=given)
    except SystemExit as exit_:
        end = exited(stage, exit_.code)
    finally:
        failed = end.outcome not in (LeaseOutcome.SAVED, LeaseOutcome.SUCCEEDED)
        own_saves = stage.host is not None and stage.host.saves > 0
        keeps = not own_saves and stage.context.save_wanted
        is_left = keeps and end.outcome is LeaseOutcome.INTERRUPTED and _is_whole(stage, end)
        lost = closed(stage, kept, commit=keeps and (is_left or not failed))
    if is_left and lost is None and kept.has_committed:
        return msgspec.structs.replace(end, error=ENDED_COMMITTED)
    return end if failed or lost is None else lost


def _is_whole(stage: Stage, end: JobEnd) -> bool:
    """Whether what a program has left that was ended by the notice is no half of something. Nothing writes to it any more."""
    if stage.program is None or not stage.context.stop_requested:
        return False
    stage.program.end_rest()
    return stage.program.is_whole and end.exit_code is not None and stage.program.was_ended(end.exit_code)


def _script_in(folder: Path, command: tuple[str, ...]) -> Path | None:
    """The Python script that is to be run; None if it is another command."""
    if not command[0].endswith(".py"):
        return None
    script = folder / command[0]
    if not script.is_file():
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise InvalidRequest(
            f"{command[0]} is not in the working directory, which has: {there}", code="script_not_found"
        )
    return script


def closed(stage: Stage, kept: KeptFolder, *, commit: bool) -> JobEnd | None:
    """Commit what the job left, if it ended well. What can't be committed for what it is has failed; where the store refuses
    it, it is worth another try.
    """
    try:
        _patiently(stage, lambda: kept.close(commit=commit))
    except (FabricError, OSError) as error:
        if isinstance(error, FabricError) and error.code in NO_ROOM:
            stage.context.refuse(error.message)
            return JobEnd(outcome=LeaseOutcome.NO_ROOM, error=f"what it left could not be committed: {error}")
        refused = isinstance(error, FabricError) and _is_refusal_of_ours(error)
        outcome = LeaseOutcome.INTERRUPTED if refused else LeaseOutcome.FAILED
        return JobEnd(outcome=outcome, error=f"what it left could not be committed: {error}")
    return None


def _run_program(
    stage: Stage,
    folder: Path,
    script: Path | None,
    command: tuple[str, ...],
    kept: KeptFolder,
    *,
    given: Container[str],
) -> JobEnd:
    """Run a script or a command as processes of its own."""
    stage.host = ContextHost(stage.context, stage.invitation, address=stage.folder / "context")
    with stage.host as host:
        environment = {**_environment_of(stage, command, is_script=script is not None, given=given), **host.variables}
        number = signal_number(environment.get(SIGNAL_VARIABLE, ""))
        program = Program(stage.context, host, number=number, is_at_rest=kept.is_at_rest, is_cut_off=kept.is_cut_off)
        if script is not None and stage.forks_scripts:
            program.fork(script, command, folder=folder, environment=environment)
        else:
            words = (sys.executable, *command) if script is not None else command
            try:
                program.execute(words, folder=folder, environment=environment)
            except OSError as error:
                raise _unrunnable(folder, words[0], error) from None
        kept.saves_itself = lambda: host.saves_itself
        stage.program = kept.command = program
        if stage.context.stop_requested:
            program.ask_to_stop()
        exit_ = program.wait()
        kept.command = None
        return _ended(stage, exit_)


def _environment_of(
    stage: Stage, command: tuple[str, ...], *, is_script: bool, given: Container[str]
) -> dict[str, str]:
    """What a program finds in its environment: `python` is the interpreter that has its packages."""
    taken = {name for name in withheld(os.environ, apart=not is_script) if name not in given and name not in stage.told}
    found = {name: value for name, value in os.environ.items() if name not in taken}
    own = str(Path(sys.executable).parent)
    places = [place for place in found.get("PATH", os.defpath).split(os.pathsep) if place != own]
    nodes = stage.context.world_size if stage.local[1] == 1 else 1
    found = {**meeting_of(stage.master, node=stage.context.rank, nodes=nodes, command=command, given=given), **found}
    made = {"PYTHONIOENCODING": "utf-8:backslashreplace", **found, "PATH": os.pathsep.join([own, *places])}
    return variables_for(stage.own_ray, made, given=given) if stage.own_ray is not None else made


def _ended(stage: Stage, exit_: Exit) -> JobEnd:
    """What it means how a program ended."""
    code, asked = exit_.code, stage.context.stop_requested
    if asked and exit_.has_saved:
        return JobEnd(outcome=LeaseOutcome.SAVED, exit_code=shell_code(code))
    end = exited(stage, code)
    if asked and end.outcome is LeaseOutcome.FAILED:
        end = excused(msgspec.structs.replace(end, error=f"exit code {shell_code(code)}"), asked=True)
    return msgspec.structs.replace(end, exit_code=shell_code(code))


_NOT_THERE: Final = (
    "it is neither a command of the node's nor a file that was sent: send its folder with --working-dir (working_dir=), or name"
    " the package that has it with --pip (runtime_env=)"
)


def _unrunnable(folder: Path, word: str, error: OSError) -> InvalidRequest:
    """Why a command could not be started, and what helps."""
    about, name = f"{word} can't be run: {error.strerror}", word.removeprefix("./")
    if isinstance(error, PermissionError):
        remedy = f"run `chmod +x {name}`, or name what runs it, such as `sh {name}`, and submit it again"
        return InvalidRequest(f"{about}: {remedy}", code="not_executable")
    if error.errno == errno.ENOEXEC:
        remedy = "begin it with a line such as `#!/bin/sh`, or name what runs it"
        return InvalidRequest(f"{about}: {remedy}", code="not_executable")
    remedy = f"write ./{name}" if "/" not in word and (folder / word).is_file() else _NOT_THERE
    return InvalidRequest(f"{about}: {remedy}", code="script_not_found")


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
    environment, folder, arguments, path = environment_now(), _where(), sys.argv, list(sys.path)
    temporary, fabric = tempfile.tempdir, os.environ.get(FABRIC_VARIABLE, "")
    try:
        withhold(given)
        work, home, _ = rooms_of(stage.folder)
        os.environ.update({"HOME": str(home), "TMPDIR": str(short_path(stage.folder, TEMPORARY))})
        tempfile.tempdir = None  # it remembers what TMPDIR was
        os.chdir(work)
        os.environ.update(variables)
        if lease.loss_every_us is not None and LOSS_EVERY_VARIABLE not in variables:
            os.environ[LOSS_EVERY_VARIABLE] = f"{lease.loss_every_us / 1_000_000:.6g}"
        told = {
            LEASE_VARIABLE: lease.lease_id,
            FABRIC_VARIABLE: fabric,
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
        if stage.kept_folder is not None:
            told[FOLDER_VARIABLE] = str(stage.kept_folder)
        stage.told = frozenset({*told, LOSS_EVERY_VARIABLE, FOLDER_VARIABLE})
        os.environ.update(told)
        if here.owns_process and stage.own_ray is not None:
            _be_in_own_ray(variables_for(stage.own_ray, os.environ, given=given))
        if here.rank == 0 and lease.epoch > 1 and stage.kept_folder is None:
            here.begin()
        context.enter(here)
        yield
    finally:
        context.enter(None)
        put_back(environment)
        os.chdir(folder)
        sys.argv, sys.path[:] = arguments, path
        tempfile.tempdir = temporary


def _be_in_own_ray(variables: Mapping[str, str]) -> None:
    """In a process that is the job's alone: what Ray is from now on is the lease's."""
    from fabric.worker.lease_ray import install  # noqa: PLC0415  # it imports Ray

    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
    install()


def _where() -> str:
    """The directory that the process is in; the root if that is no more."""
    try:
        return os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return "/"
