"""A no, said as the client's own protocol says it: OpenAI's error body, or Anthropic's.

    FabricError
    └── InvalidRequest     400
        ├── UnknownRoute   404  nothing is served there
        ├── WrongMethod    405
        ├── TooSlow        408  the request did not arrive in time
        ├── TooLarge       413
        ├── WrongType      415
        └── HeadersTooLarge 431
    FabricError
    ├── EngineFailed       500  the engine did, at this request
    └── ReplicaLost        502  the replica went away while it answered

`code` is a string, as OpenAI's schema has it. `fabric` beside it carries the facts: numbers and limits for machines.
"""

from typing import Any, ClassVar, Final

import msgspec

from fabric.errors import FabricError, InsufficientTokens, InvalidRequest, RateLimited, Unavailable
from serving.gateway import phrases

Headers = list[tuple[bytes, bytes]]

JSON: Final = (b"content-type", b"application/json")
RETRY_S: Final = 1
"""When to try again where nothing better is known."""


class UnknownRoute(InvalidRequest):
    code = "unknown_url"
    http_status: ClassVar[int] = 404


class WrongMethod(InvalidRequest):
    code = "method_not_allowed"
    http_status: ClassVar[int] = 405


class TooSlow(InvalidRequest):
    code = "request_timeout"
    http_status: ClassVar[int] = 408


class TooLarge(InvalidRequest):
    code = "request_too_large"
    http_status: ClassVar[int] = 413


class WrongType(InvalidRequest):
    code = "unsupported_media_type"
    http_status: ClassVar[int] = 415


class HeadersTooLarge(InvalidRequest):
    code = "headers_too_large"
    http_status: ClassVar[int] = 431


class ReplicaLost(FabricError):
    code = "replica_lost"
    http_status: ClassVar[int] = 502


class EngineFailed(FabricError):
    code = "engine_failed"
    http_status: ClassVar[int] = 500


_OPENAI_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_CODES: Final = {"insufficient_tokens": "insufficient_quota", "unauthenticated": "invalid_api_key"}
_OWN: Final = frozenset({"insufficient_quota", "billing_error"})
"""Types of what our own front says in a stream."""
_DATA: Final = b"data: "
BROKE_OFF: Final = "the engine failed while it wrote this answer: what came of it is charged, and it may be sent again"
_SERVER: Final = 500
_REFUSED: Final = 400
_REFUSING: Final = frozenset({"invalid_request_error", "BadRequestError", "invalid_prompt", "not_found_error"})
"""What engines and protocols call an error that the request is to blame for."""
_PAYMENT: Final = 402


def type_of(status: int) -> str:
    """What OpenAI calls errors of this status."""
    return _OPENAI_TYPES.get(status, "server_error" if status >= _SERVER else "invalid_request_error")


def openai_error(error: FabricError) -> dict[str, Any]:
    """The body OpenAI's clients know."""
    said: dict[str, Any] = {
        "message": error.message,
        "type": type_of(error.http_status),
        "param": error.facts.get("param"),
        "code": _CODES.get(error.code, error.code),
    }
    facts = {name: fact for name, fact in error.facts.items() if name != "param"}
    return {"error": {**said, "fabric": facts}} if facts else {"error": said}


def anthropic_error(error: FabricError) -> dict[str, Any]:
    """The body Anthropic's clients know."""
    kind = _ANTHROPIC_TYPES.get(error.http_status, "api_error" if error.http_status >= _SERVER else _OPENAI_TYPES[400])
    said = {"type": kind, "message": error.message, "code": _CODES.get(error.code, error.code)}
    return {"type": "error", "error": said}


def headers_of(error: FabricError) -> Headers:
    """What a client's own retries go by.

    429 is said only of rates and 503 only of what passes, both with `retry-after`; tokens don't come back by trying
    again, so that 402 says `x-should-retry: false`, which OpenAI's clients obey.
    """
    headers: Headers = []
    if isinstance(error, RateLimited | Unavailable) or "retry_after_s" in error.facts:
        after_s = error.facts.get("retry_after_s") or RETRY_S
        headers.append((b"retry-after", str(after_s).encode()))
    if isinstance(error, InsufficientTokens) or error.facts.get("retry") is False:
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, WrongMethod):
        headers.append((b"allow", str(error.facts.get("allow", "POST")).encode()))
    return headers


