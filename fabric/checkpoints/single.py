"""A checkpoint that one process writes, which is committed or leaves nothing behind."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from fabric.checkpoints.checkpoints import Checkpoints
from fabric.checkpoints.directory import Buffer
from fabric.checkpoints.draft import Draft
from fabric.checkpoints.records import Manifest
from fabric.errors import FabricError


@contextmanager
def drafted(checkpoints: Checkpoints, step: int) -> Iterator[Draft]:
    """A draft to put shards into and to commit; what is written of it is forgotten if that fails."""
    draft = checkpoints.begin(step)
    try:
        yield draft
    except FabricError:
        with suppress(FabricError):  # what could not be written may not be deletable either; a sweep finds it
            checkpoints.abandon(draft)
        raise


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
    with drafted(checkpoints, step) as draft:
        draft.put(name, data)
        return checkpoints.commit(draft, meta=meta, world=world)
