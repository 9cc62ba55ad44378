"""The side of a job's context that stays with whoever runs its program: every process of the job's may link to it.

See `fabric.context.link`. What linked processes save and report is passed on as the job's; wishes go to all of them.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from fabric.context import LINK_VARIABLE, Context
from fabric.context.link import (
    Heard,
    Invitation,
    Leaving,
    Listening,
    ListeningNoMore,
    NoRoom,
    Reported,
    Saved,
    SaveWish,
    Saving,
    StopWish,
    reach,
)
from fabric.system.messages import Talk

_BACKLOG: Final = 64
_WHY_CHARS_MAX: Final = 1_000
_CREDENTIALS: Final = 12
"""Bytes: a process, its user, its group."""
Said = Saved | Reported | NoRoom | Leaving | Listening | ListeningNoMore | Saving
_decode = msgspec.msgpack.Decoder(Said).decode


class ContextHost:
    """Answers at one address, from `open` to `close`."""

    def __init__(self, context: Context, invitation: Invitation | None, *, address: Path) -> None:
        """Nothing is opened yet. The address lies in a folder that nobody else may enter. Without an invitation nobody is
        answered.
        """
        self.address = address
        self.saves = 0
        """How many checkpoints linked processes have made durable."""
        self.saves_itself = False
        """Whether the job's own code has to do with checkpoints."""
        self.silent_since: float | None = None
        """Since when none is left of those that looked by themselves whether they should stop; None = some do, or none ever did."""
        self.on_listening: Callable[[int], None] = lambda _pid: None
        """Told of each of those, before it goes on."""
        self._context = context
        self._invitation = invitation
        self._listener: socket.socket | None = None
        self._linked: dict[int, tuple[int, Talk[Said]]] = {}
        """By connection: (process, the talk with it)."""
        self._listening: set[int] = set()
        self._stop: tuple[StopWish, float] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def variables(self) -> dict[str, str]:
        """By which a process finds it."""
        return {} if self._invitation is None else {LINK_VARIABLE: str(self.address)}

    def open(self) -> None:
        """Answer from now on."""
        if self._invitation is None:
            return
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.address.unlink(missing_ok=True)
        reach(self._listener.bind, self.address)
        self._listener.listen(_BACKLOG)
        threading.Thread(target=self._accept, args=(self._listener,), name="fabric-context", daemon=True).start()

    def close(self) -> None:
        """Answer nobody any more."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        with self._lock:
            talks = [talk for _, talk in self._linked.values()]
        for talk in talks:
            talk.end()
        with suppress(OSError):
            self.address.unlink()

    def listening(self) -> frozenset[int]:
        """The processes that look by themselves whether they should stop."""
        with self._lock:
            return frozenset(self._listening)

    def ask_to_stop(self, reason: str, *, seconds_left: float, save: bool) -> None:
        wish = StopWish(reason=reason, seconds_left=seconds_left, save=save)
        with self._lock:
            self._stop = wish, time.monotonic() + seconds_left
        self._tell(wish)

    def ask_to_save(self) -> None:
        self._tell(SaveWish())

    def _tell(self, word: StopWish | SaveWish) -> None:
        with self._lock:
            talks = [talk for _, talk in self._linked.values()]
        for talk in talks:
            talk.say(word)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), name="fabric-linked", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS)
        pid, talk = int.from_bytes(credentials[:4], sys.byteorder), Talk(connection, _decode)
        assert self._invitation is not None
        with self._lock:
            stop = None
            if self._stop is not None:
                wish, at = self._stop
                stop = msgspec.structs.replace(wish, seconds_left=max(0.0, at - time.monotonic()))
            talk.say(msgspec.structs.replace(self._invitation, stop=stop))
            self._linked[id(talk)] = pid, talk
        while (said := talk.hear()) is not None:
            self._hear(said, pid)
            if not isinstance(said, Reported):
                talk.say(Heard())
        with self._lock:
            del self._linked[id(talk)]
            if pid in self._listening and all(other != pid for other, _ in self._linked.values()):
                self._listening.remove(pid)
                self.silent_since = None if self._listening else time.monotonic()
        talk.close()

    def _hear(self, said: Said, pid: int) -> None:
        match said:
            case Saved():
                self.saves += 1
                self.saves_itself = True
                self._context.durable(step=said.step, write_us=said.write_us, size=said.size)
            case Reported():
                self._context.relay(said.progress)
            case NoRoom():
                self._context.refused = said.why[:_WHY_CHARS_MAX]
            case Leaving():
                self._context.leave(said.why[:_WHY_CHARS_MAX])
            case Listening():
                with self._lock:
                    self._listening.add(pid)
                    self.silent_since = None
                self.on_listening(pid)
            case ListeningNoMore():
                with self._lock:
                    self._listening.discard(pid)
            case Saving():
                self.saves_itself = True


def storage_variables() -> dict[str, str]:
    """What this process knows of the right to the storage from its environment."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
