"""Values that can be kept without code: tensors, arrays, numbers, text and containers of them.

`plain(value)` checks and copies in one walk; what it returns is what `training.shards` keeps, so that nobody's checkpoint
runs code. What is something else is refused by its path ("sched.milestones[2]") before the run begins, not at the first
eviction. `restored` undoes what the walk had to rewrite: arrays, sets, dtypes.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from fabric.errors import InvalidRequest

_ARRAY: Final = "\0ndarray"
_DTYPE: Final = "\0dtype"
_SET: Final = "\0set"
_TAGS: Final = frozenset({_ARRAY, _DTYPE, _SET})
_DEPTH_MAX: Final = 64


Taken = Callable[[Any], Any]
"""How a tensor is taken into what is kept."""


def clone(tensor: Any) -> Any:
    """A copy that later changes don't reach, on the same device."""
    return tensor.detach().clone()


def shared(tensor: Any) -> Any:
    """The tensor itself, without its graph: for who holds it still while it is written."""
    return tensor.detach()


def is_plain(tensor: Any) -> bool:
    """Whether it is dense, and no subclass with a life of its own."""
    from training.shards import is_dense  # noqa: PLC0415  # needs torch, which not every job loads

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


def not_finite(tensor: Any) -> int:
    """How many of its values are infinite or not a number."""
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
    if value is None or type(value) in {bool, int, float, str, bytes}:
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
    return getattr(sys.modules["torch"], value[_DTYPE])


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _refused(path: str, value: Any, why: str) -> InvalidRequest:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return InvalidRequest(
        f"{path} is a {kind} and can't be kept in a checkpoint: {why}. Leave it out of the state, or give the object that "
        "holds it a state_dict() of plain values",
        code="untrackable_state",
        path=path,
        kind=kind,
    )
