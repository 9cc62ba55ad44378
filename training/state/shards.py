"""Tensors and plain containers as the bytes of a shard, and back, without running anything that the bytes say.

    data = dump({"model": model.state_dict(), "opt": opt.state_dict(), "step": 140})
    state = load(data)                                  # on the CPU; or load(data, device="cuda")

A shard is a head (what the containers are, and which tensor is where) and the tensors' bytes as they lie in memory. Loading a
stranger's shard can be refused but can't run code. What can be kept: None, bool, int of any
size, float, str, bytes, list, tuple, dict with keys of those, and tensors; anything else is refused where it is saved, by its
name in the state. Dense tensors of any dtype are their bytes. Sparse and quantized ones and subclasses are the pickle that
`torch.save` makes of them, if torch also loads it with `weights_only`, which runs nothing but what the process itself has
registered.
Tensors that share memory as a whole (tied weights) still do after loading.
Nothing of a device but the values is kept, so what was saved on one kind can be loaded on another.
"""

import hashlib
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
import torch

from fabric.checkpoints.directory import Buffer
from fabric.errors import CheckpointDamaged, InvalidRequest

_MAGIC: Final = b"FABRIC-SHARD-1\n"
_ALIGNED: Final = 64
_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**64 - 1
_DEPTH_MAX: Final = 100
_DTYPES: Final = {
    str(dtype).removeprefix("torch."): dtype
    for name in dir(torch)
    if isinstance(dtype := getattr(torch, name), torch.dtype) and not str(dtype).startswith(("torch.q", "torch.bits"))
}


class _Tensor(msgspec.Struct, frozen=True, array_like=True):
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class _Head(msgspec.Struct, frozen=True, array_like=True):
    tree: Any
    tensors: tuple[_Tensor, ...]


def dump(state: Any, *, into: memoryview | None = None) -> memoryview:
    """The bytes of a shard: one copy of every tensor, from whatever device it is on.

    Args:
        state: tensors and plain containers.
        into: memory to use again if it is large enough: new memory costs as much time as the copy. Must not be in use.

    Raises:
        InvalidRequest: something in it can't be kept (`state_not_kept`): it is named.
    """
    return gather(plan(state), into=into)


@dataclass(slots=True)
class Plan:
    """What a shard will hold: its head, and tensors that are still where they were, on their devices."""

    head: bytes
    tensors: list[torch.Tensor] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    size: int = 0


