"""What calls cost that were answered lately: kept by all gateways of a machine in one file, for a day, for whoever asks.

A call is written down when its answer has ended, together with others once a second, so that no answer waits for a disk. Of
one whose client left before the end the charge is known to its replica alone, which is asked for it.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import apsw
import msgspec

KEEP_US: Final = 24 * 3_600_000_000
FRESH_MAX: Final = 20_000
"""In memory, until they are written; beyond, the oldest are not."""
ROWS_MAX: Final = 2_000_000
PRUNE_US: Final = 60_000_000
_BUSY_MS: Final = 5_000
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS generations (call TEXT PRIMARY KEY, account TEXT NOT NULL, at_us INTEGER NOT NULL, said BLOB NOT NULL)
WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS generations_by_age ON generations (at_us);
CREATE INDEX IF NOT EXISTS generations_by_account ON generations (account, at_us);
"""


_BY_ACCOUNT: Final = "SELECT account, count(*) FROM generations GROUP BY account ORDER BY 2 DESC"
_DROP_OLDEST: Final = (
    "DELETE FROM generations WHERE call IN (SELECT call FROM generations WHERE account = ? ORDER BY at_us LIMIT ?)"
)

Done = TypeVar("Done")


class Generation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call that was passed on to a replica."""

    call_id: str
    account_id: str
    key_id: str
    model: str
    at_us: int
    took_us: int
    streamed: bool
    status: int
    ended: str
    charged_uhs: int | None = None
    """None: its client left before that was known."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    replica_id: str = ""
    address: str = ""
    tls_sha256: str = ""
    tags: tuple[str, ...] = ()


class Generations:
    """The file, and what is not in it yet."""

    def __init__(self, file: Path, *, now_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._file, self._now_us = file, now_us
        self._fresh: OrderedDict[str, Generation] = OrderedDict()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generations")
        self._opened: apsw.Connection | None = None
        self._pruned_us = 0

    def note(self, one: Generation) -> None:
        """Keep one; it is written with the next others."""
        self._fresh[one.call_id] = one
        if len(self._fresh) > FRESH_MAX:
            self._fresh.popitem(last=False)

    async def find(self, account_id: str, call_id: str) -> Generation | None:
        """One of an account's; None where there is none, or it is another's."""
        found = self._fresh.get(call_id)
        if found is None:
            found = await self._do(lambda: self._read(call_id))
        return found if found is not None and found.account_id == account_id else None

    async def flush(self) -> None:
        """Write what is new, and forget what is old."""
        if self._fresh:
            batch = list(self._fresh.values())
            await self._do(lambda: self._write(batch))
            for one in batch:
                if self._fresh.get(one.call_id) is one:
                    del self._fresh[one.call_id]

    def close(self) -> None:
        """Let go of the file, with all in it."""
        if self._fresh:
            self._thread.submit(self._write, list(self._fresh.values())).result()
        self._thread.submit(self._let_go).result()
        self._thread.shutdown()

    async def _do(self, work: Callable[[], Done]) -> Done:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _connection(self) -> apsw.Connection:
        if self._opened is None:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file.touch(mode=0o600)
            opened = apsw.Connection(str(self._file))
            opened.set_busy_timeout(_BUSY_MS)
            opened.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF")  # a courtesy: the books have it all
            opened.execute(_SCHEMA)
            self._opened = opened
        return self._opened

    def _write(self, batch: list[Generation]) -> None:
        connection = self._connection()
        with connection:
            rows = [(one.call_id, one.account_id, one.at_us, msgspec.msgpack.encode(one)) for one in batch]
            connection.executemany("INSERT OR REPLACE INTO generations VALUES (?, ?, ?, ?)", rows)
        now_us = self._now_us()
        if now_us - self._pruned_us >= PRUNE_US:
            self._pruned_us = now_us
            self._prune(connection, now_us)

    def _prune(self, connection: apsw.Connection, now_us: int) -> None:
        """Forget what is old, and where there are too many, the oldest of the accounts that have most."""
        with connection:
            connection.execute("DELETE FROM generations WHERE at_us < ?", (now_us - KEEP_US,))
            (count,) = next(iter(connection.execute("SELECT count(*) FROM generations")))
            if count > ROWS_MAX:
                of = list(connection.execute(_BY_ACCOUNT))
                most = _level([each for _, each in of], ROWS_MAX)
                for account, each in of:
                    if each > most:
                        connection.execute(_DROP_OLDEST, (account, each - most))

    def _read(self, call_id: str) -> Generation | None:
        for (said,) in self._connection().execute("SELECT said FROM generations WHERE call = ?", (call_id,)):
            return msgspec.msgpack.decode(said, type=Generation)
        return None

    def _let_go(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def _level(counts: list[int], room: int) -> int:
    """How many each may have at most, so that all have room; `counts` falls."""
    left = room
    for place, count in enumerate(reversed(counts)):
        share = left // (len(counts) - place)
        if count > share:
            return share
        left -= count
    return max(counts, default=0)
