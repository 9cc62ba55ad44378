"""The process that serves, from outside: started and waited for, and stopped."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import psutil

from fabric.config.cluster import load_cluster
from fabric.daemon import state_dir as at
from fabric.daemon.cleanup import end_remains, recorded
from fabric.daemon.state_dir import Running, Step
from fabric.errors import FabricError, NotFound, Unavailable, error_of
from fabric.logs import open_private

UP_TIMEOUT_S: Final = 180.0
DOWN_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.1
_INTERRUPTED: Final = ("it goes down: interrupt again to end jobs that are still saving", "ending at once")
_AT_ONCE: Final = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
"""A start that is interrupted doesn't wait half a minute for nodes on which nothing runs; Ray reads it when imported."""
_started: Final[list["subprocess.Popen[bytes]"]] = []
"""What this process has started and left running: it outlives us, which is no mistake."""


def up(
    config: Path | None = None,
    *,
    state_dir: Path | None = None,
    any_port: bool = False,
    replay_from: int | None = None,
    accept_time: bool = False,
    say: Callable[[str], None] = lambda _: None,
    timeout_s: float = UP_TIMEOUT_S,
) -> Running:
    """Start the fabric that a cluster file describes (by default: a local one) and wait until it answers.

    Interrupted, or too late, it takes what it has started down again.

    Args:
        config: the cluster file; None = the one-machine cluster that comes with the package.
        state_dir: where its state lives; None = `FABRIC_STATE_DIR`, or the user's state directory.
        any_port: listen at free ports instead of those in the file, beside another fabric on the same machine.
        replay_from: start the gate from its newest snapshot after at most so many entries of the journal; 0 = decide the
            whole journal again, which may take long. None = from the newest snapshot that leads to the journal's end.
        accept_time: the clock is right, however far it is ahead of the journal's last entry.
        say: is told each step of the start as it begins.
        timeout_s: how long a step of the start may take: a gate that decides its journal again says how far it is.

    Raises:
        InvalidConfig: the cluster file is wrong, or the state directory can't be written; nothing was started.
        Conflict: one is running in this state directory already, or the gate that runs there is of another fabric.
        Unavailable: it did not come up; the message names the log.
    """
    place = at.state_dir_of(state_dir)
    load_cluster(config, environ={**os.environ, "FABRIC_STATE_DIR": str(place)})
    at.prepare(place)
    if not at.becomes_free(place):
        raise at.already_up(place)
    _started[:] = [process for process in _started if process.poll() is None]
    at.run_file(place).unlink(missing_ok=True)
    options = [*_config_option(config), *(["--any-port"] if any_port else [])]
    options += ["--accept-time"] if accept_time else []
    if replay_from is not None:
        options += ["--replay-from", str(replay_from)]
    _serve(place, options, doing="come up", say=say, timeout_s=timeout_s)
    found = at.running(place)
    if found is None:
        raise _failed("the fabric ended as soon as it was up", place)
    return found


def down(
    state_dir: Path | None = None,
    *,
    gate: bool = False,
    config: Path | None = None,
    now: bool = False,
    say: Callable[[str], None] = lambda _: None,
    timeout_s: float = DOWN_TIMEOUT_S,
) -> Running | None:
    """Stop the fabric of this state directory in order.

    What runs on a local cluster is first asked to save and leave, within its grace; it goes on after the next `up`.
    Interrupted, this goes on; interrupted again, the fabric ends without waiting for jobs; a third time it is left alone.

    Where it has joined a Ray cluster, only the door closes: the gate and the jobs go on. With `gate` the gate is stopped
    too, even if no door is up here; jobs go on, and the next gate finds them.

    Args:
        state_dir: where its state lives, as for `up`.
        gate: stop the gate as well; an embedded cluster's always stops with it.
        config: the cluster file, where `gate` is asked for and no door is up.
        now: don't ask jobs to save: those that run go on from what they saved last.
        say: is told how far the end has come.
        timeout_s: how long an orderly end may take, beyond what jobs are given. Then it is killed, which loses nothing.

    Returns:
        What was up; None if only a gate was.

    Raises:
        NotFound: none is up there.
    """
    place = at.state_dir_of(state_dir)
    found = at.running(place)
    if found is not None:
        _end(psutil.Process(found.pid), place, now=now, say=say, timeout_s=timeout_s)
    elif recorded(place) is not None and not at.is_held(place):
        found = at.last_running(place)
    elif not (gate and config is not None):
        raise NotFound(f"no fabric is up in {place}: `fabric up` starts one", code="not_up")
    if gate and (found is None or found.joined):
        file = config or (Path(found.config) if found and found.config else None)
        _serve(place, ["--end-gate", *_config_option(file)], doing="stop its gate", timeout_s=UP_TIMEOUT_S)
    _clear_away(place)
    return found


