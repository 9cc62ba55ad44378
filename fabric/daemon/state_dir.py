"""The state directory: who serves from it, how far a start has come, and where the fabric is that is up."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec

from fabric.config.sections import Settings
from fabric.errors import Conflict, InvalidConfig

LOCK_WAIT_S: Final = 2.0
"""Whoever only looks takes the lock for an instant, and whoever was killed keeps it for one: so long is it asked again."""
_POLL_S: Final = 0.05
_OTHERS: Final = 0o077
HEALTH_S: Final = 3.0
"""How often the process that serves says how the gate is."""
SILENT_S: Final = 60.0


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A fabric that is up, as its state directory tells it."""

    name: str
    pid: int
    address: str
    """`host:port` of the gRPC door."""
    ca: str
    """The PEM file that the door's certificate is signed by; "" where the system's authorities vouch for it."""
    dashboard: str
    """Address of Ray's dashboard, "" if it has none."""
    ray_address: str
    ray_token: str = ""
    """The file with the token that Ray and its dashboard ask for; "" where the cluster is somebody else's."""
    verifier_key: str
    """The public key that signs the journal's checkpoints: keep a copy to verify exports with."""
    state_dir: str
    nodes: int
    account: str = ""
    """The customer that was opened for whoever started it; "" where customers are opened by hand."""
    config: str = ""
    """The cluster file it was started with; "" = the one that comes with the package."""
    joined: bool = False
    """Whether its Ray cluster was there before it, and stays."""
    endpoint: str = ""
    """The base URL for OpenAI's clients, "" where no models are served."""
    payments: str = ""
    """Who says that something was paid: operator | sandbox."""
    giveaway: str = ""
    """Says that tokens cost nothing where others reach it; "" where they don't."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """How far a start, or an end, has come."""

    doing: str
    error: str = ""
    code: str = ""
    http_status: int = 503
    """With `code`, which error it is."""
    up: bool = False
    within_s: float = 0.0
    """Of an end: how long this step may take at most."""


def state_dir_of(given: Path | None) -> Path:
    """The directory meant, as an absolute path."""
    return (given or Settings().state_dir).absolute()


def prepare(place: Path) -> None:
    """Make the directory if it isn't there.

    Raises:
        InvalidConfig: nothing can be written there.
    """
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        if place.stat().st_mode & _OTHERS and place.stat().st_uid == os.geteuid():
            place.chmod(0o700)  # keys are in it, the journal, and what jobs have left
        probe = place / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InvalidConfig(
            f"the state directory {place} can't be written: {error.strerror}. Make it writable, or name another with"
            " --state-dir or FABRIC_STATE_DIR",
            code="state_dir_unwritable",
            state_dir=str(place),
        ) from None


def running(state_dir: Path | None = None) -> Running | None:
    """The fabric that is up in this state directory, if one is."""
    place = state_dir_of(state_dir)
    return last_running(place) if is_held(place) else None


def is_held(place: Path) -> bool:
    """Whether a process serves from here, or is about to."""
    try:
        with (place / "run.lock").open("rb") as lock:
            return not _try_lock(lock)
    except FileNotFoundError:
        return False


def becomes_free(place: Path) -> bool:
    """Whether nobody serves from here, or whoever does ends in a moment."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while is_held(place):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def last_running(place: Path) -> Running | None:
    """The fabric that was last up here, whether or not it still is."""
    try:
        return msgspec.json.decode(run_file(place).read_bytes(), type=Running)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


@contextmanager
def held(place: Path, *, kept: int | None = None) -> Iterator[int]:
    """Be the only one who serves from this state directory. Yields the lock's file descriptor: a process that becomes another
    one (`execv`) may leave it open for that, so that nobody comes between them.

    Args:
        place: the state directory.
        kept: the descriptor that the process before this one has left open.

    Raises:
        Conflict: somebody does already.
    """
    with ExitStack() as stack:
        if kept is None:
            prepare(place)
            lock = stack.enter_context((place / "run.lock").open("wb"))
        else:  # ours before anything can fail: else nobody would ever close it, and who tries again finds itself in the way
            lock = stack.enter_context(os.fdopen(kept, "wb"))
            os.set_inheritable(kept, False)  # noqa: FBT003 - positional there
            prepare(place)
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                raise already_up(place)
            time.sleep(_POLL_S)
        yield lock.fileno()


