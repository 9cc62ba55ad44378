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

import io
import pickle
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from fabric.checkpoints import Checkpoints, Draft, Manifest, Shard
from fabric.errors import CheckpointDamaged, Conflict, FabricError
from training import layout
from training.gang import Gang
from training.layout import Span

_SHARD_BYTES: Final = 256 * 2**20
"""A rank's shards end after so much: what a save holds in memory besides the model."""


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
        with self._gang.guarded("saving shards"), _as_ours():
            dcp.save(
                dict(state), storage_writer=_Writer(draft, self._gang.rank), process_group=self._gang.saving,
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
        with self._gang.guarded("loading shards"), _as_ours():
            dcp.load(
                state, storage_reader=_Reader(self._checkpoints, manifest), planner=_Planner(),
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


@contextmanager
def _as_ours() -> Iterator[None]:
    """Torch wraps what went wrong on any rank; let our own errors out, and call the rest what it is."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a gang of one is no mistake
            yield
    except CheckpointException as failed:
        causes = [cause for cause, _ in failed.failures.values()]
        ours = next((cause for cause in causes if isinstance(cause, FabricError)), None)
        if ours is not None:
            raise ours from failed
        said = str(causes[0]).splitlines()[0][:200]
        raise Conflict(
            f"the model and the checkpoint don't fit: {said}. Resume with the model it was saved from, or start another job",
            code="checkpoint_of_another_model",
        ) from failed


class _Writer(StorageWriter):  # type: ignore[misc]  # torch is not type-checked here
    """Packs the parts that this rank writes into shards of a draft; rank 0 adds the layout."""

    def __init__(self, draft: Draft, rank: int) -> None:
        super().__init__()
        self._draft, self._rank = draft, rank

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        written, packed, number = [], bytearray(), 0
        for item in plan.items:
            data = _bytes_of(planner.resolve_data(item))
            if packed and len(packed) + len(data) > _SHARD_BYTES:
                self._draft.put(self._name(number), packed)
                packed, number = bytearray(), number + 1
            span = Span(self._name(number), len(packed), len(data))
            packed += data
            written.append(WriteResult(index=item.index, size_in_bytes=len(data), storage_data=span))
        if packed:
            self._draft.put(self._name(number), packed)
        return _done(written)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._draft.put(layout.SHARD, layout.encoded(metadata, chain.from_iterable(results)))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return checkpoint_id is None

    def _name(self, number: int) -> str:
        return f"rank-{self._rank}/{number:05d}"


class _Reader(StorageReader):  # type: ignore[misc]
    """Reads the parts that this rank needs, each shard once and verified."""

    def __init__(self, checkpoints: Checkpoints, manifest: Manifest) -> None:
        super().__init__()
        self._checkpoints, self._manifest = checkpoints, manifest
        self._metadata, self._spans = layout.decoded(checkpoints.read(manifest, layout.SHARD))

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        return self._metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        wanted: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            wanted.setdefault(self._spans[item.storage_index].shard, []).append(item)
        for shard, items in wanted.items():
            data = memoryview(self._checkpoints.read(self._manifest, shard))
            for item in items:
                span = self._spans[item.storage_index]
                self._give(item, data[span.start : span.start + span.size], planner)
        return _done(None)

    def _give(self, item: ReadItem, data: memoryview, planner: LoadPlanner) -> None:
        if item.type is LoadItemType.BYTE_IO:
            planner.load_bytes(item, io.BytesIO(data))
            return
        box = layout.tensor_of(self._metadata, item.storage_index, data)
        target = planner.resolve_tensor(item).detach()
        wanted = (slice(at, at + length) for at, length in zip(item.storage_offsets, item.lengths, strict=True))
        target.copy_(box[tuple(wanted)])
        planner.commit_tensor(item, target)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return checkpoint_id is None


class _Planner(DefaultLoadPlanner):  # type: ignore[misc]
    """Torch's own, but for values that are no tensors: it would unpickle them, whatever they are."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        try:
            kept = torch.load(value, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointDamaged(
                f"{read_item.dest_index.fqn} is no plain value: {str(error).splitlines()[0][:120]}",
                code="value_not_plain",
            ) from error
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], kept)


def _bytes_of(data: Tensor | io.BytesIO) -> Any:
    if isinstance(data, io.BytesIO):
        return data.getbuffer()
    return memoryview(data.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _done(value: Any) -> Any:
    future: Any = Future()
    future.set_result(value)
    return future