def _config_option(config: Path | None) -> list[str]:
    return [] if config is None else ["--config", str(Path(config).absolute())]


def _serve(
    place: Path,
    options: Sequence[str],
    *,
    doing: str,
    timeout_s: float,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Start the process, and wait until it says that it is up, or has ended well."""
    descriptor, name = tempfile.mkstemp(prefix="start-", suffix=".jsonl", dir=place)
    os.close(descriptor)
    steps = Path(name)
    command = [sys.executable, "-m", "fabric.daemon", "--state-dir", str(place), "--steps", name, *options]
    with os.fdopen(open_private(place / "fabric.log"), "ab") as out:
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd=place,
            env={**os.environ, **_AT_ONCE},
        )
    try:
        _wait(process, steps, place=place, doing=doing, say=say, timeout_s=timeout_s)
    except BaseException:
        _end_own(process)
        _clear_away(place)
        raise
    finally:
        steps.unlink(missing_ok=True)
    _started.append(process)


def _wait(
    process: "subprocess.Popen[bytes]",
    steps: Path,
    *,
    place: Path,
    doing: str,
    say: Callable[[str], None],
    timeout_s: float,
) -> None:
    """Wait for as long as no step takes more than `timeout_s`."""
    told, deadline = 0, time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        ended = process.poll()
        for step in (found := _read(steps)[told:]):
            if step.error:
                raise _explained(step, doing, place)
            if step.up:
                return
            say(step.doing)
            deadline = time.monotonic() + timeout_s
        told += len(found)
        if ended is not None:
            if ended == 0:
                return
            raise _failed(f"the fabric's process ended with {ended}", place)
        time.sleep(_POLL_S)
    raise _failed(f"the fabric did not {doing} in time", place)


def _explained(step: Step, doing: str, place: Path) -> FabricError:
    """The error that the process has told of, as what it is."""
    message = f"the fabric did not {doing}: {step.error} (see {place / 'fabric.log'})"
    return error_of(step.code or "start_failed", step.http_status, message, {})


def _failed(what: str, place: Path) -> Unavailable:
    return Unavailable(f"{what}: see {place / 'fabric.log'}", code="start_failed")


def _end_own(process: "subprocess.Popen[bytes]") -> None:
    """One that we have started is ours until we have waited for it: nobody else can have its number."""
    process.terminate()
    try:
        process.wait(DOWN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end(process: psutil.Process, place: Path, *, now: bool, say: Callable[[str], None], timeout_s: float) -> None:
    """Have it end in order; kill it when that takes too long."""
    steps, hurry = at.ending_file(place), at.now_file(place)
    steps.unlink(missing_ok=True)
    hurry.touch() if now else hurry.unlink(missing_ok=True)
    interrupted, told = 0, 0
    deadline = time.monotonic() + timeout_s
    try:
        process.terminate()
        while True:
            try:
                if process.status() == psutil.STATUS_ZOMBIE or time.monotonic() > deadline:
                    break
                for step in _read(steps)[told:]:
                    told += 1
                    deadline = time.monotonic() + step.within_s + timeout_s
                    say(step.doing)
                time.sleep(_POLL_S)
            except KeyboardInterrupt:
                if interrupted == len(_INTERRUPTED):
                    raise
                say(_INTERRUPTED[interrupted])
                interrupted += 1
                if interrupted == len(_INTERRUPTED):
                    hurry.touch()
        if process.status() != psutil.STATUS_ZOMBIE:
            process.kill()
            process.wait(timeout_s)
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        pass
    finally:
        steps.unlink(missing_ok=True)
        hurry.unlink(missing_ok=True)


def _clear_away(place: Path) -> None:
    """What an end that was not orderly has left; nothing where another serves from there by now."""
    if not at.is_held(place):
        with at.held(place):
            end_remains(place)
            at.run_file(place).unlink(missing_ok=True)


def _read(steps: Path) -> list[Step]:
    if not steps.exists():
        return []
    whole = steps.read_bytes().rpartition(b"\n")[0]
    return [msgspec.json.decode(line, type=Step) for line in whole.splitlines()]
