"""Digests of many tensors at once: small ones of a kind are laid end to end and read as one, at a quarter of the cost."""

import sys
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, Final

from training.state.plain import digest

_SMALL_BYTES: Final = 64 * 1024
_ROW_BYTES: Final = 16 * 1024 * 1024
_WHOLE_BYTES: Final = 4
_KINDS: Final = frozenset({"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16"})
"""What can be laid end to end wherever torch runs."""


def digests(tensors: Iterable[Any]) -> list[Hashable]:
    """What changes when any bit of any of these dense tensors does, and mostly when values change places, in one or among them."""
    rows: dict[str, list[Any]] = {}
    found: list[Hashable] = []
    for tensor in tensors:
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind in _KINDS and tensor.device.type == "cpu" and tensor.numel() * tensor.element_size() <= _SMALL_BYTES:
            rows.setdefault(kind, []).append(tensor.detach())
        else:
            found.append(digest(tensor))
    return [*found, *((digest(row), _by_place(row)) for of_kind in rows.values() for row in _rows(of_kind))]


def _rows(tensors: list[Any]) -> Iterator[Any]:
    torch, waiting, size = sys.modules["torch"], list[Any](), 0
    for tensor in tensors:
        waiting.append(tensor.reshape(-1))
        size += tensor.numel() * tensor.element_size()
        if size >= _ROW_BYTES:
            yield torch.cat(waiting)
            waiting, size = [], 0
    if waiting:
        yield torch.cat(waiting)


def _by_place(row: Any) -> int:
    """A sum of its bits, each counted by where it is: whole numbers, which overflow always alike."""
    torch = sys.modules["torch"]
    whole = torch.int64 if row.element_size() > _WHOLE_BYTES else torch.int32
    bits = row.view(whole) if row.element_size() >= _WHOLE_BYTES else row.view(torch.int16).to(torch.int32)
    odd = torch.arange(1, 2 * len(bits), 2, dtype=whole)
    return int((bits * odd).sum(dtype=torch.int64))
