"""JSON that no two readers read differently."""

import json
from typing import Any

from .report import Wrong, require

INT64 = range(-(2**63), 2**63)


def loads(text: str | bytes) -> Any:
    """JSON in which every key stands once, and every number is a whole one of 64 bits: else two readers may differ."""
    numbers: Any = {"parse_int": _int64, "parse_float": _no_number, "parse_constant": _no_number}
    return json.loads(text, object_pairs_hook=_once, **numbers)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    require(len(found) == len(pairs), f"a key stands twice: {sorted(key for key, _ in pairs)}"[:200])
    return found


def _int64(digits: str) -> int:
    require(len(digits) <= 20 and int(digits) in INT64, f"a number is beyond 64 bits: {digits[:30]}")  # noqa: PLR2004
    return int(digits)


def _no_number(text: str) -> Any:
    raise Wrong(f"a number is no integer: {text[:30]}")
