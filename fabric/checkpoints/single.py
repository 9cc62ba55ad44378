"""A checkpoint of one shard, which is committed or leaves nothing behind."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fabric.checkpoints.checkpoints import Checkpoints
from fabric.checkpoints.directory import Buffer
from fabric.checkpoints.records import Manifest
from fabric.errors import FabricError


def save_one(
    checkpoints: Checkpoints,
    name: str,
    data: Buffer,
    *,
    step: int,
    world: int = 1,
    meta: Mapping[str, Any] | None = None,
) -> Manifest:
    """Durable on return; raises what `Draft.put` and `Checkpoints.commit` do."""
    draft = checkpoints.begin(step)
    try:
        draft.put(name, data)
        return checkpoints.commit(draft, meta=meta, world=world)
    except FabricError:
        with suppress(FabricError):  # what could not be written may not be deletable either; a sweep finds it
            checkpoints.abandon(draft)
        raise