def plan(state: Any) -> Plan:
    """Lay a shard out without copying: until `gather` the tensors must not change."""
    found: dict[tuple[Any, ...], int] = {}
    planned, laid, end = Plan(b""), list[_Tensor](), 0

    def place(detached: torch.Tensor) -> int:
        nonlocal end
        identity = (
            detached.data_ptr(),
            detached.dtype,
            tuple(detached.shape),
            tuple(detached.stride()),
            str(detached.device),
        )
        if detached.numel() and identity in found:
            return found[identity]
        number = found[identity] = len(laid)
        start = -(-end // _ALIGNED) * _ALIGNED
        size = detached.numel() * detached.element_size()
        laid.append(_Tensor(_name_of(detached.dtype), tuple(detached.shape), start, size))
        planned.tensors.append(detached)
        planned.offsets.append(start)
        end = start + size
        return number

    tree = _packed(state, "state", place, 0)
    head = msgspec.msgpack.encode(_Head(tree, tuple(laid)))
    opening = _MAGIC + len(head).to_bytes(8, "little") + head
    planned.head = opening + bytes(-len(opening) % _ALIGNED)
    planned.size = len(planned.head) + end
    return planned


def gather(planned: Plan, *, into: memoryview | None = None) -> memoryview:
    """The bytes, copied from where the tensors are."""
    fits = into is not None and into.nbytes >= planned.size
    data = into[: planned.size] if into is not None and fits else _memory(planned.size)
    data[: len(planned.head)] = planned.head
    end = len(planned.head)
    for tensor, offset in zip(planned.tensors, planned.offsets, strict=True):
        start, size = len(planned.head) + offset, tensor.numel() * tensor.element_size()
        data[end:start] = bytes(start - end)
        end = start + size
        if size:
            target = torch.frombuffer(data, dtype=torch.uint8, count=size, offset=start)
            target.copy_(tensor.contiguous().reshape(-1).view(torch.uint8))
    return data


def _memory(size: int) -> memoryview:
    """Memory that nobody has written to yet: a copy over zeros would be written twice."""
    return memoryview(torch.empty(size, dtype=torch.uint8).numpy())


class Deferred:
    """A dense tensor of a shard that is made when it is called for, the same one each time."""

    def __init__(self, make: Callable[[], torch.Tensor]) -> None:
        self._make, self._made = make, None

    def __call__(self) -> torch.Tensor:
        if self._made is None:
            self._made = self._make()
        return self._made


def made(value: Any) -> Any:
    """The value with its deferred tensors made."""
    if isinstance(value, Deferred):
        return value()
    if isinstance(value, dict):
        return {key: made(item) for key, item in value.items()}
    return type(value)(made(item) for item in value) if type(value) in {list, tuple} else value


def load(data: Buffer, *, device: str | torch.device = "cpu", deferred: bool = False) -> Any:
    """What was dumped. Tensors are new, and writable; if `deferred`, each is made later, for who wants few of them (`made`).

    Raises:
        CheckpointDamaged: these are not the bytes of a shard.
    """
    view = memoryview(data).cast("B")
    head, body = _opened(view)
    later = [Deferred(partial(_tensor, view, body, about, device)) for about in head.tensors]
    return _unpacked(head.tree, later if deferred else [tensor() for tensor in later], 0)


class Place(NamedTuple):
    """Where the bytes of a tensor lie in a shard."""

    start: int
    size: int


def places(data: bytes | bytearray | memoryview) -> Any:
    """What was dumped, with the place of each tensor instead of it: nothing is copied.

    Raises:
        CheckpointDamaged: these are not the bytes of a shard.
    """
    head, body = _opened(memoryview(data).cast("B"))
    return _unpacked(head.tree, [Place(body + about.offset, about.size) for about in head.tensors], 0)


def _opened(view: memoryview) -> tuple[_Head, int]:
    """The head of a shard, and where the bytes of its tensors begin."""
    if bytes(view[: len(_MAGIC)]) != _MAGIC:
        raise _damaged("it does not begin as one")
    start = len(_MAGIC) + 8
    length = int.from_bytes(view[len(_MAGIC) : start], "little")
    try:
        head = msgspec.msgpack.decode(view[start : start + length], type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(f"its head says nothing: {error}") from None
    return head, start + length + (-(start + length) % _ALIGNED)


def fingerprint(state: Mapping[str, Any], *, name: str = "") -> str:
    """What a model is, for `Checkpoints(model=...)`: its name, its size, and a digest of all names, shapes and dtypes."""
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    said = "\n".join(f"{key} {tuple(value.shape)} {_name_of(value.dtype)}" for key, value in sorted(tensors.items()))
    count = sum(value.numel() for value in tensors.values())
    return (
        f"{name or 'model'}[{len(tensors)} tensors, {count} values, {hashlib.sha256(said.encode()).hexdigest()[:12]}]"
    )


def _packed(value: Any, where: str, place: Any, depth: int) -> Any:  # a table
    """A tree of [tag, ...]: nothing in it is taken for what it isn't."""
    if depth > _DEPTH_MAX:
        raise _not_kept(where, value, f"is nested more than {_DEPTH_MAX} deep")
    if value is None or type(value) in {bool, str, bytes, float}:
        return value
    if type(value) is int:
        return value if _INT_MIN <= value <= _INT_MAX else ["i", str(value)]
    if isinstance(value, torch.Tensor):
        return ["t", place(_bytewise(value))] if is_dense(value) else ["o", place(_pickled(value, where))]
    if type(value) in {list, tuple, torch.Size}:
        tag = "l" if type(value) is list else "u"
        return [tag, [_packed(item, f"{where}[{at}]", place, depth + 1) for at, item in enumerate(value)]]
    if isinstance(value, Mapping):
        pairs = []
        for key, item in value.items():
            if not isinstance(key, str | int | float | bool | bytes | tuple | None):
                raise _not_kept(where, key, "is a key")
            inner = f"{where}[{key!r}]"
            pairs.append([_packed(key, inner, place, depth + 1), _packed(item, inner, place, depth + 1)])
        return ["d", pairs]
    if isinstance(value, int | float | str) and hasattr(value, "item"):
        return _packed(value.item(), where, place, depth)
    raise _not_kept(where, value, "is not a tensor or a plain value")


def _unpacked(node: Any, tensors: Sequence[Any], depth: int) -> Any:  # noqa: PLR0911  # a table
    if not isinstance(node, list):
        return node
    if node[:1] == ["o"]:
        return _unpickled(node, tensors)
    if depth > _DEPTH_MAX + 1:
        raise _damaged("its head is nested too deep")
    match node:
        case ["t", int(number)] if 0 <= number < len(tensors):
            return tensors[number]
        case ["l", list(items)]:
            return [_unpacked(item, tensors, depth + 1) for item in items]
        case ["u", list(items)]:
            return tuple(_unpacked(item, tensors, depth + 1) for item in items)
        case ["i", str(digits)] if digits.removeprefix("-").isdecimal():
            return int(digits)
        case ["d", list(pairs)] if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):  # noqa: PLR2004
            try:
                return {_unpacked(k, tensors, depth + 1): _unpacked(v, tensors, depth + 1) for k, v in pairs}
            except TypeError:
                raise _damaged("a key of its head is no key") from None
    raise _damaged("its head holds what no dump writes")


def _tensor(view: memoryview, body: int, about: _Tensor, device: str | torch.device) -> torch.Tensor:
    dtype = _DTYPES.get(about.dtype)
    if dtype is None:
        raise _damaged(f"it holds {about.dtype}, which this torch doesn't know")
    start, end = body + about.offset, body + about.offset + about.size
    empty = torch.empty(0, dtype=dtype)
    count = 1
    for length in about.shape:
        count *= length
    if (
        min(about.shape, default=0) < 0
        or about.offset < 0
        or end > len(view)
        or count * empty.element_size() != about.size
    ):
        raise _damaged("a tensor is not where its head says")
    if not about.size:
        return torch.empty(about.shape, dtype=dtype, device=device)
    raw = torch.frombuffer(bytearray(view[start:end]), dtype=torch.uint8)
    return raw.view(dtype).reshape(about.shape).to(device)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether its bytes are all there is to it."""
    return (
        type(tensor) in {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}
        and tensor.layout == torch.strided
        and not (tensor.is_quantized or tensor.is_meta)
    )


def bytes_of(tensor: torch.Tensor, where: str) -> torch.Tensor:
    """What a shard holds of it, on the host.

    Raises:
        InvalidRequest: `state_not_kept`, with the name that `where` is.
    """
    own = _bytewise(tensor) if is_dense(tensor) else _pickled(tensor, where)
    return own.cpu().contiguous().reshape(-1).view(torch.uint8)


def _bytewise(tensor: torch.Tensor) -> torch.Tensor:
    found = tensor.detach()
    return found.resolve_conj().resolve_neg() if found.is_complex() else found


_proven: Final[set[tuple[Any, ...]]] = set()
"""Kinds of tensors that torch was seen to load again: a kind is tried when it is first met, and that is in a rehearsal."""


def _pickled(tensor: torch.Tensor, where: str) -> torch.Tensor:
    if tensor.is_meta:
        raise _not_kept(where, tensor, "is without data")
    if hasattr(tensor, "device_mesh"):
        raise _not_kept(where, tensor, "is a part of a tensor that other ranks hold the rest of")
    whole = io.BytesIO()
    kind = (type(tensor), tensor.layout, tensor.is_quantized)
    try:
        torch.save(tensor.detach(), whole)
        if kind not in _proven:
            whole.seek(0)
            torch.load(whole, weights_only=True)
            _proven.add(kind)
    except (pickle.PickleError, RuntimeError, TypeError, AttributeError, NotImplementedError, ValueError) as error:
        raise _not_kept(
            where,
            tensor,
            f"is none that torch loads with weights_only ({type(error).__name__}). Register what it is made of by "
            "torch.serialization.add_safe_globals([...]) if you trust it, or leave it out",
        ) from error
    return torch.frombuffer(whole.getbuffer(), dtype=torch.uint8).clone()


def _unpickled(node: list[Any], tensors: Sequence[Any]) -> Any:
    match node:
        case ["o", int(number)] if 0 <= number < len(tensors):
            held = made(tensors[number])
            if isinstance(held, Place):
                return held
        case _:
            raise _damaged("its head holds what no dump writes")
    try:
        found = torch.load(io.BytesIO(held.cpu().numpy().tobytes()), weights_only=True, map_location=held.device)
    except (pickle.PickleError, RuntimeError, EOFError) as error:
        raise _damaged(f"torch does not load one of them here ({str(error).splitlines()[0]})") from error
    if not isinstance(found, torch.Tensor):
        raise _damaged("it holds something else where its head says a tensor")
    return found


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _not_kept(where: str, value: Any, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{where} can't be saved: {type(value).__module__}.{type(value).__qualname__} {why}. A checkpoint holds tensors, plain"
        " numbers, strings, bytes, lists, tuples and dicts: turn it into those",
        code="state_not_kept",
        where=where,
        kind=type(value).__qualname__,
    )


def _damaged(why: str) -> CheckpointDamaged:
    return CheckpointDamaged(f"these bytes are not a shard of tensors: {why}", code="shard_unreadable")
