"""What of a request goes on to the engine, and what of it tells which replica to ask.

A tenant must not say what only the fabric may: whose request it is, how urgent it is, on which rank it runs, under which
id it can be aborted, what may share its cache. Such fields are taken out; headers go on only if they are in a short list.
"""

from typing import Any, Final

import msgspec

from fabric.errors import InvalidRequest
from serving.gateway import media, texts
from serving.gateway.affinity import BLOCK_BYTES, BLOCKS_MAX
from serving.gateway.bodies import Body
from serving.gateway.routes import Route

TAKEN_OUT: Final = (
    "priority", "request_id", "session_id", "cache_salt", "kv_transfer_params", "ec_transfer_params", "vllm_xargs",
    "mm_payload", "return_mm_kwargs", "mm_processor_kwargs", "media_io_kwargs", "routed_experts_prompt_start", "data_parallel_rank",
)  # fmt: skip
_TAKEN_OUT: Final = frozenset(TAKEN_OUT)
HEADERS_PASSED_ON: Final = frozenset(
    {b"accept", b"anthropic-version", b"anthropic-beta", b"traceparent", b"tracestate"}
)
_PROMPT_BYTES_MAX: Final = BLOCK_BYTES * BLOCKS_MAX
_BYTES_PER_TOKEN: Final = 4
_COMPLETION_GUESS: Final = 256
_COMPLETION_MOST: Final = 1 << 20


def model_of(body: Body) -> str:
    """The model a body asks for.

    Raises:
        InvalidRequest: it names none.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("say which model: `model` must be a string, see GET /v1/models", param="model")
    return model


def wants_stream(body: Body, route: Route) -> bool:
    """Whether the answer comes as events.

    Raises:
        InvalidRequest: `stream` is no boolean, or there are no streams here.
    """
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("`stream` must be true or false", param="stream")
    if stream and not route.streams:
        raise InvalidRequest(f"{route.path} does not stream: leave `stream` out", code="no_stream", param="stream")
    return bool(stream)


def rewrite(body: Body, route: Route) -> None:
    """Take out of the body what is not a tenant's to say. What keeps tenants' caches apart is the replica's to put in, where
    all that enters the engine passes (`serving.metering.payer`).

    Raises:
        InvalidRequest: it asks for something that would have to be kept for it, which nothing here is, or for a file
            to be fetched from an address.
    """
    for name in _TAKEN_OUT.intersection(body):
        del body[name]
    media.check(body)
    texts.check(body, route)
    if route.surface == "responses":
        for name in ("background", "previous_response_id", "previous_input_messages", "conversation"):
            if body.pop(name, None):
                raise InvalidRequest(
                    f"`{name}` needs responses that are kept, and none are kept here: send the whole conversation",
                    code="not_kept",
                    param=name,
                )
        body["store"] = False


def prompt_of(body: Body, route: Route) -> bytes:
    """The prompt's beginning, in the order in which the engine reads it; b"" where it makes no difference."""
    match route.surface:
        case "chat":
            parts = [body.get("tools"), *_listed(body.get("messages"))]
        case "completions":
            parts = [body.get("prompt")]
        case "responses":
            parts = [body.get("tools"), body.get("instructions"), *_listed(body.get("input"))]
        case "anthropic":
            parts = [body.get("tools"), body.get("system"), *_listed(body.get("messages"))]
        case _:
            return b""
    text = bytearray()
    for part in parts:
        if part is not None:
            text += _beginning(part)
        if len(text) >= _PROMPT_BYTES_MAX:
            break
    return bytes(text[:_PROMPT_BYTES_MAX])


def cost_of(body: Body, *, body_bytes: int, sequences: int) -> int:
    """About how many LLM tokens a request will take, to give turns by until it is known."""
    asked = _COMPLETION_GUESS
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if isinstance(body.get(name), int):
            asked = body[name]
            break
    return body_bytes // _BYTES_PER_TOKEN + min(max(asked, 1) * sequences, _COMPLETION_MOST)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _beginning(part: Any) -> bytes:
    if isinstance(part, str):
        return part[:_PROMPT_BYTES_MAX].encode("utf-8", "replace")
    if isinstance(part, list) and len(part) > _PROMPT_BYTES_MAX:
        part = part[:_PROMPT_BYTES_MAX]
    try:
        return msgspec.json.encode(part)
    except (UnicodeEncodeError, OverflowError, msgspec.MsgspecError):
        return b""  # refused when it is written
