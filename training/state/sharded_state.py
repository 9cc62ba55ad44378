"""A state of which each rank holds a part (DTensors of FSDP2, HSDP, tensor parallelism), as what one rank keeps of it.

`parted` takes a state apart: each DTensor becomes this rank's own values, with where in the whole they belong. Of values
that several ranks hold (HSDP's replicas) one rank keeps them for all. `merged` makes one layout of what all ranks have kept,
and finds out whether it is whole. `joined` puts a state together for the ranks of now: a rank that held the same part before
takes its own, any other part is read from wherever it lies, by torch's distributed checkpointing. No bits change by it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from fabric.checkpoints.directory import Buffer
from fabric.errors import Conflict, InvalidRequest
from training.state import shards
from training.state.layout import Array, Box, Value
from training.state.torch_storage import Reader, as_ours

_TAG: Final = "\0part"
_REPLICATED: Final = -1
Path = tuple[Any, ...]
"""The keys that lead to a value."""


class Part(NamedTuple):
    """What a rank holds of a tensor that no rank holds whole."""

    name: str
    dtype: str
    sizes: tuple[int, ...]
    """Of the whole."""
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    held: Tensor | None
    """None = another rank holds them too, and keeps them for all."""


class Kept(NamedTuple):
    """A part, and where its bytes lie: (shard, start, size); None = another rank keeps them."""

    part: Part
    span: tuple[str, int, int] | None


def parted(state: Any) -> tuple[Any, list[Part]]:
    """The state with each DTensor as this rank's part of it, and these parts.

    Raises:
        InvalidRequest: `state_not_kept`: a DTensor whose values are sums that are still to be made.
    """
    parts: list[Part] = []

    def taken(value: Any, path: Path) -> Any:
        if not isinstance(value, DTensor):
            return value
        part = _part(value, "/".join(map(str, path)))
        parts.append(part)
        where = [placement.dim if type(placement) is Shard else _REPLICATED for placement in value.placements]
        known = all(type(placement) in {Shard, Replicate} for placement in value.placements)
        return {_TAG: part.name, **part._asdict(), "placements": where if known else None}

    return _mapped(state, (), taken), parts


def _part(tensor: DTensor, name: str) -> Part:
    if any(placement.is_partial() for placement in tensor.placements):
        raise InvalidRequest(
            f"{name} can't be saved: its values are partial sums that its ranks have not added up. Call redistribute() on it, "
            "or leave it out",
            code="state_not_kept",
            where=name,
        )
    lengths, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    local = tensor.detach().to_local()
    here = tensor.device_mesh.get_coordinate()
    is_first = here is not None and all(
        at == 0 or not placement.is_replicate() for at, placement in zip(here, tensor.placements, strict=True)
    )
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Part(name, dtype, tuple(tensor.shape), tuple(offsets), tuple(lengths), local if is_first else None)


def part_name(rank: int) -> str:
    """Of the shard that holds a rank's part of the state."""
    return f"rank-{rank}/state"


def kept_in(data: Buffer, shard: str) -> list[Kept]:
    """The parts of a state that was `parted` and laid out as a shard of that name.

    Raises:
        CheckpointDamaged: these are not the bytes of a shard.
    """
    return [
        Kept(
            Part(**{key: value[key] for key in Part._fields if key != "held"}, held=None),
            None if value["held"] is None else (shard, *value["held"]),
        )
        for value, _ in _walked(shards.places(data), ())
        if isinstance(value, dict) and _TAG in value
    ]


def merged(everyones: Iterable[Kept]) -> dict[str, Array | Value]:
    """One layout of all ranks' parts.

    Raises:
        InvalidRequest: `state_not_kept`: two ranks mean different tensors by one name, or not all of a tensor is there.
    """
    about: dict[str, Part] = {}
    boxes: dict[str, dict[tuple[int, ...], Box]] = {}
    for part, span in everyones:
        first, found = about.setdefault(part.name, part), boxes.setdefault(part.name, {})
        if (first.dtype, first.sizes) != (part.dtype, part.sizes):
            raise unkept(part.name, "is the name of different tensors on different ranks: rename them")
        if span is not None and _count(part.lengths):  # of ranks that hold the same without saying so, the first
            found.setdefault(part.offsets, Box(part.offsets, part.lengths, span))
    for name, part in about.items():
        held, values = sum(_count(box.sizes) for box in boxes[name].values()), _count(part.sizes)
        if held != values:
            raise unkept(name, f"has {values} values, and the ranks of this session hold {held} of them")
    return {name: Array(f"torch.{part.dtype}", part.sizes, tuple(boxes[name].values())) for name, part in about.items()}


