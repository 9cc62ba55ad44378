"""Where a run's checkpoints go: the fabric's archive, a local directory, or nowhere. One value, durable on return.

Loading never runs code from a checkpoint: it holds plain containers and tensors (`training.state.shards`). Of those that are not dense
it holds torch's own pickle, which is loaded with `weights_only`.
"""

import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from fabric import context
from fabric.checkpoints import Checkpoints, DirectoryStore, Draft, Manifest, Shard, is_of_folder
from fabric.checkpoints.directory import Buffer
from fabric.checkpoints.single import drafted
from fabric.errors import CheckpointDamaged, Conflict, NotFound
from training.progress import say
from training.state.frozen import Frozen, put_back

DIRECTORY_VARIABLE: Final = "FABRIC_CHECKPOINT_DIR"
FORMAT: Final = "fabric-session"
VERSION: Final = 1
PREFIX: Final = "session"
_SHARD: Final = "state"
FROZEN: Final = "frozen"
"""What nothing trains, if that is much."""
_PART: Final = "rank-0/state"
"""What rank 0 has kept of a state of which each rank holds a part."""


class Vault(Protocol):
    """Keeps the newest states of one run."""

    is_kept: bool
    """Whether it does."""

    def save(self, data: Buffer, *, step: int, frozen: Frozen | None = None) -> None:
        """Durable on return, with what nothing trains. `Conflict` (fenced) if a newer attempt of the run has begun."""

    def holds(self, digest: str) -> bool:
        """Whether what was kept last of what nothing trains has this digest."""

    def load(self) -> bytes | None:
        """The newest state that is whole; None = there is none."""

    def joined(self, objects: Any, state: Any) -> Any:
        """The states in what was loaded, as a `training.state.registry.Registry` has them now: ranks may have kept parts."""


class Nowhere:
    """A run outside the fabric that was given no directory: it is not kept, and says nothing about it."""

    is_kept = False

    def save(self, data: Buffer, *, step: int, frozen: Frozen | None = None) -> None:
        """Forget it."""

    def holds(self, digest: str) -> bool:  # noqa: ARG002
        return False

    def load(self) -> bytes | None:
        return None

    def joined(self, objects: Any, state: Any) -> Any:  # noqa: ARG002
        return objects


class Kept:
    """Checkpoints of a job, or of a script on its own machine: one shard each. It also reads those of a sharded model."""

    is_kept = True

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._parts: dict[str, bytes] = {}
        self._frozen: tuple[str, Shard] | None = None
        """What was kept or loaded last of what nothing trains: its digest, and where it lies."""
        self._frozen_loaded: bytes | None = None

    def save(self, data: Buffer, *, step: int, frozen: Frozen | None = None) -> None:
        meta = {"made_by": FORMAT} | ({} if frozen is None else {FROZEN: frozen.digest})
        with drafted(self.checkpoints, step) as draft:
            part = None if frozen is None else self._with_frozen(draft, frozen)
            draft.put(_SHARD, data)
            self.checkpoints.commit(draft, meta=meta)
        if frozen is not None and part is not None:
            self._frozen = (frozen.digest, part)

    def _with_frozen(self, draft: Draft, frozen: Frozen) -> Shard:
        """What was kept already is taken over from there; all else is written."""
        if self._frozen is not None and self.holds(frozen.digest):
            with suppress(NotFound):
                return draft.take(self._frozen[1])
        return draft.put(FROZEN, frozen.read())

    def holds(self, digest: str) -> bool:
        return self._frozen is not None and self._frozen[0] == digest

    def load(self) -> bytes | None:
        found = self.checkpoints.load()
        if found is None:
            return None
        manifest, shards = found
        if is_of_folder(manifest):  # the command drew in its folder before it opened this
            own = next((each for each in self.checkpoints.ls() if not is_of_folder(each)), None)
            if own is None:
                say(
                    f"the checkpoint of step {manifest.step} is of the command's folder, where it is again: this begins at 0"
                )
                return None
            manifest, shards = own, {shard.name: self.checkpoints.read(own, shard.name) for shard in own.shards}
        self._note_frozen(manifest, shards)
        if _PART in shards:
            self._parts = shards
            return shards[_PART]
        return shards[manifest.shard(_SHARD).name]

    def _note_frozen(self, manifest: Manifest, shards: dict[str, bytes]) -> None:
        self._frozen_loaded = shards.pop(FROZEN, None)
        if self._frozen_loaded is not None and isinstance(digest := manifest.meta.get(FROZEN), str):
            self._frozen = (digest, manifest.shard(FROZEN))

    def joined(self, objects: Any, state: Any) -> Any:
        parts, self._parts = self._parts, {}
        if self._frozen_loaded is not None:
            objects, self._frozen_loaded = put_back(objects, self._frozen_loaded), None
        if not parts:
            return objects
        from training.state.sharded_state import joined  # noqa: PLC0415  # needs torch

        return joined(objects, like=state.counterpart(objects), read=parts.__getitem__)