def encode(error: FabricError, *, anthropic: bool) -> bytes:
    """The body of a no."""
    return msgspec.json.encode(anthropic_error(error) if anthropic else openai_error(error))


def as_event(error: FabricError, surface: str) -> bytes:
    """A no in the middle of a stream, as an event that each protocol's clients take for an error.

    A connection that just closes would look like a clean end to OpenAI's clients.
    """
    match surface:
        case "anthropic":
            return b"event: error\ndata: " + msgspec.json.encode(anthropic_error(error)) + b"\n\n"
        case "responses":
            said = openai_error(error)["error"]
            body = {"type": "error", "code": said["code"], "message": said["message"], "param": said["param"]}
            # `error` beside it is what OpenAI's clients look for in any stream.
            return b"event: error\ndata: " + msgspec.json.encode({**body, "error": said}) + b"\n\n"
        case _:
            return b"data: " + msgspec.json.encode(openai_error(error)) + b"\n\n"


def _in_our_words(status: int, message: str, param: Any, *, is_charged: bool) -> tuple[str, str | None, Any]:
    if status >= _SERVER:
        cost = "what it had made is charged" if is_charged else "it is charged nothing"
        return f"the engine failed at this request: {cost}, and it may be sent again", "engine_failed", None
    said = phrases.told(message)
    return said.message, said.code, said.param or param


def _status_of(inner: dict[str, Any], *, is_known: bool) -> int:
    """What an engine's error in a stream would have been as a status. Some protocols have no room for it: there a refusal is
    known by its type, or by its words.
    """
    code = inner.get("code")
    if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()):
        return int(code)
    refuses = {str(code), str(inner.get("type"))} & _REFUSING
    return _REFUSED if refuses or is_known else _SERVER


def retold_event(event: bytes, surface: str) -> bytes | None:
    """An event by which an engine ends a stream it can't go on with, in our words and in the client's protocol; None where it
    is none, or says what our own front said.
    """
    try:
        said: dict[str, Any] = msgspec.json.decode(event.partition(_DATA)[2])
        inner: Any = (said.get("response") or said).get("error") or (said if said.get("type") == "error" else None)
        message = str(inner["message"])
    except (msgspec.DecodeError, AttributeError, KeyError, TypeError):
        return None
    if "fabric" in inner or inner.get("type") in _OWN:
        return None
    told = phrases.told(message)
    if _status_of(inner, is_known=told.code is not None) >= _SERVER:
        return as_event(EngineFailed(BROKE_OFF), surface)
    known_as, param = told.code or "invalid_request", told.param or inner.get("param")
    return as_event(InvalidRequest(told.message, code=known_as, param=param), surface)


def retold(status: int, body: bytes, *, anthropic: bool, is_charged: bool = False) -> bytes:
    """An engine's own no in our words, with a string for a code, as OpenAI's schema asks. What our own front says stays."""
    try:
        said = msgspec.json.decode(body)
        inner = said.get("error", said)
        message = inner["message"]
    except (msgspec.DecodeError, AttributeError, KeyError, TypeError):
        inner, message = {}, f"the engine answered {status}"
    code, param, facts = inner.get("code"), inner.get("param"), inner.get("fabric")
    if not (isinstance(code, str) or facts is not None or (anthropic and status == _PAYMENT)):  # not from our own front
        message, code, param = _in_our_words(status, str(message), param, is_charged=is_charged)
    if anthropic:
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= _SERVER else "invalid_request_error")
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})
    retelling = {
        "message": message,
        "type": type_of(status),
        "param": param,
        "code": code if isinstance(code, str) else None,
    }
    return msgspec.json.encode({"error": {**retelling, "fabric": facts} if facts else retelling})
