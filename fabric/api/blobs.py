"""Blobs between clients and the archive: large ones on disk, in memory only a few.

The door shares its process, and maybe the gate's, with everybody's calls. So whatever takes time or room with the size of
a blob (hashing, disks, the archive) happens in threads, and however many come at once, the memory they take is bounded. An
account keeps so many bytes and no more, what is coming in included; what none of its jobs needs any more goes.
"""

import asyncio
import hashlib
import math
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

from fabric.api.gate_port import GatePort
from fabric.api.limits import Limits
from fabric.errors import RateLimited
from fabric.gate.questions import BalanceOf, BlobsOf
from fabric.gate.views import BalanceView
from fabric.storage.archive import Kept
from fabric.system.client_threads import aside
from fabric.units import AccountId

WHOLE_MAX: Final = 3
"""Blobs in memory at once, on their way from the disk to the archive."""
PART_BYTES: Final = 1024 * 1024


DAY_US: Final = 86_400_000_000
UNUSED_US: Final = DAY_US
"""How long a blob is kept that no job names."""
USED_US: Final = 30 * DAY_US
"""How long one is kept that ended jobs name: one of them may be forked."""
LOOKED_S: Final = 600.0
"""How long it is believed what an account keeps."""
ASKED_S: Final = 10.0
"""How long it is believed that an account has tokens."""
EXPIRE_S: Final = 3_600.0
"""How often an account that keeps all it may is looked through for what nobody needs any more."""
_NEARLY_FULL: Final = 8
"""Less than one part in this many is left."""
_ACCOUNTS_MAX: Final = 10_000
BLOB_COUNTS_AS: Final = 32 * 1024
"""What a blob counts for at least: each is a name in the archive and in memory. What is smaller goes in the request itself,
but for working directories.
"""


class Room:
    """What one account keeps, and how much more it may."""

    def __init__(self, account: AccountId) -> None:
        self.account = account
        self.kept: dict[str, Kept] = {}
        self.kept_bytes = self.coming = self.most = 0
        self.looked_at = self.asked_at = self.expired_at = -math.inf
        self.lock = asyncio.Lock()

    @property
    def left(self) -> int:
        return self.most - self.coming - self.kept_bytes

    def look(self, found: Iterable[Kept]) -> None:
        """So much is kept, and no more."""
        self.kept = {each.key: each for each in found}
        self.kept_bytes = sum(map(_counts, self.kept.values()))

    def keep(self, kept: Kept) -> None:
        """One more, or the same again."""
        self.drop(kept.key)
        self.kept[kept.key] = kept
        self.kept_bytes += _counts(kept)

    def drop(self, key: str) -> None:
        """One less, if it is there."""
        gone = self.kept.pop(key, None)
        self.kept_bytes -= 0 if gone is None else _counts(gone)

    def take(self, size: int) -> None:
        """Set so much aside for what is coming in.

        Raises:
            RateLimited: `blobs_full`.
        """
        if size > self.left:
            raise RateLimited(
                f"the account keeps {self.most - self.left} bytes in blobs, each counted as {BLOB_COUNTS_AS} at"
                f" least, and may {self.most}: what no job needs goes after a day; read large data from where it lies, and without tokens, top up first",
                code="blobs_full",
                limit_bytes=self.most,
            )
        self.coming += size


def _counts(kept: Kept) -> int:
    return max(kept.bytes, BLOB_COUNTS_AS)


