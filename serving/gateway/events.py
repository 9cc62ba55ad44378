"""Server-sent events on their way through: whole events only, and whether the last one said that it was the last.

Bytes pass as they are, but for an engine's error, which is told in our words; what a call costs is in them already, as its replica's meter has booked it. An event is held back
until it is whole, so that an error can be put behind it when the replica dies in the middle of the next.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from serving.gateway.refusals import ReplicaLost, retold_event
from serving.gateway.routes import Route

EVENT_BYTES_MAX: Final = 8 * 1024 * 1024
WAITING: Final = b": waiting for a turn\n\n"
"""A comment, which most readers of events skip."""
_PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_CHUNKS: Final = "x-fabric-keep-alive"
"""`chunk`: a client's word that it would break on a comment."""
_BREAK: Final = (b"openai/go",)
"""Clients that are known to, by the beginning of what they call themselves."""
_END: Final = b"\n\n"
_USAGE: Final = b'"usage":{'
_FABRIC: Final = b'"fabric":{"call":'
_ERROR: Final = b'"error"'
"""A field of that name; in what an answer says, the marks would have strokes before them."""


class Usage(msgspec.Struct, frozen=True):
    """LLM tokens, as an engine's answer gives them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None

    def plain(self) -> Usage:
        prompt = self.prompt_tokens_details or self.input_tokens_details or _Details()
        completion = self.completion_tokens_details or self.output_tokens_details or _Details()
        return Usage(
            prompt_tokens=self.prompt_tokens or self.input_tokens or 0,
            completion_tokens=self.completion_tokens or self.output_tokens or 0,
            cached_tokens=prompt.cached_tokens or 0,
            reasoning_tokens=completion.reasoning_tokens or 0,
        )


class _Inner(msgspec.Struct, frozen=True):
    usage: _Usage | None = None


class Booked(msgspec.Struct, frozen=True):
    """What a replica says that it has booked for a request."""

    charged_uhs: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def usage(self) -> Usage:
        """Where an answer has no other place that tells it, as Cohere's."""
        return Usage(self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.reasoning_tokens)


class _WithBooked(msgspec.Struct, frozen=True):
    fabric: Booked | None = None


_BOOKED: Final = msgspec.json.Decoder(_WithBooked)


def booked_of(body: bytes | memoryview) -> Booked | None:
    """What an answer or an event says of its charge."""
    try:
        return _BOOKED.decode(body).fabric
    except msgspec.MsgspecError:
        return None


class _Outer(msgspec.Struct, frozen=True):
    usage: _Usage | None = None
    response: _Inner | None = None
    message: _Inner | None = None


_DECODER: Final = msgspec.json.Decoder(_Outer)


def keep_alive(route: Route, headers: Mapping[bytes, bytes], call_id: str, model: str) -> bytes:
    """What a stream says while nothing has been written yet: each protocol's own word for it, or a comment."""
    if route.surface == "anthropic":
        return _PING
    wants = headers.get(_CHUNKS.encode(), b"").strip().lower() == b"chunk"
    if not (wants or headers.get(b"user-agent", b"").lower().startswith(_BREAK)):
        return WAITING
    empty: dict[str, Any]
    if route.surface == "chat":
        kind, name, empty = "chat.completion.chunk", "chatcmpl", {"delta": {}}
    elif route.surface == "completions":
        kind, name, empty = "text_completion", "cmpl", {"text": ""}
    else:
        return WAITING
    choice = {"index": 0, **empty, "logprobs": None, "finish_reason": None}
    said = {"id": f"{name}-{call_id}", "object": kind, "created": int(time.time()), "model": model, "choices": [choice]}
    return b"data: " + msgspec.json.encode(said) + _END


def usage_of(body: bytes | memoryview) -> Usage | None:
    """The usage an answer or an event tells, in whichever of the protocols' places."""
    try:
        told = _DECODER.decode(body)
    except msgspec.MsgspecError:
        return None
    usage = told.usage or (told.response and told.response.usage) or (told.message and told.message.usage)
    return usage.plain() if usage else None


class Events:
    """One stream."""

    def __init__(self, route: Route) -> None:
        self._ends = tuple(mark for mark in (route.last, route.ends) if mark)
        self._surface = route.surface
        self._rest = b""
        self.count = 0
        self.ended = False
        """Whether the last event said that it was the last."""
        self.usage: Usage | None = None
        self.booked: Booked | None = None

    def feed(self, data: bytes) -> bytes:
        """What may be sent on, now that `data` came.

        Raises:
            ReplicaLost: an event has no end.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        if not data.endswith(_END):
            cut = data.rfind(_END) + len(_END)
            if cut < len(_END):
                cut = 0
            data, self._rest = data[:cut], data[cut:]
            if len(self._rest) > EVENT_BYTES_MAX:
                raise ReplicaLost(f"the replica sent an event beyond {EVENT_BYTES_MAX >> 20} MiB", code="bad_stream")
            if not data:
                return b""
        count = data.count(_END)
        self.count += count
        start = 0 if count == 1 else data.rfind(_END, 0, -len(_END)) + len(_END)
        self.ended = data.startswith(self._ends, start)
        if _ERROR in data:
            data = self._retold(data)
        if _USAGE in data:
            self._count(data)
        if _FABRIC in data:
            for event in data.split(_END):
                self.booked = self.booked or booked_of(event.partition(b"data: ")[2])
        return data

    def _retold(self, data: bytes) -> bytes:
        """With errors in our words. An error ends a stream too: a client has nothing more to learn."""
        events = [event + _END for event in data.split(_END)[:-1]]
        for number, event in enumerate(events):
            if _ERROR in event and (told := retold_event(event, self._surface)) is not None:
                events[number], self.ended = told, True
        return b"".join(events)

    def _count(self, data: bytes) -> None:
        for event in data.split(_END):
            if _USAGE in event and (usage := usage_of(event.partition(b"data: ")[2])) is not None:
                self.usage = usage
