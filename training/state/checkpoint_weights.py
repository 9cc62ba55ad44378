"""The weights in a durable checkpoint, read by a process alone: of a session, of a gang whose ranks each kept a part, or of
`training.sharded`. Nothing is claimed, so a run that goes on meanwhile isn't disturbed; every shard is verified as it is read.
"""

import mmap
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from fabric.checkpoints import Checkpoints, DirectoryStore, Manifest, is_of_folder
from fabric.checkpoints.directory import Buffer
from fabric.checkpoints.moving import of_step
from fabric.errors import CheckpointDamaged, InvalidRequest, NotFound
from training.state import layout
from training.state.frozen import put_back
from training.state.sharded_state import joined
from training.state.shards import made
from training.state.torch_storage import Reader, as_ours
from training.state.vault import FROZEN, PREFIX, decoded, prefix_of_session

_WHOLE: Final = "state"
_OF_FIRST_RANK: Final = "rank-0/state"
MODEL: Final = "model"


class Kept(NamedTuple):
    """A model's weights at a step, and what it is where the checkpoint says it (see `training.state.model_kind`)."""

    step: int
    weights: dict[str, Any]
    kind: dict[str, Any] | None


def of_directory(folder: Path, *, session: int = 0, prefix: str = PREFIX) -> Checkpoints:
    """What a session was given as `directory=` or FABRIC_CHECKPOINT_DIR; `session` counts those of one script.

    In the directory of a fabric's archive, what a job has saved lies below the `prefix` jobs/ACCOUNT/JOB/checkpoint.

    Raises:
        NotFound: `no_such_checkpoint`.
    """
    prefix = prefix_of_session(prefix, session)
    if not (folder / prefix).is_dir():
        raise NotFound(
            f"{folder} holds no checkpoints of session {session}: give what the session has as directory=, or "
            "FABRIC_CHECKPOINT_DIR",
            code="no_such_checkpoint",
        )
    return Checkpoints(DirectoryStore(folder), prefix=prefix)


def weights_of(checkpoints: Checkpoints, *, beside: Path, step: int | None = None, name: str | None = None) -> Kept:
    """The weights of a model at a step; of the newest checkpoint that is whole if none is given.

    Args:
        checkpoints: where they are.
        beside: a folder on a disk with room for the checkpoint, which is fetched there for as long as it is read.
        step: which checkpoint.
        name: of the model among what the session tracks; None = the only one.

    Raises:
        NotFound: there is no such checkpoint.
        CheckpointDamaged: it is not whole, or none is.
        InvalidRequest: `no_model`: it isn't of a session, or it isn't clear which model is meant.
    """
    with tempfile.TemporaryDirectory(prefix=".fabric-export-", dir=beside) as place:
        if step is not None:
            standing = tuple(manifest for manifest in checkpoints.ls() if not is_of_folder(manifest))
            chosen = of_step(standing, step, prefix=checkpoints.prefix)
            return _read(_Shards(checkpoints, chosen, Path(place)), name)
        found: list[Kept] = []

        def read(manifest: Manifest) -> None:
            if is_of_folder(manifest):
                raise CheckpointDamaged("it is of the command's folder, and not of a session", code="shard_unreadable")
            found.append(_read(_Shards(checkpoints, manifest, Path(place)), name))

        if checkpoints.newest_passing(read) is None:
            raise NotFound(
                f"{checkpoints.prefix} has no checkpoint yet: let the run save one", code="no_such_checkpoint"
            )
        return found[-1]


class _Shards:
    """The shards of a checkpoint as files, verified, of which memory holds only what is looked at."""

    def __init__(self, checkpoints: Checkpoints, manifest: Manifest, place: Path) -> None:
        self._checkpoints, self.manifest = checkpoints, manifest
        self._place = Path(tempfile.mkdtemp(dir=place))
        self.names = {shard.name for shard in manifest.shards}
        self._read: dict[str, memoryview] = {}

    def read(self, name: str) -> memoryview:
        if name not in self._read:
            path = self._place / f"{len(self._read)}"
            self._checkpoints.fetch(self.manifest, name, path)
            with path.open("rb") as file:
                size = path.stat().st_size
                self._read[name] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
            path.unlink()  # it stays as long as it is looked at
        return self._read[name]


def _read(shards: _Shards, name: str | None) -> Kept:
    manifest, there = shards.manifest, shards.names
    first = next((shard for shard in (_WHOLE, _OF_FIRST_RANK) if shard in there), None)
    if first is not None and manifest.meta.get("made_by") is not None:
        state = decoded(shards.read(first), deferred=True)  # optimizers' moments stay where they are
        kinds = state.get("models", {})
        own = _chosen(manifest, list(state["objects"]), kinds, name)
        objects = made({own: state["objects"][own]})
        if FROZEN in there:
            objects = put_back(objects, shards.read(FROZEN))
        if layout.SHARD in there:
            objects = joined(objects, like=lambda _path: torch.empty(0), read=shards.read)
        return Kept(manifest.step, objects[own], kinds.get(own))
    if layout.SHARD in there:
        return Kept(manifest.step, _of_planner(shards.read, name or MODEL), None)
    raise _no_model(manifest, "it was saved by the job's own code, and not by a session")


def _chosen(manifest: Manifest, names: list[str], kinds: dict[str, Any], name: str | None) -> str:
    """Which of the tracked objects is meant."""
    models = [one for one in names if one == MODEL or one.startswith(f"{MODEL}.")]
    asked = [one for one in names if name in {one, one.removeprefix(f"{MODEL}.")}] if name is not None else models
    if name is None and len(models) > 1:  # of several, the one that others can load
        asked = [one for one in models if kinds.get(one) is not None]
    if len(asked) != 1:
        raise _no_model(manifest, f"it has {', '.join(models) or 'no model'}: say by name= (--name) which is meant")
    return asked[0]


def _of_planner(read: Callable[[str], Buffer], name: str) -> dict[str, Tensor]:
    """What `training.sharded` has saved."""
    metadata, _ = layout.decoded(read(layout.SHARD))
    prefix = f"{name}."
    missing = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in metadata.state_dict_metadata.items()
        if key.startswith(prefix) and hasattr(entry, "properties")
    }
    if not missing:
        raise CheckpointDamaged(f"the checkpoint holds nothing called {prefix}…", code="shard_unreadable")
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with as_ours():
        dcp.load(missing, storage_reader=Reader(read), planner=planner, no_dist=True)
    return {key.removeprefix(prefix): value for key, value in missing.items()}


def _no_model(manifest: Manifest, why: str) -> InvalidRequest:
    return InvalidRequest(f"of the checkpoint of step {manifest.step} no model can be read: {why}", code="no_model")
