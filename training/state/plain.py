"""Values that can be kept without code: tensors, arrays, numbers, text and containers of them.

`plain(value)` checks and copies in one walk; what it returns is what `training.state.shards` keeps, so that nobody's checkpoint
runs code. What is something else is refused by its path ("sched.milestones[2]") before the run begins, not at the first
eviction. `restored` undoes what the walk had to rewrite: arrays, sets, dtypes. A checkpoint is loaded on the CPU: what an object
does not bring to its place by a `load_state_dict` of its own is taken by `placed`, and given back by `like`.
"""

import copy
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from itertools import chain, repeat
from typing import Any, Final

from fabric.errors import InvalidRequest

_ARRAY: Final = "\0ndarray"
_DTYPE: Final = "\0dtype"
_SET: Final = "\0set"
_TENSOR: Final = "\0tensor"
_TAGS: Final = frozenset({_ARRAY, _DTYPE, _SET, _TENSOR})
_DEPTH_MAX: Final = 64
_SIMPLE: Final = frozenset({bool, int, float, str, bytes, type(None)})


Taken = Callable[[Any], Any]
"""How a tensor is taken into what is kept."""


def clone(tensor: Any) -> Any:
    """A copy that later changes don't reach, on the same device."""
    return tensor.detach().clone()


def shared(tensor: Any) -> Any:
    """The tensor itself, without its graph: for who holds it still while it is written."""
    return tensor.detach()


def placed(tensor: Any) -> dict[str, Any]:
    """A copy, and on what kind of device it lies and whether gradients are wanted of it."""
    return {_TENSOR: clone(tensor), "on": tensor.device.type, "grad": bool(tensor.requires_grad)}


def is_plain(tensor: Any) -> bool:
    """Whether it is dense, and no subclass with a life of its own."""
    from training.state.shards import is_dense  # noqa: PLC0415  # needs torch, which not every job loads

    return is_dense(tensor)


def is_sharded(tensor: Any) -> bool:
    """Whether it is one of torch's DTensors, of which this rank holds a part."""
    return hasattr(tensor, "device_mesh")


def held(tensor: Any) -> Any:
    """What this rank holds of it, without its graph."""
    tensor = tensor.detach()
    return tensor.to_local() if is_sharded(tensor) else tensor


