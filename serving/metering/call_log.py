"""What a replica must not forget: how far each call has come, and which ended calls the ledger hasn't acknowledged.

An append-only file of records, each with its length and checksum. A record is in the kernel's pages before what it tells
of leaves the replica, so a killed process loses nothing; it is on the disk within a fraction of a second, for the case
that the machine itself goes down. When a replica starts again it settles what it finds, once: calls and messages are
known to the ledger by their ids. A torn end, which a crash leaves, is cut off. It knows no ledger, clock or engine.

Records are written into a mapping of the file: `write(2)` for every output gives the interpreter's lock away each time,
to the engine in its thread, and took 3 % of a small model's throughput. Room is allocated ahead, so that a full disk is
an error then and never a fault in the mapping (a file system that copies on write can still fault when it is full).
"""

import fcntl
import mmap
import os
import struct
import threading
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from fabric.charging.packages import Limit
from fabric.errors import Conflict, Unavailable
from serving.calls import Call, Usage
from serving.metering.slices import Ask, Payer

_HEAD: Final = struct.Struct("<II")
_RECORD_MAX: Final = 1 << 20
COMPACT_BYTES: Final = 16 << 20
"""A file that has grown by so much is written anew with only what is still to be settled."""

ROOM_BYTES: Final = 64 << 10
"""So much is allocated at a time; what is not used yet reads as zeros."""


class Held(msgspec.Struct, frozen=True, array_like=True, tag="h"):
    """A hold of which calls may be charged; the highest number a message about it had."""

    hold_id: str
    account_id: str
    key_id: str
    covered: bool
    seq: int = 0


class Began(msgspec.Struct, frozen=True, array_like=True, tag="b"):
    """A call was admitted; `call.ended` says what it is should nothing more be known of it."""

    hold_id: str
    call: Call


class Moved(msgspec.Struct, frozen=True, array_like=True, tag="m"):
    """So much the engine has produced and the call has paid for."""

    call_id: str
    cached: int
    completion: int
    reasoning: int
    packages: tuple[Limit, ...] | None = None
    """What it is promised of packages by now; None = as before."""


