"""Checkpoints of models that no rank holds whole (FSDP2), by torch's planner and under our manifest.

Torch's distributed checkpointing decides who writes which part of which tensor, and who reads what when another number of
ranks comes back. Where the bytes go is ours: shards of `fabric.checkpoints`, each with its sha256, a layout in JSON instead
of torch's pickle, and one record that is committed last. So it is whole or absent, verified before it is used, fenced, and
loading it runs no code (values that are no tensors are read with `weights_only`).

    keep = Sharded(checkpoints, gang)
    keep.save(step, state_of(model, opt))          # all ranks; durable on return
    step = keep.load(state := state_of(model, opt))  # all ranks, as many as there are now; None if there is none
    restore(model, opt, state)

It uses the gang's `saving` group, so a side thread may save while the training reduces gradients.
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from fabric.checkpoints import Checkpoints, Draft, Shard
from fabric.errors import FabricError
from training.gang.members import Gang
from training.state.torch_storage import Planner, Reader, Writer, as_ours


def state_of(model: nn.Module, opt: torch.optim.Optimizer) -> dict[str, Any]:
    """What to save, and where to load into: names are those of the model without any wrapper, on any number of ranks."""
    weights, moments = get_state_dict(model, opt)
    return {"model": weights, "optim": moments}


def restore(model: nn.Module, opt: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give the model and the optimizer what was loaded into `state`."""
    set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optim"])


class Sharded:
    """A gang's checkpoints, of which every rank writes and reads its part. All ranks call, in the same order."""

    def __init__(self, checkpoints: Checkpoints, gang: Gang) -> None:
        """All ranks give checkpoints of the same epoch and attempt."""
        self._checkpoints, self._gang = checkpoints, gang

    def save(self, step: int, state: Mapping[str, Any], *, meta: Mapping[str, Any] | None = None) -> None:
        """Durable on return, on all ranks. A rank that dies meanwhile leaves the checkpoint before it as it was.

        Raises:
            FabricError: a store refused, or the attempt is fenced; nothing was committed.
            PeerLost: a rank died.
        """
        draft = self._checkpoints.begin(step, token=self._from_first(lambda: secrets.token_hex(6)))
        with self._gang.guarded("saving shards"), as_ours():
            dcp.save(
                dict(state), storage_writer=Writer(draft, self._gang.rank), process_group=self._gang.saving,
                no_dist=self._gang.world == 1,
            )  # fmt: skip
            shards = self._gathered(draft)
        self._from_first(lambda: self._checkpoints.commit(draft, shards=shards, meta=meta, world=self._gang.world))

    def load(self, state: dict[str, Any]) -> int | None:
        """Fill `state` in place from the newest checkpoint that is whole; its step, or None if there is none.

        Raises:
            CheckpointDamaged: none of them is whole.
            Conflict: code `checkpoint_of_another_model`: it has not what `state` asks for.
        """
        manifest = self._from_first(self._checkpoints.newest)
        if manifest is None:
            return None
        with self._gang.guarded("loading shards"), as_ours():
            dcp.load(
                state, storage_reader=Reader(lambda name: self._checkpoints.read(manifest, name)), planner=Planner(),
                process_group=self._gang.saving, no_dist=self._gang.world == 1,
            )  # fmt: skip
        step: int = manifest.step
        return step

    def _gathered(self, draft: Draft) -> tuple[Shard, ...]:
        """On rank 0, what all ranks put; every rank's is in the store then."""
        try:
            draft.upload()
            own: Any = draft.shards
        except FabricError as error:
            own = error
        everyones: list[Any] = [own]
        if self._gang.world > 1:
            everyones = [None] * self._gang.world
            dist.all_gather_object(everyones, own, group=self._gang.saving)
        failed = next((found for found in everyones if isinstance(found, FabricError)), None)
        if failed is not None:
            raise failed
        return tuple(shard for shards in everyones for shard in shards)

    def _from_first(self, do: Callable[[], Any]) -> Any:
        """What comes of it on rank 0, on all ranks: a value, or the error."""
        came: Any = None
        if self._gang.rank == 0:
            try:
                came = do()
            except FabricError as error:
                came = error
        box = [came]
        if self._gang.world > 1:
            with self._gang.guarded("hearing from rank 0"):
                dist.broadcast_object_list(box, 0, group=self._gang.saving)
        if isinstance(box[0], FabricError):
            raise box[0]
        return box[0]