class Blobs:
    """What a door does with blobs."""

    def __init__(
        self,
        port: GatePort,
        *,
        limits: Limits,
        now_us: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._port = port
        self._limits = limits
        self._now_us = now_us
        self._monotonic = monotonic
        self._whole = asyncio.Semaphore(WHOLE_MAX)
        self._rooms: OrderedDict[str, Room] = OrderedDict()

    @asynccontextmanager
    async def upload(self, account: AccountId) -> AsyncIterator["Upload"]:
        """A blob that is coming: what has come counts until it is kept, or given up."""
        room = await self._room(account)
        with Upload(room) as upload:
            try:
                upload.reserve(BLOB_COUNTS_AS)
                yield upload
            finally:
                room.coming -= upload.reserved

    async def keep(self, key: str, upload: "Upload") -> None:
        """Put what has come into the archive."""
        async with self._whole:
            await self._port.put_blob(key, await upload.whole())
        upload.room.keep(Kept(key, upload.size, self._now_us()))

    def fresh(self, room: Room, key: str) -> Kept | None:
        """What is kept under a key, if it stays for long enough that a job can be made that names it."""
        kept = room.kept.get(key)
        return kept if kept is not None and self._now_us() - kept.at_us < UNUSED_US // 2 else None

    async def _room(self, account: AccountId) -> Room:
        room = self._rooms.setdefault(account, Room(account))
        self._rooms.move_to_end(account)
        if len(self._rooms) > _ACCOUNTS_MAX:
            self._rooms.popitem(last=False)
        async with room.lock:
            now = self._monotonic()
            if now - room.looked_at > LOOKED_S:
                room.look(await self._port.kept_blobs(f"blobs/{account}"))
                room.looked_at = now
            if now - room.asked_at > ASKED_S or room.most < self._limits.blobs_bytes:
                room.most, room.asked_at = await self._most(account), now
            if room.left < room.most // _NEARLY_FULL and now - room.expired_at > EXPIRE_S:
                room.expired_at = now
                await self._expire(room)
        return room

    async def _most(self, account: AccountId) -> int:
        balance = await self._port.ask(BalanceOf(account_id=account))
        funded = isinstance(balance, BalanceView) and balance.posted_uhs + balance.credit_limit_uhs > 0
        most = self._limits.blobs_bytes
        return most if funded else min(most, self._limits.blobs_bytes_without_tokens)

    async def _expire(self, room: Room) -> None:
        """Let go of what no job has named for a day, and of what jobs named that ended long ago."""
        uses: Any = await self._port.ask(BlobsOf(account_id=room.account))
        now_us, needed_us = self._now_us(), dict[str, int]()
        for use in uses:
            until_us = now_us + 1 if use.ended_at_us is None else use.ended_at_us + USED_US
            needed_us[use.key] = max(until_us, needed_us.get(use.key, 0))
        for key, kept in list(room.kept.items()):
            if max(kept.at_us + UNUSED_US, needed_us.get(key, 0)) <= now_us:
                await self._port.delete_blob(key)
                room.drop(key)

    async def parts(self, key: str) -> AsyncGenerator[bytes, None]:
        """All of it in order, at the reader's pace; at least one part. `NotFound` if there is none. Of what the archive
        finds damaged, nothing is handed out: it is on disk before the first part is.
        """
        with tempfile.SpooledTemporaryFile(PART_BYTES) as kept:
            await self._port.fetch_blob(key, kept)
            kept.seek(0)
            yield await aside(kept.read, PART_BYTES)
            while part := await aside(kept.read, PART_BYTES):
                yield part


class Upload:
    """A blob that is coming, on disk."""

    def __init__(self, room: Room) -> None:
        self.size = self.reserved = 0
        self.room = room
        self._digest = hashlib.sha256()
        self._received = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._received.close()

    @property
    def sha256(self) -> str:
        """Of what has come so far, in hex."""
        return self._digest.hexdigest()

    def reserve(self, size: int) -> None:
        """Set room aside for so much in all."""
        if size > self.reserved:
            self.room.take(size - self.reserved)
            self.reserved = size

    async def add(self, part: bytes) -> None:
        self.reserve(self.size + len(part))
        self.size += len(part)
        await aside(self._add, part)

    async def whole(self) -> bytes:
        return await aside(self._read)

    def _add(self, part: bytes) -> None:
        self._digest.update(part)
        self._received.write(part)

    def _read(self) -> bytes:
        self._received.seek(0)
        return self._received.read()
