"""Values that can be kept without pickling code: tensors, arrays, numbers, text and containers of them.

`plain(value)` checks and copies in one walk; what it returns loads under `torch.load(weights_only=True)`, so that nobody's
checkpoint runs code. What is something else is refused by its path ("sched.milestones[2]"), not found out at the first
eviction. `restored` undoes what the walk had to rewrite (numpy arrays).
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

from fabric.errors import InvalidRequest

_ARRAY: Final = "\0ndarray"
_DTYPE: Final = "\0dtype"
_DEPTH_MAX: Final = 64


def clone(tensor: Any) -> Any:
    """A copy that later changes don't reach, on the same device."""
    return tensor.detach().clone()


def shared(tensor: Any) -> Any:
    """The tensor itself, without its graph: for who holds it still while it is written."""
    return tensor.detach()


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
        return taken if isinstance(value, list) else (tuple(taken) if isinstance(value, tuple) else set(taken))
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
    if _is_torch_word(value):
        return value
    raise _refused(path, value, "it is not a tensor, an array, a number, text or a container of them")


def _plain_mapping(value: Mapping[Any, Any], path: str, tensor: Callable[[Any], Any], depth: int) -> dict[Any, Any]:
    kept: dict[Any, Any] = OrderedDict() if isinstance(value, OrderedDict) else {}
    for key, item in value.items():
        if type(key) not in {bool, int, float, str, bytes, tuple}:
            raise _refused(f"{path}'s key {str(key)[:40]!r}", key, "a key must be a number, text or a tuple")
        kept[key] = _plain(item, f"{path}.{key}" if isinstance(key, str) else f"{path}[{key!r}]", tensor, depth - 1)
    return kept


def _plain_array(value: Any, path: str) -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None or value.dtype.hasobject or value.dtype.kind not in "biufc":
        raise _refused(path, value, f"an array of {value.dtype} can't be kept: use numbers")
    whole = value.copy(order="C").reshape(-1).view("uint8") if value.size else value.reshape(-1).astype("uint8")
    return {_ARRAY: torch.from_numpy(whole), _DTYPE: value.dtype.str, "shape": list(value.shape)}


def restored(value: Any) -> Any:
    """What `plain` took, as it was."""
    if isinstance(value, dict):
        if _ARRAY in value:
            flat = value[_ARRAY].numpy().copy()
            return flat.view(value[_DTYPE]).reshape(value["shape"])
        for key, item in value.items():
            value[key] = restored(item)
        return value
    if isinstance(value, list):
        return [restored(item) for item in value]
    if type(value) is tuple:
        return tuple(restored(item) for item in value)
    return value


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_torch_word(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.dtype | torch.Size | torch.device)


def _refused(path: str, value: Any, why: str) -> InvalidRequest:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return InvalidRequest(
        f"{path} is a {kind} and can't be kept in a checkpoint: {why}. Leave it out of the state, or give the object that "
        "holds it a state_dict() of plain values",
        code="untrackable_state",
        path=path,
        kind=kind,
    )