def joined(state: Any, *, like: Callable[[Path], Any], read: Callable[[str], Buffer]) -> Any:
    """The state for the ranks of now.

    Args:
        state: what was `parted`, decoded; or one without parts.
        like: the tensor that is to take what lies at a path, or has its shape; None = there is none.
        read: a shard of the checkpoint by its name, verified.

    Raises:
        Conflict: `checkpoint_of_another_run`: this run has nothing that would take it.
        CheckpointDamaged: a shard is not what was saved.
    """
    missing: dict[str, Tensor] = {}

    def found(value: Any, path: Path) -> Any:
        if isinstance(value, Tensor) and isinstance(wanted := like(path), DTensor) and value.shape == wanted.shape:
            return cut(value, wanted)
        if not isinstance(value, Mapping) or _TAG not in value:
            return value
        target = _target(value, like(path), path)
        if _holds_all(target, value):
            _local(target).copy_(value["held"])
        elif _local(target).numel():
            missing[value[_TAG]] = target
        return target

    whole = _mapped(state, (), found)
    if missing:
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        with as_ours():
            dcp.load(missing, storage_reader=Reader(read), planner=planner, no_dist=True)
    return whole


def _holds_all(target: Tensor, kept: Mapping[str, Any]) -> bool:
    """Whether this rank held before what it is to hold now."""
    lengths, offsets = _place(target)
    return kept["held"] is not None and (tuple(kept["lengths"]), tuple(kept["offsets"])) == (lengths, offsets)


def _place(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if not isinstance(tensor, DTensor):
        return tuple(tensor.shape), (0,) * tensor.dim()
    lengths, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(lengths), tuple(offsets)


def _local(tensor: Tensor) -> Tensor:
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local


def _target(kept: Mapping[str, Any], wanted: Any, path: Path) -> Tensor:
    """New memory for it, as the run wants it."""
    name, sizes = kept[_TAG], torch.Size(kept["sizes"])
    dtype = getattr(torch, kept["dtype"])
    if not isinstance(wanted, Tensor):
        raise _of_another(name, "this run has nothing of that name")
    if not isinstance(wanted, DTensor):
        return torch.empty(sizes, dtype=dtype, device=wanted.device)
    placements = wanted.placements
    if sizes != wanted.shape:
        where = kept["placements"]
        if where is None or len(where) != len(placements):
            raise _of_another(
                name, f"it has {tuple(sizes)} there, and {'/'.join(map(str, path))} {tuple(wanted.shape)}"
            )
        placements = tuple(Replicate() if dim == _REPLICATED else Shard(dim) for dim in where)
    lengths, _ = compute_local_shape_and_global_offset(sizes, wanted.device_mesh, placements)
    local = torch.empty(lengths, dtype=dtype, device=wanted.to_local().device)
    stride = torch.empty(sizes, device="meta").stride()
    return DTensor.from_local(local, wanted.device_mesh, placements, run_check=False, shape=sizes, stride=stride)


def cut(whole: Tensor, wanted: DTensor) -> Tensor:
    """The part of this rank in a tensor that was kept whole."""
    lengths, offsets = _place(wanted)
    box = tuple(slice(at, at + length) for at, length in zip(offsets, lengths, strict=True))
    local = whole[box].clone().to(wanted.to_local().device) if _count(lengths) else whole.new_empty(lengths)
    return DTensor.from_local(
        local, wanted.device_mesh, wanted.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _count(sizes: tuple[int, ...]) -> int:
    return math.prod(sizes)


def _mapped(node: Any, path: Path, change: Callable[[Any, Path], Any]) -> Any:
    """The containers anew, with `change` of every value; what it replaces isn't looked into."""
    changed = change(node, path)
    if changed is not node:
        return changed
    if isinstance(node, dict):
        return {key: _mapped(value, (*path, key), change) for key, value in node.items()}
    if type(node) in {list, tuple}:
        return type(node)(_mapped(value, (*path, at), change) for at, value in enumerate(node))
    return node


def _walked(node: Any, path: Path) -> Iterator[tuple[Any, Path]]:
    yield node, path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _walked(value, (*path, key))
    elif type(node) in {list, tuple}:
        for at, value in enumerate(node):
            yield from _walked(value, (*path, at))


def tensors_of(state: Any) -> dict[Path, Tensor]:
    """All tensors in it, by the keys that lead to them."""
    return {path: value for value, path in _walked(state, ()) if isinstance(value, Tensor)}


def unkept(name: str, why: str) -> InvalidRequest:
    """What to say of a tensor whose parts don't make it."""
    return InvalidRequest(
        f"{name} can't be saved: it {why}; or save it with training.sharded", code="state_not_kept", where=name
    )


def _of_another(name: str, why: str) -> Conflict:
    return Conflict(
        f"the checkpoint is of another {name}: {why}. Build it as it was when it was saved, or begin in another directory",
        code="checkpoint_of_another_run",
        name=name,
    )
