"""The whole fabric as one background process: started, found again, and stopped.

`up` starts the process that serves, waits until every part answers, and tells how it gets on meanwhile. The process
holds the embedded Ray cluster (or joins a running one), makes sure that the gate actor lives, and is itself the door.
Its state directory says where it is; a lock there keeps a second one out. `down` stops it in order: the door, the gate
with a snapshot, the cluster. Killed instead, nothing is lost: the journal has everything, and the next `up` goes on.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import msgspec

from fabric.errors import Conflict, NotFound, Unavailable
from fabric.settings import ClusterConfig, Settings, load_cluster

UP_TIMEOUT_S: Final = 180.0
DOWN_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.1
_started: Final[list["subprocess.Popen[bytes]"]] = []
"""What this process has started and left running: it outlives us, which is no mistake."""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A fabric that is up, as its state directory tells it."""

    name: str
    pid: int
    address: str
    """`host:port` of the gRPC door."""
    ca: str
    """The PEM file that the door's certificate is signed by; "" without TLS."""
    dashboard: str
    """Address of Ray's dashboard, "" if it has none."""
    ray_address: str
    verifier_key: str
    """The public key that signs the journal's checkpoints: keep a copy to verify exports with."""
    state_dir: str
    nodes: int
    account: str = ""
    """The customer that was opened for whoever started it; "" where customers are opened by hand."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """How far a start has come."""

    doing: str
    error: str = ""
    up: bool = False


def up(
    config: Path | None = None,
    *,
    state_dir: Path | None = None,
    any_port: bool = False,
    say: Callable[[str], None] = lambda _: None,
    timeout_s: float = UP_TIMEOUT_S,
) -> Running:
    """Start the fabric that a cluster file describes (by default: a local one) and wait until it answers.

    Args:
        config: the cluster file; None = the one-machine cluster that comes with the package.
        state_dir: where its state lives; None = `FABRIC_STATE_DIR`, or the user's state directory.
        any_port: listen at free ports instead of those in the file, beside another fabric on the same machine.
        say: is told each step of the start as it begins.
        timeout_s: how long the start may take.

    Raises:
        InvalidConfig: the cluster file is wrong; nothing was started.
        Conflict: one is running in this state directory already.
        Unavailable: it did not come up; the message names the log.
    """
    place = (state_dir or Settings().state_dir).absolute()
    load_cluster(config, environ={**os.environ, "FABRIC_STATE_DIR": str(place)})
    if (found := running(place)) is not None:
        raise Conflict(f"{found.name} is up already at {found.address} (pid {found.pid})", code="already_up")
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    for stale in (_run_file(place), _steps_file(place)):
        stale.unlink(missing_ok=True)
    log = place / "fabric.log"
    command = [sys.executable, "-m", "fabric.serve", "--state-dir", str(place)]
    if any_port:
        command.append("--any-port")
    if config is not None:
        command += ["--config", str(Path(config).absolute())]
    with log.open("ab") as out:
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd=place
        )
    _started.append(process)
    return _wait_until_up(process, place, log=log, say=say, timeout_s=timeout_s)


def running(state_dir: Path | None = None) -> Running | None:
    """The fabric that is up in this state directory, if one is."""
    place = (state_dir or Settings().state_dir).absolute()
    if not (place / "run.lock").exists():
        return None
    with (place / "run.lock").open("rb") as lock:
        if _try_lock(lock):
            return None
    try:
        return msgspec.json.decode(_run_file(place).read_bytes(), type=Running)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def down(state_dir: Path | None = None, *, timeout_s: float = DOWN_TIMEOUT_S) -> Running:
    """Stop the fabric of this state directory in order; what ran is lost with a local cluster, its tokens are not.

    Raises:
        NotFound: none is up there.
    """
    place = (state_dir or Settings().state_dir).absolute()
    found = running(place)
    if found is None:
        raise NotFound(f"no fabric is up in {place}", code="not_up")
    os.kill(found.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while running(place) is not None:
        if time.monotonic() > deadline:
            os.kill(found.pid, signal.SIGKILL)
            break
        time.sleep(_POLL_S)
    _run_file(place).unlink(missing_ok=True)
    return found


def operator_key_file(state_dir: Path) -> Path:
    """Where the operator's API key is kept, readable by its owner only."""
    return state_dir / "operator.key"


def operator_key(state_dir: Path) -> str:
    """The operator's API key of the fabric that lives in this state directory."""
    return operator_key_file(state_dir).read_text().strip()


# -- for the process that serves ---------------------------------------------------------------------------------------


@contextmanager
def held(state_dir: Path) -> Iterator[None]:
    """Be the only one who serves from this state directory.

    Raises:
        Conflict: somebody does already.
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (state_dir / "run.lock").open("wb") as lock:
        if not _try_lock(lock):
            raise Conflict(f"a fabric is up in {state_dir} already", code="already_up")
        yield


def tell(state_dir: Path, step: Step) -> None:
    """Say how far the start has come to whoever waits for it."""
    with _steps_file(state_dir).open("ab") as steps:
        steps.write(msgspec.json.encode(step) + b"\n")


def announce(state_dir: Path, found: Running) -> None:
    """From now on `running` finds it."""
    draft = _run_file(state_dir).with_suffix(".new")
    draft.write_bytes(msgspec.json.encode(found))
    draft.replace(_run_file(state_dir))
    tell(state_dir, Step(doing="up", up=True))


def load(config: Path | None, state_dir: Path, *, any_port: bool = False) -> ClusterConfig:
    """The cluster file, with its paths below the state directory; with `any_port`, at free ports."""
    found = load_cluster(config, environ={**os.environ, "FABRIC_STATE_DIR": str(state_dir)})
    if not any_port:
        return found
    rpc = found.rpc.model_copy(update={"listen": f"{found.rpc.listen.rpartition(':')[0]}:0"})
    return found.model_copy(update={"rpc": rpc, "dashboard": found.dashboard.model_copy(update={"port": 0})})


def _wait_until_up(
    process: "subprocess.Popen[bytes]", place: Path, *, log: Path, say: Callable[[str], None], timeout_s: float
) -> Running:
    deadline = time.monotonic() + timeout_s
    told = 0
    while time.monotonic() < deadline:
        steps = _steps(place)
        for step in steps[told:]:
            if step.error:
                process.wait()
                raise Unavailable(f"the fabric did not come up: {step.error} (see {log})", code="start_failed")
            if step.up and (found := running(place)) is not None:
                return found
            say(step.doing)
        told = len(steps)
        if process.poll() is not None:
            raise Unavailable(f"the fabric's process ended with {process.returncode}: see {log}", code="start_failed")
        time.sleep(_POLL_S)
    process.terminate()
    raise Unavailable(f"the fabric did not come up within {timeout_s:.0f} s: see {log}", code="start_failed")


def _steps(place: Path) -> list[Step]:
    try:
        lines = _steps_file(place).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [msgspec.json.decode(line, type=Step) for line in lines]


def _run_file(place: Path) -> Path:
    return place / "run.json"


def _steps_file(place: Path) -> Path:
    return place / "start.jsonl"


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
