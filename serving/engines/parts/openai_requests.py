"""What a request may say to an engine that is reached over HTTP: the words that are known to do there what is paid for.

An engine's server takes many more: fields that fetch, load or run something, that mark a cache for another account, or shape an
answer by a grammar which nobody has tried. Whatever isn't known is refused by its name, so that a new version of an engine
opens nothing.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from fabric.errors import InvalidRequest
from serving.limits import CHOICES_MAX

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
PATHS: Final = (CHAT, COMPLETIONS)

_BOTH: Final = frozenset(
    {
        "frequency_penalty", "ignore_eos", "logit_bias", "logprobs", "min_p", "n", "presence_penalty", "repetition_penalty",
        "seed", "stop", "stream", "temperature", "top_k", "top_p",
    }
)  # fmt: skip
_OF_CHAT: Final = frozenset(
    {
        "chat_template_kwargs",
        "messages",
        "parallel_tool_calls",
        "response_format",
        "tool_choice",
        "tools",
        "top_logprobs",
    }
)
_LIMITS: Final = ("max_completion_tokens", "max_tokens")
_NOT_PASSED_ON: Final = frozenset(
    {
        "cache_salt",
        "metadata",
        "model",
        "priority",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
) | {*_LIMITS, "stream_options"}
"""They may be said, and are nothing to the engine: some are ours to say."""
_SWITCHES: Final = ("enable_thinking", "thinking")
_COUNTED: Final = ("messages", "tools", "chat_template_kwargs", "prompt")
_COMPLETION_DEFAULT: Final = 16
"""Tokens of a completion that names no limit, as OpenAI has it."""


def document_of(body: bytes) -> dict[str, Any]:
    """The request.

    Raises:
        InvalidRequest: it is no JSON object (code `invalid_json`).
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise InvalidRequest("the body is no JSON object", code="invalid_json")
    return said


def passed_on(path: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """What of a request goes on to an engine.

    Raises:
        InvalidRequest: it says something that is not known to be safe there (code `unsupported_parameter`), or its number of
            choices is none.
    """
    known = _BOTH | (_OF_CHAT if path == CHAT else {"prompt"})
    for name, value in said.items():
        if name not in known and name not in _NOT_PASSED_ON and value is not None:
            raise _unsupported(name, f"{name[:100]} is not offered for this model: leave it out")
    body = {name: value for name, value in said.items() if name in known and value is not None}
    choices_in(body)
    _check_shape(body)
    for message in body.get("messages", ()) if isinstance(body.get("messages"), list) else ():
        _check_text(message)
    return body


def choices_in(body: Mapping[str, Any]) -> int:
    """How many answers are asked for; 1 to `CHOICES_MAX`, and one where they stream."""
    count = body.get("n", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= CHOICES_MAX:
        raise _unsupported("n", f"n is {str(count)[:100]}: it is 1 to {CHOICES_MAX}")
    if count > 1 and body.get("stream"):
        raise _unsupported("n", "several choices are offered without stream only")
    return count


def limit_in(path: str, said: Mapping[str, Any], *, room: int) -> int:
    """The most tokens that each answer may have, within the `room` that the context has.

    Raises:
        InvalidRequest: it is none (code `invalid_max_tokens`).
    """
    default = min(room, _COMPLETION_DEFAULT) if path == COMPLETIONS else room
    limit = next((said[name] for name in _LIMITS if said.get(name) is not None), default)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise InvalidRequest(f"max_tokens is {str(limit)[:100]}: give at least 1", code="invalid_max_tokens")
    return min(limit, room)


def counted(body: Mapping[str, Any]) -> dict[str, Any]:
    """What of a request makes its prompt, as `/tokenize` takes it."""
    return {name: body[name] for name in _COUNTED if name in body}


def wants_usage(said: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a stream's client asked for the usage at its end, and for that in every chunk."""
    options = said.get("stream_options")
    options = options if isinstance(options, dict) else {}
    return bool(options.get("include_usage")), bool(options.get("continuous_usage_stats"))


def _check_shape(body: Mapping[str, Any]) -> None:
    """Answers of a shape are compiled by the engine's process, for as long as it takes: those that need it are not offered. Nor
    is what would put another template, or none, in the place of the model's.
    """
    kwargs = body.get("chat_template_kwargs", {})
    if not (
        isinstance(kwargs, dict) and all(name in _SWITCHES and isinstance(on, bool) for name, on in kwargs.items())
    ):
        raise _unsupported(
            "chat_template_kwargs", f"chat_template_kwargs may be {' or '.join(_SWITCHES)}, true or false"
        )
    form = body.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") in {"text", "json_object"}):
        raise _unsupported("response_format", "response_format is offered as text or json_object for this model")
    if body.get("tool_choice", "auto") not in {"auto", "none"}:
        raise _unsupported("tool_choice", "tool_choice is offered as auto or none for this model")
    tools = body.get("tools", ())
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and function.get("strict"):
            raise _unsupported("tools", "strict tools are not offered for this model: leave strict out")


def _check_text(message: Any) -> None:
    """Media are fetched, decoded and counted by an engine in its own way."""
    content = message.get("content") if isinstance(message, dict) else None
    for part in content if isinstance(content, list) else ():
        if not (isinstance(part, dict) and part.get("type") == "text"):
            raise _unsupported("messages", "messages of text alone are offered for this model")


def _unsupported(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(why, code="unsupported_parameter", param=name[:100])
