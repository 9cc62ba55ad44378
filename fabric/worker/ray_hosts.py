"""The Ray of a program that has devices on several nodes: its first rank starts it, and the others join with theirs.

The program runs once, in the first rank. When its `ray.init()` has started a head, the rank's runner hears of it over a Unix
socket, and tells the runners of the other ranks, which have connected meanwhile and start a raylet each, below themselves.
When the program has ended the connections close, and so do they. A rank shows with the attempt's word that it is one.
"""

import hmac
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from fabric.context.link import reach
from fabric.gate.events import LeaseOutcome
from fabric.system.messages import Talk
from fabric.system.private_folder import make_private
from fabric.system.strangers import Strangers
from fabric.worker.job_output import logged
from fabric.worker.lease_ray_settings import LOOPBACK, START_S, LeaseRay, variables_for
from fabric.worker.stage import JobEnd, Stage

JOIN_S: Final = 90.0 + START_S
"""How long ranks wait for each other."""
HELLO_S: Final = 10.0
"""How long the next piece of a rank's first word may take."""
STRANGERS_MAX: Final = 128
"""Connections that haven't said a word that is ours: the oldest makes way, and ranks say theirs at once."""
_WORDS_BYTES_MAX: Final = 16_384
_RETRY_S: Final = 0.2
_END_S: Final = 5.0
_BACKLOG: Final = 64
_WORD_BYTES: Final = 32


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """What a rank says first."""

    word: str


class Head(msgspec.Struct, frozen=True, kw_only=True, tag="head"):
    """Where the program's Ray is, and what its processes show each other."""

    address: str
    token: str
    folder: str
    """Where it keeps its sessions: the others must, too."""


Said = Hello | Head
_decode = msgspec.msgpack.Decoder(Said).decode


def new_word() -> str:
    """By which the ranks of one attempt know each other."""
    return secrets.token_hex(_WORD_BYTES)


class Meeting:
    """The first rank's side: open while the program runs."""

    def __init__(self, *, port: int, word: str, bell: Path) -> None:
        """Others connect to the port; the program's process to `bell`."""
        self._word = word
        self._bell = bell
        self._ranks: list[Talk[Said]] = []
        self._head: Head | None = None
        self._strangers = Strangers[Talk[Said]](STRANGERS_MAX, end=Talk.end)
        self._lock = threading.Lock()
        self._door = socket.create_server(("", port), backlog=_BACKLOG)
        self._inside = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bell.unlink(missing_ok=True)
        reach(self._inside.bind, bell)
        self._inside.listen(_BACKLOG)
        for listener, meet in ((self._door, self._join), (self._inside, self._hear)):
            threading.Thread(target=_serve, args=(listener, meet), name="fabric-ranks", daemon=True).start()

    def close(self) -> None:
        """Let all go."""
        for listener in (self._door, self._inside):
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            self._strangers.end_all()
            known, self._ranks = self._ranks, []
        for talk in known:
            talk.end()
        self._bell.unlink(missing_ok=True)

    def _join(self, talk: Talk[Said]) -> None:
        with self._lock:
            self._strangers.come(talk)
        said = talk.hear()
        with self._lock:
            self._strangers.leave(talk)
        if not isinstance(said, Hello) or not hmac.compare_digest(said.word, self._word):
            talk.end()
            return
        with self._lock:
            self._ranks.append(talk)
            if self._head is not None:
                talk.say(self._head)

    def _hear(self, talk: Talk[Said]) -> None:
        while isinstance(said := talk.hear(), Head):
            with self._lock:
                self._head = said
                for rank in self._ranks:
                    rank.say(said)
        talk.close()


def ring(bell: str, head: Head) -> None:
    """In the program's process: say that its Ray has started."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        reach(connection.connect, Path(bell))
        Talk(connection, _decode).say(head)


def host(stage: Stage, *, word: str) -> JobEnd:
    """Another rank's side: give its devices to the program's Ray until the program has ended; never raises."""
    try:
        make_private(stage.folder)
        with logged(stage.log_file):
            return _hosted(stage, word)
    except Exception as error:  # noqa: BLE001  # whatever it is, the rank says how it ended
        return JobEnd(outcome=LeaseOutcome.INTERRUPTED, error=f"the rank could not join the program's Ray: {error!r}")


def _hosted(stage: Stage, word: str) -> JobEnd:
    own = stage.own_ray
    assert own is not None
    connection = _connected(stage.master)
    connection.settimeout(None)
    talk = Talk(connection, _decode)
    talk.say(Hello(word=word))
    raylet: subprocess.Popen[bytes] | None = None
    try:
        while isinstance(said := talk.hear(), Head):
            _end(raylet)
            raylet = _joined(own, said)
    finally:
        _end(raylet)
        talk.close()
    return JobEnd(outcome=LeaseOutcome.SUCCEEDED)


def _connected(at: tuple[str, int]) -> socket.socket:
    give_up_at = time.monotonic() + JOIN_S
    while True:
        try:
            return socket.create_connection(at, timeout=_RETRY_S * 10)
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(_RETRY_S)


def _joined(own: LeaseRay, head: Head) -> "subprocess.Popen[bytes]":
    """A raylet of the program's Ray, with this rank's devices."""
    there, here = Path(head.folder), Path(os.path.realpath(own.folder))
    here.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not there.exists() and there.parent == Path(own.folder).parent:
        there.unlink(missing_ok=True)
        there.symlink_to(here)  # its sessions lie at the same path on every machine
    gpus = own.devices.get("GPU", 0)
    resources = {name: amount for name, amount in {**own.also, **own.devices}.items() if name != "GPU"}
    variables = {
        **variables_for(own, os.environ),
        "RAY_AUTH_TOKEN": head.token,
        "RAY_AUTH_MODE": "token",
    }
    for name in ("RAY_AUTH_TOKEN_PATH", LOOPBACK):
        variables.pop(name, None)
    words = [
        "-m", "fabric.worker.ray_hosts", "start", f"--address={head.address}", "--block", "--disable-usage-stats",
        f"--num-gpus={gpus:g}", f"--num-cpus={own.cpus}", f"--object-store-memory={own.store_bytes}",
        f"--resources={msgspec.json.encode(resources).decode()}",
    ]  # fmt: skip
    return subprocess.Popen([sys.executable, *words], env=variables, start_new_session=True)  # noqa: S603  # Ray's own


def _end(raylet: "subprocess.Popen[bytes] | None") -> None:
    if raylet is not None:
        with suppress(OSError):
            os.killpg(raylet.pid, signal.SIGTERM)
        try:
            raylet.wait(_END_S)
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                os.killpg(raylet.pid, signal.SIGKILL)
            raylet.wait()


def _serve(listener: socket.socket, meet: Callable[[Talk[Said]], None]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.settimeout(HELLO_S if connection.family != socket.AF_UNIX else None)
        talk = Talk(connection, _decode, word_bytes_max=_WORDS_BYTES_MAX)
        threading.Thread(target=meet, args=(talk,), name="fabric-rank", daemon=True).start()


def main() -> None:
    """Ray's command, which starts a node, with patience."""
    from ray.scripts import scripts  # noqa: PLC0415  # it imports Ray, which is the lease's

    from fabric.worker.ray_node import patience  # noqa: PLC0415  # the same

    with patience():
        scripts.main()


if __name__ == "__main__":
    main()
