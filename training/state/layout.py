"""What lies where in a sharded checkpoint, as JSON: the place of torch's `.metadata`, which is a pickle and runs code.

A tensor is boxes of one array (offsets and sizes), each some bytes of a shard; any other value is bytes of a shard. Knows
torch's own description (`Metadata`) and makes it from ours and back; the bytes themselves are the caller's.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from fabric.checkpoints.directory import Buffer
from fabric.errors import CheckpointDamaged

FORMAT: Final = 1
SHARD: Final = "layout"
_DTYPES: Final = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


class Span(NamedTuple):
    """Some bytes of a shard."""

    shard: str
    start: int
    size: int


class Box(msgspec.Struct, frozen=True):
    """A part of a tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    span: tuple[str, int, int]


class Array(msgspec.Struct, frozen=True, tag="array"):
    """A tensor, whoever held which part of it."""

    dtype: str
    sizes: tuple[int, ...]
    boxes: tuple[Box, ...]


class Value(msgspec.Struct, frozen=True, tag="value"):
    """Something else, as `torch.save` wrote it; read with `weights_only`."""

    span: tuple[str, int, int]


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """A whole checkpoint."""

    format: int = FORMAT
    entries: dict[str, Array | Value]


def encoded(metadata: Metadata, written: Iterable[WriteResult]) -> bytes:
    """Our description of what torch's planner laid out and the ranks wrote."""
    spans = {result.index: result.storage_data for result in written}
    entries: dict[str, Array | Value] = {}
    for name, kept in metadata.state_dict_metadata.items():
        if isinstance(kept, BytesStorageMetadata):
            entries[name] = Value(tuple(spans[MetadataIndex(name)]))
            continue
        boxes = [
            Box(tuple(chunk.offsets), tuple(chunk.sizes), tuple(spans[MetadataIndex(name, chunk.offsets)]))
            for chunk in kept.chunks
        ]
        entries[name] = Array(str(kept.properties.dtype), tuple(kept.size), tuple(boxes))
    return msgspec.json.encode(Layout(entries=entries))


def decoded(data: Buffer) -> tuple[Metadata, dict[MetadataIndex, Span]]:
    """Torch's description, and where each part lies.

    Raises:
        CheckpointDamaged: code `layout_invalid`: this is no layout that we write.
    """
    try:
        layout = msgspec.json.decode(data, type=Layout)
        if layout.format != FORMAT:
            raise msgspec.ValidationError(f"format {layout.format}, this version reads {FORMAT}")
        described = {name: _described(entry) for name, entry in layout.entries.items()}
    except (msgspec.DecodeError, KeyError) as error:
        raise CheckpointDamaged(
            f"the layout of a sharded checkpoint can't be read: {error}", code="layout_invalid"
        ) from error
    spans: dict[MetadataIndex, Span] = {}
    for name, entry in layout.entries.items():
        if isinstance(entry, Value):
            spans[MetadataIndex(name)] = Span(*entry.span)
        else:
            spans |= {MetadataIndex(name, box.offsets): Span(*box.span) for box in entry.boxes}
    return Metadata(state_dict_metadata=described), spans


def tensor_of(metadata: Metadata, index: MetadataIndex, data: memoryview) -> Tensor:
    """A part of a tensor, from its bytes."""
    kept = metadata.state_dict_metadata[index.fqn]
    sizes = next(chunk.sizes for chunk in kept.chunks if index.offset is None or chunk.offsets == index.offset)
    if not data:
        return torch.empty(sizes, dtype=kept.properties.dtype)
    return torch.frombuffer(bytearray(data), dtype=kept.properties.dtype).reshape(sizes)


def _described(entry: Array | Value) -> Any:
    if isinstance(entry, Value):
        return BytesStorageMetadata()
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=_DTYPES[entry.dtype]),
        size=torch.Size(entry.sizes),
        chunks=[ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)) for box in entry.boxes],
    )