def already_up(place: Path) -> Conflict:
    """The error for a second start in one state directory."""
    found = last_running(place)
    what = f"{found.name} is up already at {found.address} (pid {found.pid})" if found else "a fabric is starting"
    if found is not None and (wrong := ailment(place)):
        return Conflict(
            f"{what} in {place}, but is not well: {wrong}. It goes on by itself as soon as it can; `fabric down` ends it all"
            " the same (--now: without waiting for jobs)",
            code="already_up",
            ailment=wrong,
        )
    return Conflict(
        f"{what} in {place}: use it, stop it with `fabric down`, or start another beside it with --state-dir DIR --any-port"
        " --profile NAME",
        code="already_up",
    )


def note_health(place: Path, ailment: str) -> None:
    """Say that the process is there, and what is wrong with the gate; "" if nothing is."""
    draft = _health_file(place).with_suffix(".new")
    draft.write_text(ailment)
    draft.replace(_health_file(place))


def ailment(place: Path) -> str:
    """What is wrong with the fabric that is up here, by its own last word; "" if nothing is known to be."""
    try:
        silent_s = time.time() - _health_file(place).stat().st_mtime
        said = _health_file(place).read_text()
    except FileNotFoundError:
        return ""
    return said or (f"its process has said nothing for {silent_s:.0f} s" if silent_s > SILENT_S else "")


class Condition(NamedTuple):
    """How a fabric is, for people."""

    found: str
    remedy: str = ""
    """What to do; "" where nothing is to be done."""


def condition(state_dir: Path | None = None) -> Condition | None:
    """How the fabric is that is up in this state directory, or was until it ended unexpectedly; None if there is none."""
    place = state_dir_of(state_dir)
    found = last_running(place)
    if found is None:
        return None
    where = f"{found.name}, at {found.address}"
    if not is_held(place):
        return Condition(
            f"{where}, has ended, and not in order: {place / 'fabric.log'} tells why",
            "fabric up brings everything back, and jobs go on from what they saved last",
        )
    if wrong := ailment(place):
        return Condition(
            f"{where}, is up, but is not well: {wrong}",
            "it goes on by itself as soon as it can; to end it: fabric down, and with --now without waiting for jobs",
        )
    return Condition(f"{where}, is up and well")


def _health_file(place: Path) -> Path:
    return place / "health"


def tell(steps: Path | None, step: Step) -> None:
    """Say how far the start, or the end, has come to whoever waits for it."""
    if steps is not None:
        with steps.open("ab") as out:
            out.write(msgspec.json.encode(step) + b"\n")


def announce(place: Path, found: Running) -> None:
    """From now on `running` finds it, and nothing is wrong with it."""
    note_health(place, "")
    draft = run_file(place).with_suffix(".new")
    draft.write_bytes(msgspec.json.encode(found))
    draft.replace(run_file(place))


def run_file(place: Path) -> Path:
    return place / "run.json"


def ending_file(place: Path) -> Path:
    """Where the process that serves says how far its end has come."""
    return place / "ending.jsonl"


def now_file(place: Path) -> Path:
    """While it is there, an end does not wait for jobs to save."""
    return place / "end-now"


def operator_key_file(state_dir: Path) -> Path:
    """Where the operator's API key is kept, readable by its owner only."""
    return state_dir / "operator.key"


def ray_token_file(state_dir: Path) -> Path:
    """Where the token of the embedded Ray cluster is kept, readable by its owner only: made anew at every start."""
    return state_dir / "ray.token"


def operator_key(state_dir: Path) -> str:
    """The operator's API key of the fabric that lives in this state directory."""
    return operator_key_file(state_dir).read_text().strip()


def role_key_file(state_dir: Path, role: str) -> Path:
    """Where the key of one of the operator's processes is kept, readable by its owner only: it may do what that process
    needs and nothing else.
    """
    return state_dir / "keys" / f"{role}.key"


def role_key(state_dir: Path, role: str) -> str:
    """The key of the gateways, the replicas or the serving host of the fabric that lives in this state directory."""
    return role_key_file(state_dir, role).read_text().strip()


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
