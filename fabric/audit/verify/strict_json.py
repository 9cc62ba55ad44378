"""JSON that no two readers read differently."""

import json
from typing import Any

from .report import Wrong

INT64 = range(-(2**63), 2**63)
_SHORT = 19


def loads(text: str | bytes) -> Any:
    """JSON in which every key stands once, and every number is a whole one of 64 bits: else two readers may differ."""
    return _decoder.decode(text if isinstance(text, str) else text.decode())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Wrong(f"a key stands twice: {sorted(key for key, _ in pairs)}"[:200])
    return found


def _int64(digits: str) -> int:
    if len(digits) < _SHORT or (len(digits) <= _SHORT + 1 and int(digits) in INT64):
        return int(digits)
    raise Wrong(f"a number is beyond 64 bits: {digits[:30]}")


def _no_number(text: str) -> Any:
    raise Wrong(f"a number is no integer: {text[:30]}")


_decoder = json.JSONDecoder(
    object_pairs_hook=_once, parse_int=_int64, parse_float=_no_number, parse_constant=_no_number
)
