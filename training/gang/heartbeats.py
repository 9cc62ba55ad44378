"""Who of a gang is still alive: each rank sends every other a datagram twice a second, and notes when it last heard one.

A process that hangs, or is stopped, keeps its connections: only its silence tells. Datagrams go straight from rank to rank,
so that no rank's end can make another look silent. They carry one more word: who has found a peer lost says so, for a rank
may wait in a collective for one that is well, and itself waits no more. Knows addresses and time, and nothing of collectives.
"""

import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

Address = tuple[str, int]
BEAT_S: Final = 0.5
TOKEN_BYTES: Final = 16
_RANK_BYTES: Final = 4
_BEAT_BYTES: Final = TOKEN_BYTES + _RANK_BYTES + 1


def new_token() -> bytes:
    """What tells this gang's words from others': one for all ranks."""
    return secrets.token_bytes(TOKEN_BYTES)


class Watch:
    """The ear and voice of a rank. `meet` the peers, then ask who is `silent`."""

    def __init__(self, rank: int, *, towards: Address, silent_s: float) -> None:
        """Bind a port on the interface that leads `towards` the gang's meeting place.

        Args:
            rank: this process's own.
            towards: an address that peers share a network with.
            silent_s: a peer that says nothing for so long is silent.
        """
        self._rank = rank
        self.silent_s = silent_s
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(towards)
            host = probe.getsockname()[0]
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, 0))
        self._token = b""
        self._alarm = False
        self.alarmed = False
        """A peer says that another one is lost."""
        self._peers: dict[int, Address] = {}
        self._heard: dict[int, float] = {}
        self._end = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._speak, self._listen)]

    @property
    def address(self) -> Address:
        """Where this rank listens: to be told to the peers."""
        name: Address = self._socket.getsockname()
        return name

    def meet(self, peers: Mapping[int, Address], *, token: bytes) -> None:
        """Begin, with the addresses of the other ranks."""
        self._peers, self._token = dict(peers), token
        self._heard = dict.fromkeys(peers, time.monotonic())
        for thread in self._threads:
            thread.start()

    @property
    def silent(self) -> tuple[int, ...]:
        """The ranks that said nothing for too long."""
        before = time.monotonic() - self.silent_s
        return tuple(rank for rank, at in self._heard.items() if at < before)

    def alarm(self) -> None:
        """Tell all peers, now and with every beat, that one is lost."""
        if not self._alarm:
            self._alarm = True
            self._beat()

    def close(self) -> None:
        """Fall silent."""
        self._end.set()
        self._socket.close()

    def _speak(self) -> None:
        while not self._end.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        beat = self._token + self._rank.to_bytes(_RANK_BYTES, "big") + bytes([self._alarm])
        for address in self._peers.values():
            with suppress(OSError):  # it is gone, or we are: its own silence tells
                self._socket.sendto(beat, address)

    def _listen(self) -> None:
        while not self._end.is_set():
            try:
                said, _ = self._socket.recvfrom(_BEAT_BYTES + 1)
            except OSError:
                continue
            rank = int.from_bytes(said[TOKEN_BYTES:-1], "big")
            if len(said) == _BEAT_BYTES and said[:TOKEN_BYTES] == self._token and rank in self._heard:
                self._heard[rank] = time.monotonic()
                self.alarmed |= bool(said[-1])
