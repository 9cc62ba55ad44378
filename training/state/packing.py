"""Plain values as bytes and back, without code in them: what a function's state may be made of.

None, numbers, text, bytes, lists, tuples, sets, dicts and numpy arrays, nested as one likes; each comes back as what it
was. Anything else is refused by its path. msgpack, with extensions for what it doesn't tell apart.
"""

import io
import sys
from collections.abc import Hashable
from typing import Any, Final

import msgspec

from fabric.errors import Conflict, InvalidRequest

_HEAD: Final = b"fabric-state/1\n"
_TUPLE, _SET, _FROZEN, _ARRAY, _WHOLE, _PAIRS = range(1, 7)
_INT64: Final = range(-(2**63), 2**63)
_DEPTH_MAX: Final = 64


def packed(value: Any, path: str = "state") -> bytes:
    """The value as bytes.

    Raises:
        InvalidRequest: `untrackable_state`, with the path of what can't be kept.
    """
    return _HEAD + msgspec.msgpack.encode(_known(value, path, _DEPTH_MAX))


def unpacked(data: bytes) -> Any:
    """What `packed` was given.

    Raises:
        Conflict: `checkpoint_of_another_kind`: these bytes are something else.
    """
    if not data.startswith(_HEAD):
        raise Conflict(
            f"the checkpoint begins with {bytes(data[:16])!r}: it was not saved by a function of this kind. Begin another "
            "job, or load it where it was made",
            code="checkpoint_of_another_kind",
        )
    return msgspec.msgpack.decode(memoryview(data)[len(_HEAD) :], ext_hook=_back)


def _known(value: Any, path: str, depth: int) -> Any:
    if value is None or type(value) in {bool, float, str, bytes}:
        return value
    if type(value) is int:
        return value if value in _INT64 else msgspec.msgpack.Ext(_WHOLE, str(value).encode())
    if depth == 0:
        raise _refused(path, value, f"it is nested more than {_DEPTH_MAX} deep")
    if type(value) is dict:
        return _known_dict(value, path, depth)
    if type(value) in {list, tuple, set, frozenset}:
        items = [_known(item, f"{path}[{at}]", depth - 1) for at, item in enumerate(value)]
        return items if type(value) is list else _extended(_KIND_OF[type(value)], items)
    return _known_array(value, path)


def _known_dict(value: dict[Any, Any], path: str, depth: int) -> Any:
    if all(type(key) is str for key in value):
        return {key: _known(item, f"{path}.{key}", depth - 1) for key, item in value.items()}
    pairs = [
        [_known(key, f"{path}'s key {key!r}", depth - 1), _known(item, f"{path}[{key!r}]", depth - 1)]
        for key, item in value.items()
    ]
    return _extended(_PAIRS, pairs)


def _known_array(value: Any, path: str) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray | numpy.generic):
        raise _refused(path, value, "it is not a number, text, bytes, an array or a container of them")
    if value.dtype.hasobject:
        raise _refused(path, value, "an array of objects has no bytes of its own")
    whole = io.BytesIO()
    numpy.save(whole, value, allow_pickle=False)
    return msgspec.msgpack.Ext(_ARRAY, bytes([isinstance(value, numpy.generic)]) + whole.getvalue())


def _extended(code: int, items: list[Any]) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, msgspec.msgpack.encode(items))


def _back(code: int, data: memoryview) -> Any:
    if code == _WHOLE:
        return int(bytes(data))
    if code == _ARRAY:
        import numpy as np  # noqa: PLC0415  # only where there are arrays

        array = np.load(io.BytesIO(bytes(data[1:])), allow_pickle=False)
        return array[()] if data[0] else array
    items: list[Any] = msgspec.msgpack.decode(data, ext_hook=_back)
    if code == _PAIRS:
        return {key if isinstance(key, Hashable) else tuple(key): item for key, item in items}
    return _MADE[code](items)


_KIND_OF: Final[dict[type, int]] = {tuple: _TUPLE, set: _SET, frozenset: _FROZEN}
_MADE: Final[dict[int, type]] = {code: kind for kind, code in _KIND_OF.items()}


def _refused(path: str, value: Any, why: str) -> InvalidRequest:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    remedy = (
        "train with training.session" if kind.startswith("torch.") else "turn it into plain values before it is kept"
    )
    return InvalidRequest(
        f"{path} is a {kind} and can't be kept: {why}; {remedy}", code="untrackable_state", path=path, kind=kind
    )