def opened(job: context.Context, directory: str | os.PathLike[str] | None, *, number: int = 0) -> Vault:
    """The vault for this process: the job's, the directory's (also named by `FABRIC_CHECKPOINT_DIR`), or none.

    `number`: of the session in its job, which may have several.
    """
    checkpoints = checkpoints_of(job, directory, number=number)
    return Nowhere() if checkpoints is None else Kept(checkpoints)


_of_jobs: Final["weakref.WeakKeyDictionary[context.Context, set[int]]"] = weakref.WeakKeyDictionary()
_of_directories: Final[dict[str, set[int]]] = {}


class SessionNumber:
    """Which of the sessions it is that a process opens in one place, one after the other: each has a state of its own.

    A process that is started again opens them in the same order.
    """

    def __init__(self, job: context.Context, directory: str | os.PathLike[str] | None) -> None:
        """Take the lowest one that is free, of the job, or of the directory where the process is alone."""
        named = str(directory if directory is not None else os.environ.get(DIRECTORY_VARIABLE, ""))
        place = str(Path(named).absolute()) if named else ""
        self._taken = _of_jobs.setdefault(job, set()) if job.job_id else _of_directories.setdefault(place, set())
        is_kept = bool(job.job_id or place)
        self.number = (
            next(number for number in range(len(self._taken) + 1) if number not in self._taken) if is_kept else 0
        )
        self._taken.add(self.number)

    def give_back(self) -> bool:
        """Let the next session go on with this one's state; whether it wasn't said before."""
        was_taken = self.number in self._taken
        self._taken.discard(self.number)
        return was_taken


def of_session(checkpoints: Checkpoints, number: int) -> Checkpoints:
    """Where a job's session keeps its state: its first one where the job does, each other one below that."""
    return checkpoints if number == 0 else checkpoints.below(f"{number:04d}")


def checkpoints_of(
    job: context.Context, directory: str | os.PathLike[str] | None, *, number: int = 0
) -> Checkpoints | None:
    """Where this process keeps the state of its session of that number; None = nowhere.

    Which process opens a directory last owns it: others save no more.
    """
    if job.checkpoints is not None:
        return of_session(job.checkpoints, number)
    named = directory if directory is not None else os.environ.get(DIRECTORY_VARIABLE)
    if not named:
        return None
    checkpoints = Checkpoints(DirectoryStore(Path(named)), prefix=prefix_of_session(PREFIX, number))
    checkpoints.claim()
    return checkpoints


def prefix_of_session(prefix: str, number: int) -> str:
    """Where the session of that number keeps its state: the first one where the job does, each other one below that."""
    return f"{prefix}/sessions/{number:04d}" if number else prefix


def planned(state: dict[str, Any]) -> Any:
    """One state laid out as a shard (`training.state.shards.Plan`), not yet copied; it holds what `training.state.plain` lets through."""
    from training.state import shards  # noqa: PLC0415  # a job that trains nothing need not load torch

    return shards.plan({"format": FORMAT, "version": VERSION, **state})


def gathered(plan: Any, *, into: memoryview | None) -> memoryview:
    """The bytes of the shard, copied from where the tensors are; `into` is memory that may be used again."""
    from training.state import shards  # noqa: PLC0415

    return shards.gather(plan, into=into)


def decoded(data: Buffer, *, deferred: bool = False) -> dict[str, Any]:
    """What was `planned`, gathered and saved; its tensors `deferred` as `training.state.shards.load` says.

    Raises:
        Conflict: `checkpoint_of_another_kind`: these bytes are no state of a session, or of another version of it.
    """
    from training.state import shards  # noqa: PLC0415

    try:
        state: dict[str, Any] = shards.load(data, deferred=deferred)
        found = (state["format"], state["version"])
    except (CheckpointDamaged, KeyError, TypeError) as error:
        raise Conflict(
            f"the checkpoint was not saved by a session: {error}. Begin in another directory, or load it where it was made",
            code="checkpoint_of_another_kind",
        ) from error
    if found != (FORMAT, VERSION):
        raise Conflict(
            f"the checkpoint has format {found[0]} {found[1]}, this program reads {FORMAT} {VERSION}: "
            "resume with the version that saved it",
            code="checkpoint_of_another_kind",
        )
    return state