class Closed(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    call: Call


class Acknowledged(msgspec.Struct, frozen=True, array_like=True, tag="k"):
    """The ledger has these calls; `over`: and the hold is settled, whatever calls of it are left."""

    hold_id: str
    seq: int
    call_ids: tuple[str, ...]
    over: bool


Record = Held | Began | Moved | Closed | Acknowledged
_DECODER: Final = msgspec.msgpack.Decoder(Record)


@dataclass(slots=True)
class _Hold:
    held: Held
    calls: dict[str, Call] = field(default_factory=dict)
    over: bool = False
    """Settled, but for calls that the ledger has refused and not kept as open yet."""


class CallLog:
    """One replica's file. `unsettled` is what an earlier process left in it.

    Args:
        path: of the file; created with its folder where it is missing.

    Raises:
        Conflict: another process has it open.
        Unavailable: it can't be read or written (code `outbox_unwritable`).
    """

    def __init__(self, path: Path, *, compact_bytes: int = COMPACT_BYTES) -> None:
        self.path = path
        self.failing: str = ""
        """Why the last record could not be written; empty while all is well."""
        self.damaged_bytes = 0
        """What was cut off at the end when the file was opened."""
        self._compact_bytes = compact_bytes
        self._holds: dict[str, _Hold] = {}
        self._hold_of: dict[str, str] = {}
        self._swapping = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise _unwritable(path, error) from error
        self._lock()
        self._size = self._read()
        try:
            self._map = _mapped(self._file, self._size)
        except OSError as error:
            os.close(self._file)
            raise _unwritable(path, error) from error
        self._synced = self._size
        self._compact_at = max(compact_bytes, 2 * self._size)
        self.unsettled = self._left()

    # -- what happens --------------------------------------------------------------------------------------------------

    def held(self, ask: Ask) -> None:
        """Before a message about a hold goes out: its number is used up."""
        payer = ask.payer
        self._note(Held(ask.hold_id, payer.account_id, payer.key_id, payer.covered, ask.seq))

    def began(self, hold_id: str, call: Call) -> None:
        """Before the engine is given the call.

        Raises:
            Unavailable: it can't be written (a full disk): the call must not begin.
        """
        before = self._size
        self._note(Began(hold_id, call))
        if self.failing:
            self._hold_of.pop(call.call_id, None)
            self._holds[hold_id].calls.pop(call.call_id, None)
            self._take_back(before)
            raise Unavailable(
                f"the replica can't record calls ({self.failing}): free space in {self.path.parent}, then try again",
                code="outbox_unwritable",
            )

    def moved(self, call_id: str, usage: Usage, *, packages: tuple[Limit, ...] = ()) -> None:
        """Before an output leaves."""
        calls = self._calls_with(call_id) if packages else None
        known = packages if calls is None else calls[call_id].packages
        more = None if packages == known else packages
        self._note(Moved(call_id, usage.cached_tokens, usage.completion_tokens, usage.reasoning_tokens, more))

    def closed(self, call: Call) -> None:
        self._note(Closed(call))

    def acknowledged(self, ask: Ask, *, over: bool) -> None:
        """The ledger has answered this message. `over`: the hold is settled, and what is left of it are calls that the
        ledger has refused: they stay here until it keeps them.
        """
        ids = tuple(call.call_id for call in ask.calls)
        self._note(Acknowledged(ask.hold_id, ask.seq, ids, over))
        if self._size > self._compact_at and not self.failing:
            self.compact()

    def forget(self, hold_id: str) -> None:
        """The ledger never granted this hold."""
        self._note(Acknowledged(hold_id, 0, (), over=True))

    def sync(self) -> None:
        """Put on the disk what was handed to the kernel. Takes milliseconds: call it from a thread."""
        with self._swapping:
            size, file = self._size, os.dup(self._file)
        try:
            if size != self._synced:
                os.fdatasync(file)
                self._synced = size
        finally:
            os.close(file)

    def close(self, *, remove: bool = False) -> None:
        """Let go of the file; `remove` it where nothing in it is needed any more."""
        if remove:
            self.path.unlink(missing_ok=True)
        self._map.close()
        os.ftruncate(self._file, self._size)
        os.close(self._file)

    def compact(self) -> None:
        """Write the file anew, with only what is unsettled; the old one stands until the new one is on the disk."""
        fresh = self.path.with_suffix(".new")
        try:
            whole = b"".join(self._framed(record) for record in self._standing())
            file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mapped = _mapped(file, len(whole))
                mapped[: len(whole)] = whole
                os.fsync(file)
                fresh.replace(self.path)
                _sync_folder(self.path.parent)
            except OSError:
                os.close(file)
                raise
        except OSError as error:
            self._compact_at = self._size + self._compact_bytes
            self.failing = self.failing or (error.strerror or str(error))
            return
        with self._swapping:
            self._map.close()
            os.close(self._file)
            self._file, self._map, self._size, self._synced = file, mapped, len(whole), 0
        self._compact_at = max(self._compact_bytes, 2 * self._size)

    # -- records -------------------------------------------------------------------------------------------------------

    def _note(self, record: Record) -> None:
        self._apply(record)
        framed = self._framed(record)
        end = self._size + len(framed)
        if end > len(self._map):
            try:
                self._make_room(end)
            except OSError as error:
                self.failing = error.strerror or str(error)
                return
        self._map[self._size : end] = framed
        self._size = end
        if self.failing:
            self._recover()

    def _take_back(self, size: int) -> None:
        """Nothing after `size` was said: a record may have fit into what room there was though others had not."""
        self._map[size : self._size] = bytes(self._size - size)
        self._size = size

    def _make_room(self, end: int) -> None:
        size = _with_room(end)
        os.posix_fallocate(self._file, 0, size)
        self._map.resize(size)

    def _recover(self) -> None:
        """It writes again: what was missed meanwhile is in memory, so the file is written anew."""
        self.failing = ""
        self.compact()

    def _framed(self, record: Record) -> bytes:
        body = self._encoder.encode(record)
        return _HEAD.pack(len(body), zlib.crc32(body)) + body

    def _apply(self, record: Record) -> None:  # noqa: C901 - one arm for each kind
        match record:
            case Held(hold_id=hold_id):
                if (known := self._holds.get(hold_id)) is None:
                    self._holds[hold_id] = _Hold(record)
                elif record.seq > known.held.seq:
                    known.held = record
            case Began(hold_id=hold_id, call=call):
                if hold_id in self._holds:
                    self._holds[hold_id].calls[call.call_id] = call
                    self._hold_of[call.call_id] = hold_id
            case Moved(call_id=call_id, cached=cached, completion=completion, reasoning=reasoning, packages=packages):
                if (calls := self._calls_with(call_id)) is not None:
                    call = calls[call_id]
                    usage = Usage(call.usage.prompt_tokens, cached, completion, reasoning)
                    packages = call.packages if packages is None else packages
                    calls[call_id] = msgspec.structs.replace(call, usage=usage, packages=packages)
            case Closed(call=call):
                if (calls := self._calls_with(call.call_id)) is not None:
                    calls[call.call_id] = call
            case Acknowledged():
                self._acknowledge(record)

    def _acknowledge(self, record: Acknowledged) -> None:
        hold = self._holds.get(record.hold_id)
        if hold is None:
            return
        for call_id in record.call_ids:
            self._hold_of.pop(call_id, None)
            hold.calls.pop(call_id, None)
        hold.over = hold.over or record.over
        if hold.over and not hold.calls:
            del self._holds[record.hold_id]

    def _calls_with(self, call_id: str) -> dict[str, Call] | None:
        hold_id = self._hold_of.get(call_id)
        return None if hold_id is None else self._holds[hold_id].calls

    def _standing(self) -> list[Record]:
        records: list[Record] = []
        for hold_id, hold in self._holds.items():
            records.append(hold.held)
            records.extend(Began(hold_id, call) for call in hold.calls.values())
            if hold.over:
                records.append(Acknowledged(hold_id, 0, (), over=True))
        return records

    def _left(self) -> list[Ask]:
        """For each hold that was not settled: the message that settles it, with what its calls used."""
        return [
            Ask(
                "record" if hold.held.covered else "settle",
                hold_id,
                Payer(hold.held.account_id, hold.held.key_id, hold.held.covered),
                hold.held.seq + 1,
                tuple(hold.calls.values()),
            )
            for hold_id, hold in self._holds.items()
        ]

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._file).st_ino != self.path.stat().st_ino:
                raise FileNotFoundError
        except OSError as error:
            os.close(self._file)
            raise Conflict(
                f"{self.path} is in use by another replica: give each replica a name of its own", path=str(self.path)
            ) from error

    def _read(self) -> int:
        """Bring back the state; the length of what was sound, to which the file is cut."""
        whole = self.path.read_bytes()
        at = 0
        while at + _HEAD.size <= len(whole):
            length, checksum = _HEAD.unpack_from(whole, at)
            body = whole[at + _HEAD.size : at + _HEAD.size + length]
            if length > _RECORD_MAX or len(body) < length or zlib.crc32(body) != checksum:
                break
            try:
                self._apply(_DECODER.decode(body))
            except msgspec.DecodeError:
                break
            at += _HEAD.size + length
        damaged = whole[at:].rstrip(b"\0")
        self.damaged_bytes = len(damaged)
        if damaged:
            self.path.with_suffix(".damaged").write_bytes(damaged)
        os.ftruncate(self._file, at)
        return at


def _mapped(file: int, size: int) -> mmap.mmap:
    """The file with room for more than `size` bytes, mapped for writing."""
    room = _with_room(size)
    os.posix_fallocate(file, 0, room)
    return mmap.mmap(file, room)


def _sync_folder(folder: Path) -> None:
    """Or a machine that goes down finds the old file there, and what the new one had been given since is lost."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _with_room(size: int) -> int:
    return (size // ROOM_BYTES + 1) * ROOM_BYTES


def _unwritable(path: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"{path} can't be opened: {error.strerror}. Give the replica a folder it may write to",
        code="outbox_unwritable",
        path=str(path),
    )
