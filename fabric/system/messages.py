"""Words between two processes of one machine: frames over a Unix socket."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

import msgspec

_LENGTH_BYTES: Final = 4
_FRAME_BYTES_MAX: Final = 64 * 2**20
_encode = msgspec.msgpack.Encoder().encode
Word = TypeVar("Word")


class Talk(Generic[Word]):
    """One end of a conversation. Any thread may say something; one thread hears."""

    def __init__(
        self, connection: socket.socket, decode: Callable[[bytes], Word], *, word_bytes_max: int = _FRAME_BYTES_MAX
    ) -> None:
        """Over a connection that is open; `decode` says what the other side may say, and `word_bytes_max` how long a word."""
        self._connection = connection
        self._word_bytes_max = word_bytes_max
        self._decode = decode
        self._saying = threading.Lock()

    def say(self, word: Any) -> None:
        """Fine if nobody listens any more."""
        data = _encode(word)
        with self._saying:
            try:
                self._connection.sendall(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
            except OSError:
                return

    def hear(self) -> Word | None:
        """The next word; None when the other side is gone, or says what it shouldn't."""
        head = self._read(_LENGTH_BYTES)
        if head is None or not 0 < (length := int.from_bytes(head, "big")) <= self._word_bytes_max:
            return None
        data = self._read(length)
        try:
            return None if data is None else self._decode(data)
        except (msgspec.DecodeError, ValueError):
            return None

    def is_over(self) -> bool:
        """Whether the other side is gone."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        self._connection.close()

    def end(self) -> None:
        """Close it, and wake whoever hears."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self.close()

    def _read(self, length: int) -> bytes | None:
        data = bytearray()
        while len(data) < length:
            try:
                part = self._connection.recv(min(length - len(data), 2**20))
            except OSError:
                return None
            if not part:
                return None
            data += part
        return bytes(data)
