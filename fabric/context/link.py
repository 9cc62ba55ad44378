"""How a process that a job's program has started finds the job's context: over a socket that its environment names.

    FABRIC_CONTEXT=/…/context python train.py        # fabric.context.current() is the job, in any process below its program

The process that runs the program (`fabric.context.host`) says who and where the job is; the linked process saves by itself, and
tells of it; wishes to save and to stop come the other way. Loads neither Ray nor the gate's words.
"""

import atexit
import os
import pickle
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from fabric import context, launched
from fabric.checkpoints.jobs import checkpoints_in
from fabric.progress import Progress
from fabric.storage.archive import Archive
from fabric.storage.publishing import publisher
from fabric.storage.quota import ArchiveLimits, ArchiveQuota
from fabric.storage.shard_cache import ShardCache
from fabric.system.messages import Talk

_CONNECT_S: Final = 10.0
_HEARD_S: Final = 5.0
_PATH_CHARS_MAX: Final = 100
"""What the kernel takes as a socket's path is hardly longer."""


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


class NoRoom(msgspec.Struct, frozen=True, kw_only=True, tag="no_room"):
    """A save was not kept for want of room."""

    why: str


class Leaving(msgspec.Struct, frozen=True, kw_only=True, tag="leaving"):
    """The process ends the attempt, which nobody has asked it to."""

    why: str


class Listening(msgspec.Struct, frozen=True, kw_only=True, tag="listening"):
    """The process looks whether it should stop: so it needs no signal."""


class ListeningNoMore(msgspec.Struct, frozen=True, kw_only=True, tag="listening_no_more"):
    """Nothing in the process looks for that any more."""


class Saving(msgspec.Struct, frozen=True, kw_only=True, tag="saving"):
    """The process has to do with checkpoints: it saves by itself what the job needs."""


class Invitation(msgspec.Struct, frozen=True, kw_only=True, tag="invitation"):
    """The first word: all that a context is made of."""

    place: context.Place
    attempt_id: str
    archive: bytes
    """Pickled."""
    stage_dir: str
    cache: str
    cache_bytes: int
    limits: ArchiveLimits = ArchiveLimits()
    prefixes: tuple[str, ...]
    folder: str
    storage: dict[str, str] = {}
    """What the environment says of the right to the storage, for a process whose own doesn't."""
    stop: StopWish | None = None
    """It was asked to stop already."""


class Heard(msgspec.Struct, frozen=True, kw_only=True, tag="heard"):
    """The answer to every word that isn't a report."""


Told = Invitation | StopWish | SaveWish | Heard
_decode = msgspec.msgpack.Decoder(Told).decode


class Telling:
    """Tells what must have been heard before the process goes on: it may be ended, or end by itself, the moment after."""

    def __init__(self, talk: Talk[Told]) -> None:
        """Over a talk whose other side answers each word with `Heard`."""
        self._talk = talk
        self._one_by_one = threading.RLock()
        self._heard = threading.Semaphore(0)
        self._is_over = False

    def tell(self, word: Saved | NoRoom | Leaving | Listening | ListeningNoMore | Saving) -> None:
        """Returns once it was heard; also when nobody hears any more, or not in time."""
        with self._one_by_one:
            if not self._is_over:
                self._talk.say(word)
                self._heard.acquire(timeout=_HEARD_S)

    def heard(self) -> None:
        """The other side has answered."""
        self._heard.release()

    def over(self) -> None:
        """The other side is gone."""
        self._is_over = True
        self._heard.release()


def linked(address: str) -> tuple[context.Context, Talk[Told]] | None:
    """The job's context for this process; None if nobody answers there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT_S)
        reach(connection.connect, Path(address))
        talk = Talk(connection, _decode)
        said = talk.hear()
        connection.settimeout(None)
    except OSError:
        connection.close()
        return None
    if not isinstance(said, Invitation):
        connection.close()
        return None
    telling = Telling(talk)
    made = _context_of(said, talk, telling)
    threading.Thread(target=_listen, args=(talk, made, telling), name="fabric-wishes", daemon=True).start()
    atexit.register(made.tell)
    return made, talk


def reach(call: Callable[[str], None], path: Path) -> None:
    """Bind or connect to a path that may be longer than a socket's."""
    if len(os.fsencode(path)) <= _PATH_CHARS_MAX:
        call(str(path))
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        call(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _context_of(said: Invitation, talk: Talk[Told], telling: Telling) -> context.Context:
    for name, value in said.storage.items():
        os.environ.setdefault(name, value)
    archive: Archive = pickle.loads(said.archive)  # noqa: S301  # from the process that started the job's program
    place = _placed(said.place)
    quota = ArchiveQuota(archive, place.account_id, said.limits)
    checkpoints = checkpoints_in(
        archive,
        place.account_id,
        place.job_id,
        epoch=place.attempt,
        attempt_id=said.attempt_id,
        stage_dir=said.stage_dir,
        quota=quota,
    )
    made = context.Context(
        place,
        checkpoints=checkpoints,
        on_saved=lambda step, write_us, size: telling.tell(Saved(step=step, write_us=write_us, size=size)),
        on_report=lambda: talk.say(Reported(progress=made.progress)),
        on_listen=lambda: telling.tell(Listening()),
        on_listen_no_more=lambda: telling.tell(ListeningNoMore()),
        on_checkpoints=lambda: telling.tell(Saving()),
        on_refused=lambda why: telling.tell(NoRoom(why=why)),
        on_leave=lambda why: telling.tell(Leaving(why=why)),
        publish=publisher(archive, place.account_id, place.job_id, quota=quota),
        cache=ShardCache(Path(said.cache), limit_bytes=said.cache_bytes),
        prefixes=said.prefixes,
        folder=Path(said.folder),
    )
    made.owns_process = True
    if said.stop is not None:
        _ask(made, said.stop)
    return made


def _placed(place: context.Place) -> context.Place:
    """Where a launcher has made ranks of its own, this process is the one that its environment tells of."""
    launched.adopt(os.environ, node=place.rank, nodes=place.world_size)
    rank, world = _number("RANK", place.rank), _number("WORLD_SIZE", place.world_size)
    if (rank, world) == (place.rank, place.world_size):
        return place
    devices, here, at = place.devices, _number("LOCAL_WORLD_SIZE", 1), _number("LOCAL_RANK", 0)
    if here == len(devices) and 0 <= at < here:
        devices = devices[at : at + 1]
    return msgspec.structs.replace(place, rank=rank, world_size=world, devices=devices)


def _number(name: str, otherwise: int) -> int:
    said = os.environ.get(name, "")
    return int(said) if said.isdecimal() else otherwise


def _listen(talk: Talk[Told], made: context.Context, telling: Telling) -> None:
    while (said := talk.hear()) is not None:
        match said:
            case StopWish():
                _ask(made, said)
            case SaveWish():
                made.ask_to_save()
            case Heard():
                telling.heard()
            case _:
                pass
    telling.over()


def _ask(made: context.Context, wish: StopWish) -> None:
    made.ask_to_stop(wish.reason, seconds_left=wish.seconds_left, save=wish.save)


def left_behind(talk: Talk[Told]) -> None:
    """In a child that was forked from a linked process: the link is its parent's."""
    with suppress(OSError):
        talk.close()
