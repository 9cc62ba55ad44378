"""One call: what goes out, and what comes back as it comes. The loop's thread feeds it, the caller's reads it."""

import base64
import binascii
import os
import queue
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final
from urllib.parse import unquote_to_bytes

from fabric.transport.failure import CallFailed, Metadata, Status

HIGH_BYTES: Final = 4 * 2**20
"""With so much unread, no more is asked for."""
_PREFIX: Final = struct.Struct(">BL")
_PRINTABLE: Final = re.compile(rb"[\x20-\x7e]*")
_OK: Final = b"200"
_TICK_S: Final = 0.2 if os.name == "nt" else None
"""Where a wait without an end can't be interrupted by Ctrl-C, it has one."""
_OF_HTTP: Final = {
    b"400": Status.INTERNAL,
    b"401": Status.UNAUTHENTICATED,
    b"403": Status.PERMISSION_DENIED,
    b"404": Status.UNIMPLEMENTED,
    b"429": Status.UNAVAILABLE,
    b"502": Status.UNAVAILABLE,
    b"503": Status.UNAVAILABLE,
    b"504": Status.UNAVAILABLE,
}

Headers = list[tuple[bytes, bytes]]


class Exchange:
    """A call that goes on."""

    def __init__(self, messages: Iterable[bytes], *, most_bytes: int) -> None:
        self.stream_id: int | None = None
        self.ended = False
        self.due_bytes = 0
        """Received and not yet acknowledged to the other side, which waits for that when it is too much."""
        self._messages = iter(messages)
        self._most_bytes = most_bytes
        self._inbox: queue.SimpleQueue[bytes | CallFailed | None] = queue.SimpleQueue()
        self._unread_bytes = 0
        self._partial = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._trailers: Headers = []

    # -- the loop's side ---------------------------------------------------------------------------------------------

    def framed(self) -> Iterator[bytes]:
        """What goes out, as gRPC frames it."""
        for message in self._messages:
            yield _PREFIX.pack(0, len(message)) + message

    def head(self, headers: Headers) -> None:
        self._headers = dict(headers)
        self._trailers = headers

    def trailers(self, headers: Headers) -> None:
        self._trailers = headers

    def received(self, data: bytes) -> None:
        """A piece of the answer. What it can't be ends the call."""
        if self.ended:
            return
        self._partial += data
        while len(self._partial) >= _PREFIX.size:
            compressed, length = _PREFIX.unpack_from(self._partial)
            if compressed:
                raise CallFailed(Status.INTERNAL, "the answer is compressed, which was not asked for")
            if length > self._most_bytes:
                about = f"received message larger than max ({length} vs. {self._most_bytes})"
                raise CallFailed(Status.RESOURCE_EXHAUSTED, about)
            if len(self._partial) < _PREFIX.size + length:
                return
            message = bytes(self._partial[_PREFIX.size : _PREFIX.size + length])
            del self._partial[: _PREFIX.size + length]
            self._unread_bytes += length
            self._inbox.put(message)

    @property
    def is_full(self) -> bool:
        return self._unread_bytes >= HIGH_BYTES

    def was_read(self, length: int) -> None:
        self._unread_bytes -= length

    def finished(self) -> None:
        """The other side has said all."""
        self.end(_outcome(self._headers, self._trailers))

    def end(self, failure: CallFailed | None) -> None:
        """Nothing comes any more. Only the first end counts."""
        if not self.ended:
            self.ended = True
            self._inbox.put(failure)

    # -- the caller's side -------------------------------------------------------------------------------------------

    def take(self, taken: Callable[[int], None]) -> bytes | None:
        """The next message, waited for; None at the end.

        Raises:
            CallFailed: it ended otherwise than well.
        """
        while True:
            try:
                found = self._inbox.get(timeout=_TICK_S)
            except queue.Empty:
                continue
            if isinstance(found, bytes):
                taken(len(found))
                return found
            self._inbox.put(found)  # whoever asks again is told again
            if found is not None:
                raise found.with_traceback(None)
            return None


def encoded(metadata: Metadata) -> Headers:
    """Metadata as headers."""
    found: Headers = []
    for name, value in metadata:
        if name.endswith("-bin"):
            data = value if isinstance(value, bytes) else value.encode()
            found.append((name.encode(), base64.b64encode(data).rstrip(b"=")))
            continue
        text = value.encode() if isinstance(value, str) else value
        if not _PRINTABLE.fullmatch(text):
            raise CallFailed(Status.INTERNAL, f"metadata was invalid: {name} has other characters than ASCII's")
        found.append((name.encode(), text))
    return found


def _outcome(headers: dict[bytes, bytes], trailers: Headers) -> CallFailed | None:
    said = dict(trailers)
    status = said.get(b"grpc-status")
    details = unquote_to_bytes(said.get(b"grpc-message", b"")).decode(errors="replace")
    if status is not None:
        code = _status(status)
        return None if code is Status.OK else CallFailed(code, details, _decoded(trailers))
    http = headers.get(b":status", b"")
    if http and http != _OK:
        return CallFailed(_OF_HTTP.get(http, Status.UNKNOWN), f"the other side answered HTTP {http.decode()}")
    return CallFailed(Status.INTERNAL, "the answer ended without a status")


def _status(given: bytes) -> Status:
    try:
        return Status(int(given))
    except ValueError:
        return Status.UNKNOWN


def _decoded(headers: Headers) -> Metadata:
    found: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if name.startswith((b":", b"grpc-")):
            continue
        if name.endswith(b"-bin"):
            try:
                found.append((name.decode(), base64.b64decode(value + b"=" * (-len(value) % 4))))
            except binascii.Error:
                continue
        else:
            found.append((name.decode(), value.decode(errors="replace")))
    return found
