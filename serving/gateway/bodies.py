"""A request's JSON, read so strictly that engine and gateway can't read it differently.

Doubled keys, `NaN`, lone surrogates, numbers that no double holds and nesting beyond reason are refused, and what goes on
to the engine is written anew from what was read here.
"""

import codecs
import json
import math
from typing import Any, Final

import msgspec

from fabric.errors import InvalidRequest
from serving.limits import DEPTH_MAX, VALUES_MAX

Body = dict[str, Any]
_PART_BYTES: Final = 3


def parse(body: bytes) -> Body:
    """The object a request's body is.

    Raises:
        InvalidRequest: `invalid_json`, with where and why; `limit_exceeded` where it has too many parts.
    """
    try:
        value = _DECODER.decode(body.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _invalid(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _invalid(f"it nests deeper than {DEPTH_MAX} levels") from None
    except ValueError as error:  # of our own hooks, and of integers with thousands of digits
        raise _invalid(str(error)) from None
    if not isinstance(value, dict):
        raise _invalid(f"it is {_kind(value)}, where an object belongs")
    if not _is_small(body):
        _check_shape(value)
    return value


def write(body: Body) -> bytes:
    """The body as it goes on to the engine.

    Raises:
        InvalidRequest: it holds half a surrogate pair, which no UTF-8 says.
    """
    try:
        return msgspec.json.encode(body)
    except (UnicodeEncodeError, OverflowError, msgspec.MsgspecError) as error:
        raise _invalid(f"it holds what can't be passed on: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> Body:
    read = dict(pairs)
    if len(read) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:100]!r} is there twice")
    return read


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is beyond what a double holds")
    return number


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)


def _is_small(body: bytes) -> bool:
    """Whether a body can't have too many parts or levels: each part but a number has three bytes or more with what separates
    it, each level begins with a bracket.
    """
    return len(body) <= _PART_BYTES * VALUES_MAX and body.count(b"{") + body.count(b"[") <= DEPTH_MAX


def _check_shape(value: Any) -> None:
    """Let pass what is neither too deep nor made of too many parts. Numbers in lists count for nothing: a prompt may be
    tokens.
    """
    layer, count = [value], 0
    for _ in range(DEPTH_MAX):
        inner: list[Any] = []
        for whole in layer:
            if isinstance(whole, dict):
                count += len(whole)
                inner.extend(part for part in whole.values() if isinstance(part, dict | list))
            else:
                parts = [part for part in whole if not isinstance(part, int | float)]
                count += len(parts)
                inner.extend(part for part in parts if isinstance(part, dict | list))
        if count > VALUES_MAX:
            raise InvalidRequest(
                f"the request has more than {VALUES_MAX} messages, texts and other values: send fewer, or put several into"
                " one text",
                code="limit_exceeded", limit=VALUES_MAX,
            )  # fmt: skip
        if not inner:
            return
        layer = inner
    raise _invalid(f"it nests deeper than {DEPTH_MAX} levels")


def _kind(value: Any) -> str:
    names = {str: "a string", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _invalid(why: str) -> InvalidRequest:
    return InvalidRequest(f"the body is not the JSON object it must be: {why}", code="invalid_json")
