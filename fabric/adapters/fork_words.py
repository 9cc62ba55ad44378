"""What a runner and the process that was forked for its job say to each other, and how: frames over a Unix socket."""

import socket
import threading
from typing import Final

import msgspec

from fabric.adapters.stages import JobEnd
from fabric.progress import Progress

_LENGTH_BYTES: Final = 4
_FRAME_BYTES_MAX: Final = 64 * 2**20


class Commission(msgspec.Struct, frozen=True, kw_only=True, tag="commission"):
    """The first word: what is to be done, as whom."""

    order: bytes
    """As `runner.encode_order` has it."""
    archive: bytes
    """Pickled."""
    lease_id: str
    devices: tuple[str, ...]
    environment: dict[str, str]
    """The runner's: its devices are in it."""


class StopWish(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    reason: str
    seconds_left: float
    save: bool


class SaveWish(msgspec.Struct, frozen=True, kw_only=True, tag="save"):
    pass


class Saved(msgspec.Struct, frozen=True, kw_only=True, tag="saved"):
    step: int
    write_us: int
    size: int


class Reported(msgspec.Struct, frozen=True, kw_only=True, tag="reported"):
    progress: Progress


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """The job's code has ended, and this is how."""

    end: JobEnd


class Exited(msgspec.Struct, frozen=True, kw_only=True, tag="exited"):
    """The process is gone: its exit code, or the negative number of the signal that ended it."""

    code: int


Word = Commission | StopWish | SaveWish | Saved | Reported | Ended | Exited
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Word).decode


class Talk:
    """One end of a conversation. Any thread may say something; one thread hears."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._saying = threading.Lock()

    def say(self, word: Word) -> None:
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
        if head is None or not 0 < (length := int.from_bytes(head, "big")) <= _FRAME_BYTES_MAX:
            return None
        data = self._read(length)
        try:
            return None if data is None else _decode(data)
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
