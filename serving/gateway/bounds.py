"""Whether a request stays within `serving.limits`: looked at before it waits for its turn, and costs nothing.

It reads a body by the names that the surfaces have in common, so that a limit holds for all of them. What a field means is
the engine's to check; here it is only how much of it there is.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from fabric.errors import InvalidRequest
from serving import limits
from serving.gateway import texts
from serving.gateway.bodies import Body
from serving.gateway.phrases import TOOLS
from serving.gateway.refusals import TooLarge
from serving.gateway.routes import Route
from serving.grammars import too_large

_NUMBERS: Final = (
    ("n", limits.CHOICES_MAX), ("best_of", limits.CHOICES_MAX),
    ("logprobs", limits.LOGPROBS_MAX), ("top_logprobs", limits.LOGPROBS_MAX), ("prompt_logprobs", limits.LOGPROBS_MAX),
)  # fmt: skip
_LISTS: Final = (
    ("stop", limits.STOPS_MAX), ("stop_sequences", limits.STOPS_MAX), ("stop_token_ids", limits.STOPS_MAX),
    ("bad_words", limits.BAD_WORDS_MAX), ("logit_bias", limits.BIASES_MAX), ("tools", limits.TOOLS_MAX),
    ("allowed_token_ids", limits.TOKEN_IDS_MAX), ("logprob_token_ids", limits.TOKEN_IDS_MAX),
)  # fmt: skip
_PROMPTS: Final = {
    "chat": "messages",
    "completions": "prompt",
    "embeddings": "input",
    "embed": "texts",
    "rerank": "documents",
    "score": "text_1",
    "tokens": "prompt",
}
_FORCED: Final = {"chat": {"required", "function"}, "anthropic": {"any", "tool"}}
"""Choices of a tool that shape the answer, by surface: some engines take them that find no calls of their own accord."""
_TEXTS: Final = ("stop", "stop_sequences", "bad_words")
_SHAPES: Final = (
    "response_format", "structured_outputs", "text", "output_config", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "structural_tag", "tool_choice",
)  # fmt: skip
_SHAPED: Final = (*_SHAPES, "tools")
_COUNTED: Final = frozenset({*dict(_NUMBERS), *dict(_LISTS), *_TEXTS, *_SHAPED})
"""A body with none of them has nothing of which there may be too much, but for its prompt."""
_PATTERNS: Final = frozenset({"pattern", "regex", "guided_regex", "patternProperties"})


_PROMPT_FIELDS: Final = (
    "prompt", "input", "messages", "system", "instructions", "documents", "query", "instruction", "texts", "text_1", "text_2",
    "queries", "items", "data_1", "data_2",
)  # fmt: skip
_TEXT_FIELDS: Final = frozenset({"text", "content", "output", "arguments", "thinking", "reasoning_content"})


class Size(NamedTuple):
    """How much an engine is asked to do at once."""

    choices: int
    prompts: int

    @property
    def sequences(self) -> int:
        return self.choices * self.prompts


def check(body: Body, route: Route, *, body_bytes: int) -> Size:
    """How much a request asks for, where it isn't too much.

    Raises:
        InvalidRequest: a number, a list or a text in it is beyond its limit (`limit_exceeded`).
        TooLarge: the whole of it, or what shapes its answer, is.
    """
    if not route.metered and body_bytes > limits.COUNTED_BYTES_MAX:
        raise TooLarge(
            f"the body has {body_bytes} bytes, at most {limits.COUNTED_BYTES_MAX} may come to {route.path}: send it in parts",
            bytes=body_bytes, limit=limits.COUNTED_BYTES_MAX,
        )  # fmt: skip
    if _COUNTED.isdisjoint(body):
        choices = 1
    else:
        _check_amounts(body)
        _check_shapes(body)
        choices = _choices(body)
    size = Size(choices, _prompts(body, route))
    if size.prompts > limits.PROMPTS_MAX:
        raise _beyond(_PROMPTS.get(route.surface, "prompt"), size.prompts, limits.PROMPTS_MAX, what="entries")
    if size.sequences > limits.SEQUENCES_MAX:
        raise InvalidRequest(
            f"{size.prompts} prompts with {size.choices} answers each are {size.sequences}, at most"
            f" {limits.SEQUENCES_MAX} may be asked for at once: send several requests",
            code="limit_exceeded", param="n", number=size.sequences, limit=limits.SEQUENCES_MAX,
        )  # fmt: skip
    return size


def check_tools(body: Body, route: Route, *, calls_tools: bool) -> None:
    """Let pass tools that the model can call, or that the request has it call: an engine that finds no calls in what a model
    writes would refuse them in its operator's words, or leave them out and say nothing.

    Raises:
        InvalidRequest: `tools_not_offered`.
    """
    choice = body.get("tool_choice")
    if calls_tools or not body.get("tools") or choice == "none" or _kind_of(choice) == "none":
        return
    if route.surface in _FORCED and _kind_of(choice) in _FORCED[route.surface]:
        return
    raise InvalidRequest(TOOLS, code="tools_not_offered", param="tools")


def _kind_of(choice: object) -> str:
    kind = choice.get("type") if isinstance(choice, dict) else choice
    return kind if isinstance(kind, str) else ""


def check_text(body: Body, size: Size, *, max_context: int | None, body_bytes: int | None = None) -> None:
    """Let pass a prompt that may fit into the model's context, or be shortened to.

    An engine turns all of a text into tokens before it shortens or refuses it, one request after the other.

    Args:
        body: the request's.
        size: what `check` found.
        max_context: tokens; None = not known.
        body_bytes: of all of it, where known: each character has one or more of them, so that most bodies need no count.

    Raises:
        TooLarge: it has too many characters.
    """
    context = max_context or limits.CONTEXT_GUESS
    most = max(limits.CHARS_ALWAYS, limits.CHARS_PER_TOKEN_MAX * context * size.prompts)
    if body_bytes is not None and body_bytes <= most:
        return
    count = sum([_characters(body[name]) for name in _PROMPT_FIELDS if name in body])
    if count > most:
        raise TooLarge(
            f"the prompt has {count} characters, at most {most} may come to a model with a context of {context} tokens:"
            " shorten it",
            number=count, limit=most, max_context=context,
        )  # fmt: skip


def _characters(value: Any) -> int:
    """Of all text in a field of a prompt; images and the like have fields of other names."""
    count, layer = 0, [value]
    while layer:
        part = layer.pop()
        if isinstance(part, str):
            count += len(part)
        elif isinstance(part, list):
            layer.extend(each for each in part if isinstance(each, str | list | dict))
        elif isinstance(part, dict):
            layer.extend(inner for name, inner in part.items() if name in _TEXT_FIELDS)
    return count


def _check_amounts(body: Body) -> None:
    for name, most in _NUMBERS:
        if name not in body:
            continue
        value = body[name]
        if isinstance(value, int) and not isinstance(value, bool) and value > most:
            raise _beyond(name, value, most)
    for name, most in _LISTS:
        if name not in body:
            continue
        value = body[name]
        if isinstance(value, list | dict) and len(value) > most:
            raise _beyond(name, len(value), most, what="entries")
    for name in _TEXTS:
        for text in _texts(body[name]) if name in body else ():
            if len(text) > limits.STOP_CHARS_MAX:
                raise _beyond(name, len(text), limits.STOP_CHARS_MAX, what="characters in one entry")


def _check_shapes(body: Body) -> None:
    tools = body.get("tools")
    if isinstance(tools, list | dict) and (size := _bytes_of(tools)) > limits.TOOLS_BYTES_MAX:
        raise TooLarge(
            f"the tools have {size} bytes, at most {limits.TOOLS_BYTES_MAX} may come: send fewer or shorter ones",
            param="tools", bytes=size, limit=limits.TOOLS_BYTES_MAX,
        )  # fmt: skip
    for name in _SHAPES:
        value = body.get(name)
        if value is not None and (size := _bytes_of(value)) > limits.GRAMMAR_BYTES_MAX:
            raise too_large(size)
    shapes = {name: body[name] for name in _SHAPED if name in body}
    for pattern in _patterns(shapes) if shapes else ():
        if len(pattern) > limits.PATTERN_CHARS_MAX:
            raise _beyond("pattern", len(pattern), limits.PATTERN_CHARS_MAX, what="characters")


def _patterns(value: Any) -> Iterator[str]:
    """Every regular expression in what shapes an answer, wherever it is."""
    layer = [value]
    while layer:
        whole = layer.pop()
        if isinstance(whole, dict):
            for name, part in whole.items():
                if name in _PATTERNS:
                    yield from (part if isinstance(part, dict) else _texts(part))
                if isinstance(part, dict | list):
                    layer.append(part)
        elif isinstance(whole, list):
            layer.extend(part for part in whole if isinstance(part, dict | list))


def _choices(body: Body) -> int:
    asked = [body.get(name) for name in ("n", "best_of")]
    return max([1, *(each for each in asked if isinstance(each, int))])


def _prompts(body: Body, route: Route) -> int:
    """As the engine counts them: a list of numbers is one prompt of tokens, a list of lists are several."""
    if route.surface in {"score", "embed"}:
        return texts.count_of(body, route)
    given = body.get(_PROMPTS.get(route.surface, ""))
    if not isinstance(given, list):
        return 1
    if route.surface == "chat":
        return max(1, sum(isinstance(each, list) for each in given))
    return 1 if all(isinstance(each, int) for each in given) else max(1, len(given))


def _texts(value: Any) -> list[str]:
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]


def _bytes_of(value: Any) -> int:
    try:
        return len(msgspec.json.encode(value))
    except (UnicodeEncodeError, OverflowError, msgspec.MsgspecError):
        return 0  # refused when it is written


def _beyond(name: str, number: int, most: int, *, what: str = "") -> InvalidRequest:
    counted = f"has {number} {what}" if what else f"is {number}"
    return InvalidRequest(
        f"`{name}` {counted}, at most {most} may be asked for: ask for less, or send several requests",
        code="limit_exceeded", param=name, number=number, limit=most,
    )  # fmt: skip