def holds_parts(value: Any) -> bool:
    """Whether there is a sharded tensor in it."""
    if isinstance(value, Mapping):
        return any(holds_parts(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(holds_parts(item) for item in value)
    return _is_tensor(value) and is_sharded(value)


def reals(tensor: Any) -> Any:
    """The real numbers that it is made of: of complex ones, both parts."""
    return sys.modules["torch"].view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def digest(weight: Any) -> tuple[str, int, int]:
    """What changes when any of its bits does, and mostly when values change places: of any type, on any device."""
    torch = sys.modules["torch"]
    values = reals(weight)
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    bits = values.view(whole).reshape(values.shape or (1,))
    if values.element_size() == 1:
        values = bits  # those of 8 bits and less have no sums of their own
    is_exact = weight.device.type == "mps"  # which has neither 64 bits nor hashes
    sums_in = torch.float64 if values.is_floating_point() and not is_exact else None
    mixed = bits.sum(dtype=torch.int64) if is_exact else torch.hash_tensor(bits)
    first = bits[: max(1, len(bits) // 2)].sum(dtype=torch.int64)
    return str(values.sum(dtype=sums_in).item()), mixed.item(), first.item()


def may_diverge(tensor: Any) -> bool:
    """Whether its values can be infinite or not a number."""
    return bool(tensor.is_floating_point() or tensor.is_complex())


def not_finite(tensor: Any) -> int:
    """How many of its values are infinite or not a number; of complex ones, how many parts."""
    tensor = reals(tensor)
    if tensor.element_size() == 1:
        if "float4" in str(tensor.dtype):
            return 0  # it can't say that
        tensor = tensor.float()  # nothing is added up in so few bits
    if tensor.numel() == 0 or bool(tensor.sum().isfinite()):  # either would make the sum so, at half the cost
        return 0
    return int(tensor.numel() - tensor.isfinite().sum())


def plain(value: Any, path: str, *, tensor: Callable[[Any], Any] = clone) -> Any:
    """The value as what can be kept, tensors taken by `tensor`.

    Raises:
        InvalidRequest: `untrackable_state`, with the path of what can't be kept and its type.
    """
    return _plain(value, path, tensor, _DEPTH_MAX)


def _plain(value: Any, path: str, tensor: Callable[[Any], Any], depth: int) -> Any:
    if type(value) in _SIMPLE:
        return value
    if depth == 0:
        raise _refused(path, value, f"it is nested more than {_DEPTH_MAX} deep")
    if _is_tensor(value):
        return tensor(value)
    if isinstance(value, Mapping):
        return _plain_mapping(value, path, tensor, depth)
    if isinstance(value, list | tuple | set | frozenset):
        taken = [_plain(item, f"{path}[{at}]", tensor, depth - 1) for at, item in enumerate(value)]
        if isinstance(value, tuple):
            return tuple(taken)
        return taken if isinstance(value, list) else {_SET: taken}
    return _plain_word(value, path)


def _plain_word(value: Any, path: str) -> Any:
    """Numbers and words of numpy, torch and enums, kept as what they are worth."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _plain_array(value, path)
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.dtype):
        return {_DTYPE: str(value).removeprefix("torch.")}
    raise _refused(path, value, "it is not a tensor, an array, a number, text or a container of them")


def _plain_mapping(value: Mapping[Any, Any], path: str, tensor: Callable[[Any], Any], depth: int) -> dict[Any, Any]:
    kept: dict[Any, Any] = {}
    for key, item in value.items():
        if type(key) not in {bool, int, float, str, bytes, tuple}:
            raise _refused(f"{path}'s key {str(key)[:40]!r}", key, "a key must be a number, text or a tuple")
        if type(item) in _SIMPLE:  # most are, at every boundary, and a path costs more than they do
            kept[key] = item
        else:
            kept[key] = _plain(item, f"{path}.{key}" if isinstance(key, str) else f"{path}[{key!r}]", tensor, depth - 1)
    return kept


def _plain_array(value: Any, path: str) -> dict[str, Any]:
    numpy, torch = sys.modules["numpy"], sys.modules.get("torch")
    if torch is None or value.dtype.hasobject or value.dtype.kind not in "biufc":
        raise _refused(path, value, f"an array of {value.dtype} can't be kept: use numbers")
    whole = numpy.frombuffer(value.tobytes(), "uint8").copy()
    return {_ARRAY: torch.from_numpy(whole), _DTYPE: value.dtype.str, "shape": list(value.shape)}


def restored(value: Any) -> Any:
    """What `plain` took, as it was."""
    if isinstance(value, dict):
        if not _TAGS.isdisjoint(value):
            return _restored_word(value)
        return {key: restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [restored(item) for item in value]
    return tuple(restored(item) for item in value) if type(value) is tuple else value


def _restored_word(value: dict[Any, Any]) -> Any:
    """What the walk had written in another way."""
    if _ARRAY in value:
        return value[_ARRAY].numpy().copy().view(value[_DTYPE]).reshape(value["shape"])
    if _SET in value:
        return set(restored(value[_SET]))
    if _TENSOR in value:
        return _with_gradient(value[_TENSOR].to(_device(value["on"])), is_wanted=value["grad"])
    return getattr(sys.modules["torch"], value[_DTYPE])


def _device(kind: str) -> Any:
    """The device of this machine for what lay on one of that kind; the CPU if it has none."""
    torch = sys.modules["torch"]
    return (torch.accelerator.current_accelerator(check_available=True) if kind != "cpu" else None) or "cpu"


def _with_gradient(tensor: Any, *, is_wanted: bool) -> Any:
    """A leaf, of which gradients are wanted or not; there are none of whole numbers."""
    return tensor.detach().requires_grad_(is_wanted and may_diverge(tensor))


def like(value: Any, own: Any, kept: Any = None) -> Any:
    """What was `restored`, on the devices and in the kinds of containers of what the script has there now, its `own`.

    `kept` is the value before it was restored: what was `placed` knows whether gradients are wanted, else `own` says it.
    """
    if _is_tensor(value):
        return _like_tensor(value, own, knows=isinstance(kept, dict)) if _is_tensor(own) else value
    if isinstance(value, list | tuple) and isinstance(own, list | tuple):
        parts = kept if isinstance(kept, list | tuple) else ()
        owns = zip(value, chain(own, repeat(None)), chain(parts, repeat(None)), strict=False)
        items = [like(*each) for each in owns]
        made = getattr(own, "_make", None)
        return made(items) if made is not None and len(items) == len(own) else type(value)(items)
    if isinstance(value, dict) and isinstance(own, Mapping):
        part_of = kept.get if isinstance(kept, dict) else {}.get
        return _like_mapping({key: like(item, own.get(key), part_of(key)) for key, item in value.items()}, own)
    return frozenset(value) if isinstance(value, set) and isinstance(own, frozenset) else value


def _like_tensor(value: Any, own: Any, *, knows: bool) -> Any:
    found = _with_gradient(value.detach().to(own.device), is_wanted=(value if knows else own).requires_grad)
    parameter = sys.modules["torch"].nn.Parameter
    return parameter(found, requires_grad=found.requires_grad) if type(own) is parameter else found


def _like_mapping(items: dict[Any, Any], own: Mapping[Any, Any]) -> Any:
    if type(own) is dict or not isinstance(own, MutableMapping):
        return items
    try:
        made = copy.copy(own)
        made.clear()
        made.update(items)
    except Exception:  # noqa: BLE001  # a class of anybody's, which may not let itself be filled
        return items
    return made


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def widest(types: Iterable[Any]) -> Any:
    """The type that holds the values of all these without a change."""
    return functools.reduce(sys.modules["torch"].promote_types, types)


def first_line(error: Exception) -> str:
    """What an error of torch says, without the rest."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") or type(error).__name__


def _refused(path: str, value: Any, why: str) -> InvalidRequest:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return InvalidRequest(
        f"{path} is a {kind} and can't be kept in a checkpoint: {why}. Leave it out of the state, or give the object that "
        "holds it a state_dict() of plain values",
        code="untrackable_state",
        path=path,
        kind=kind,
    )
