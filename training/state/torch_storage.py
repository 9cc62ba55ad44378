"""Torch's distributed checkpointing over shards of ours: what its planner wants written goes to a draft, and is read back.

The layout is JSON (`training.state.layout`) instead of torch's pickle, every shard is verified when it is read, and values that
are no tensors are read with `weights_only`. Who writes what, and who reads it, is the planner's to say.
"""

import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from fabric.checkpoints import Draft
from fabric.checkpoints.directory import Buffer
from fabric.errors import CheckpointDamaged, Conflict, FabricError
from training.state import layout
from training.state.layout import Span

_SHARD_BYTES: Final = 256 * 2**20
"""A rank's shards end after so much: what a save holds in memory besides the model."""


@contextmanager
def as_ours() -> Iterator[None]:
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


class Writer(StorageWriter):  # type: ignore[misc]  # torch is not type-checked here
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


class Reader(StorageReader):  # type: ignore[misc]
    """Reads the parts that this rank needs, each shard once and verified."""

    def __init__(self, read: Callable[[str], Buffer]) -> None:
        """`read` gives a shard of the checkpoint by its name, verified."""
        super().__init__()
        self._shard = read
        self._metadata, self._spans = layout.decoded(read(layout.SHARD))

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
            data = memoryview(self._shard(shard))
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


class Planner(DefaultLoadPlanner):  # type: ignore[misc]
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
