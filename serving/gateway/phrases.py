"""What an engine says when it refuses, in words for whoever asked: no option of its command line, no path of its source.

An engine's words come and go with its versions. Of what isn't known here only the part that names nothing of the operator's
is told; `tests/serving/test_engine_contract.py` holds the known ones to what the engine says now.
"""

import re
from typing import Final, NamedTuple

TOOLS: Final = (
    "this model calls no tools: leave `tools` out and have a schema shape its answer (`response_format`), or call a model whose"
    " `capabilities` in GET /v1/models say `tools`"
)
_WORDS_MAX: Final = 1_000
_READ_MAX: Final = 4_000


class Phrase(NamedTuple):
    """A refusal in our words."""

    message: str
    code: str | None = None
    param: str | None = None


_KNOWN: Final = (
    (re.compile(r"tool choice requires|enable-auto-tool-choice|tool-call-parser", re.IGNORECASE), Phrase(TOOLS, "tools_not_offered", "tools")),
    (
        re.compile(r"matryoshka", re.IGNORECASE),
        Phrase("this model's embeddings have one length: leave `dimensions` out", "dimensions_not_offered", "dimensions"),
    ),
    (
        re.compile(r"chat template", re.IGNORECASE),
        Phrase("this model has no template for chats: send a text to /v1/completions", "no_chat_template", "messages"),
    ),
)  # fmt: skip
_ABILITIES: Final = {
    "chat": "holds no chats", "completions": "writes no text", "responses": "holds no chats", "anthropic": "holds no chats",
    "embeddings": "makes no embeddings", "embed": "makes no embeddings", "rerank": "ranks nothing", "score": "scores nothing",
}  # fmt: skip
_CONTEXT: Final = re.compile(r"context length is (?:only )?(\d+) tokens")
_TOO_LONG: Final = re.compile(
    r"maximum (?:context|model) length|context length|max_model_len|longer than the maximum", re.IGNORECASE
)
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+|\s*\((?=[^)]*--)")
_OPERATORS: Final = re.compile(
    r"(?<![\w-])--[a-z][a-z-]+|\bVLLM_\w+|/[\w.-]+/[\w./-]+\.py|\bhttps?://\S+", re.IGNORECASE
)


def unable(model: str, surface: str) -> str:
    """A model's engine has nothing at a path that others have."""
    doing = _ABILITIES.get(surface, "does not do this")
    return f"{model} {doing}: call a model for that whose `capabilities` in GET /v1/models say it, or send {model} what it is for"


def told(message: str) -> Phrase:
    """An engine's refusal of what was asked, as it is told. It may repeat what it was asked: only its beginning is read."""
    message = message[:_READ_MAX]
    if _TOO_LONG.search(message):
        return _too_long(message)
    for pattern, phrase in _KNOWN:
        if pattern.search(message):
            return phrase
    parts = [part for part in _SENTENCE.split(message) if part and not _OPERATORS.search(part)]
    said = " ".join(" ".join(parts).split())[:_WORDS_MAX]
    return Phrase(said or "the engine doesn't take this request: leave out what isn't in OpenAI's own reference")


def _too_long(message: str) -> Phrase:
    """Begins with the words by which OpenAI's clients know it, where they look at no code."""
    found = _CONTEXT.search(message)
    numbers = f"is {found[1]} tokens" if found else "is less than that"
    asked = re.search(r"(?:requested|passed) (?:at least )?(\d+)", message)
    more = re.search(r"(?:contains|and) at least (\d+) input", message)
    said = f" (asked for are {asked[1]}{f', and the prompt has {more[1]} or more' if more else ''})" if asked else ""
    return Phrase(
        f"this model's maximum context length {numbers}, for the prompt and the answer together{said}: shorten the prompt, or"
        " ask for fewer tokens (`max_tokens`)",
        "context_length_exceeded",
        "messages",
    )
