"""Where a run's checkpoints go: the fabric's archive, a local directory, or nowhere. One value, durable on return.

Loading never runs code from a checkpoint: only tensors and plain containers are read (`weights_only`).
"""

import io
import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from fabric import context
from fabric.checkpoints import Checkpoints, DirectoryStore
from fabric.errors import Conflict, FabricError

DIRECTORY_VARIABLE: Final = "FABRIC_CHECKPOINT_DIR"
FORMAT: Final = "fabric-session"
VERSION: Final = 1
_PREFIX: Final = "session"
_SHARD: Final = "state"


class Vault(Protocol):
    """Keeps the newest states of one run."""

    def save(self, data: bytes, *, step: int) -> None:
        """Durable on return. `Conflict` (fenced) if a newer attempt of the run has begun."""

    def load(self) -> bytes | None:
        """The newest state that is whole; None = there is none."""


class Nowhere:
    """A run outside the fabric that was given no directory: it is not kept, and says nothing about it."""

    def save(self, data: bytes, *, step: int) -> None:
        """Forget it."""

    def load(self) -> bytes | None:
        return None


class Kept:
    """Checkpoints of a job, or of a script on its own machine: one shard each."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def save(self, data: bytes, *, step: int) -> None:
        draft = self._checkpoints.begin(step)
        try:
            draft.put(_SHARD, data)
            self._checkpoints.commit(draft, meta={"made_by": FORMAT})
        except FabricError:
            with suppress(FabricError):  # what could not be written may not be deletable either; a sweep finds it
                self._checkpoints.abandon(draft)
            raise

    def load(self) -> bytes | None:
        found = self._checkpoints.load()
        if found is None:
            return None
        manifest, shards = found
        return shards[manifest.shard(_SHARD).name]


def opened(job: context.Context, directory: str | os.PathLike[str] | None) -> Vault:
    """The vault for this process: the job's, the directory's (also named by `FABRIC_CHECKPOINT_DIR`), or none."""
    checkpoints = checkpoints_of(job, directory)
    return Nowhere() if checkpoints is None else Kept(checkpoints)


def checkpoints_of(job: context.Context, directory: str | os.PathLike[str] | None) -> Checkpoints | None:
    """Where this process keeps its state; None = nowhere. Who opens a directory last owns it: others save no more."""
    if job.checkpoints is not None:
        return job.checkpoints
    named = directory if directory is not None else os.environ.get(DIRECTORY_VARIABLE)
    if not named:
        return None
    checkpoints = Checkpoints(DirectoryStore(Path(named)), prefix=_PREFIX)
    checkpoints.claim()
    return checkpoints


def encoded(state: dict[str, Any]) -> bytes:
    """One state as bytes; `state` holds what `training.plain` lets through."""
    import torch  # noqa: PLC0415  # a job that trains nothing need not load it

    kept = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **state}, kept)
    return kept.getvalue()


def decoded(data: bytes) -> dict[str, Any]:
    """What `encoded` wrote.

    Raises:
        Conflict: `checkpoint_of_another_kind`: these bytes are no state of a session, or of another version of it.
    """
    import torch  # noqa: PLC0415

    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        found = (state["format"], state["version"])
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, ValueError) as error:
        raise Conflict(
            f"the checkpoint was not saved by a session: {str(error).splitlines()[0] if str(error) else type(error).__name__}. "
            "Begin in another directory, or load it where it was made",
            code="checkpoint_of_another_kind",
        ) from error
    if found != (FORMAT, VERSION):
        raise Conflict(
            f"the checkpoint has format {found[0]} {found[1]}, this program reads {FORMAT} {VERSION}: "
            "resume with the version that saved it",
            code="checkpoint_of_another_kind",
        )
    return state
