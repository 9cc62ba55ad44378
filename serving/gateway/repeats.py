"""Requests that may be sent twice: what `Idempotency-Key` promises, kept by all gateways of a machine in one file.

One key, one account, one run: the second request with it gets the first one's answer, or hears that the first is still
running, that the key was used for something else, or that the first ended in the middle and may have been charged. What
certainly cost nothing is forgotten, so that it can be tried again. A record is written through before the engine is asked;
a gateway that dies leaves its records as "ended in the middle" once its heartbeat stops. Kept for a day.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import msgspec

from fabric.errors import Conflict, InvalidRequest, RateLimited, Unavailable

KEEP_US: Final = 24 * 3_600_000_000
KEPT_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of one answer. A larger one, or one beyond the next bounds, is not kept: its repeat hears that it was answered."""
KEPT_BYTES_PER_ACCOUNT_MAX: Final = 256 * 1024 * 1024
"""Of all answers of an account: they lie on the disk that the fabric's journal is on."""
KEPT_BYTES_IN_ALL_MAX: Final = 8 * 1024 * 1024 * 1024
BEAT_S: Final = 5.0
DEAD_US: Final = 20_000_000
"""A gateway whose heart didn't beat for so long runs no more."""
KEY_CHARACTERS_MAX: Final = 255
RECORDS_PER_ACCOUNT_MAX: Final = 100_000
_BUSY_MS: Final = 5_000
_CODE_OF_STATE: Final = {"failed": "idempotency_unfinished", "large": "idempotency_not_kept"}

Done = TypeVar("Done")

# Counting an account's records anew, with their answers between them, took a tenth of a second where there were many, and all
# gateways write into the one file, one at a time.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS repeats (
    account TEXT NOT NULL, key TEXT NOT NULL, request TEXT NOT NULL, call TEXT NOT NULL, gateway TEXT NOT NULL,
    state TEXT NOT NULL, at_us INTEGER NOT NULL, answer BLOB, PRIMARY KEY (account, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS repeats_by_age ON repeats (at_us);
CREATE TABLE IF NOT EXISTS kept (account TEXT PRIMARY KEY, records INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS one_more AFTER INSERT ON repeats BEGIN
    INSERT INTO kept VALUES (new.account, 1) ON CONFLICT (account) DO UPDATE SET records = records + 1;
END;
CREATE TRIGGER IF NOT EXISTS one_less AFTER DELETE ON repeats BEGIN
    UPDATE kept SET records = records - 1 WHERE account = old.account;
    DELETE FROM kept WHERE account = old.account AND records <= 0;
END;
CREATE TABLE IF NOT EXISTS kept_bytes (account TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS answered AFTER UPDATE OF answer ON repeats BEGIN
    INSERT INTO kept_bytes VALUES (new.account, coalesce(length(new.answer), 0)) ON CONFLICT (account)
    DO UPDATE SET bytes = max(0, bytes + coalesce(length(new.answer), 0) - coalesce(length(old.answer), 0));
END;
CREATE TRIGGER IF NOT EXISTS let_go AFTER DELETE ON repeats WHEN old.answer IS NOT NULL BEGIN
    UPDATE kept_bytes SET bytes = max(0, bytes - length(old.answer)) WHERE account = old.account;
    DELETE FROM kept_bytes WHERE account = old.account AND bytes <= 0;
END;
CREATE TABLE IF NOT EXISTS gateways (gateway TEXT PRIMARY KEY, seen_us INTEGER NOT NULL) WITHOUT ROWID;
"""

# Whoever opens a file first in which that was not counted from the beginning does so.
_VERSION: Final = 1
_COUNTED: Final = """
DELETE FROM kept;
INSERT INTO kept SELECT account, count(*) FROM repeats GROUP BY account;
DELETE FROM kept_bytes;
INSERT INTO kept_bytes SELECT account, sum(length(answer)) FROM repeats WHERE answer IS NOT NULL GROUP BY account;
"""


class Kept(msgspec.Struct, frozen=True):
    """An answer that was given."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Repeats:
    """The file. Only requests with an `Idempotency-Key` come here, each on a thread of its own."""

    def __init__(self, file: Path, *, gateway: str, now_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._file = file
        self._gateway = gateway
        self._now_us = now_us
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="repeats")
        self._opened: apsw.Connection | None = None

    async def begin(self, account_id: str, key: str, *, request: bytes, call_id: str) -> Kept | None:
        """Claim the key for a request; None: it is yours to run.

        Raises:
            InvalidRequest: the key is too long.
            Conflict: `idempotency_in_flight` (with `retry-after`), `idempotency_mismatch`, `idempotency_unfinished`,
                `idempotency_not_kept`.
            RateLimited: the account has too many keys of the last day.
            Unavailable: the promise can't be kept now.
        """
        if not 0 < len(key) <= KEY_CHARACTERS_MAX:
            raise InvalidRequest(
                f"an Idempotency-Key has 1 to {KEY_CHARACTERS_MAX} characters, not {len(key)}", code="idempotency_key"
            )
        return await self._do(lambda db: self._begin(db, account_id, key, request, call_id))

    async def finish(self, account_id: str, key: str, answer: Kept) -> None:
        """The request was answered: whoever repeats it gets the same."""
        kept = msgspec.msgpack.encode(answer) if len(answer.body) <= KEPT_BYTES_MAX else None
        await self._end(account_id, key, "done" if kept else "large", kept)

    async def fail(self, account_id: str, key: str) -> None:
        """The request ended in the middle, and may have been charged."""
        await self._end(account_id, key, "failed", None)

    async def forget(self, account_id: str, key: str) -> None:
        """The request cost nothing: it may be sent again."""
        await self._do(
            lambda db: db.execute(
                "DELETE FROM repeats WHERE account = ? AND key = ? AND gateway = ?",
                (account_id, _hashed(key), self._gateway),
            ).fetchall()
        )

    async def beat(self) -> None:
        """Say that this gateway lives, and forget what is older than a day."""
        now_us = self._now_us()

        def work(db: apsw.Connection) -> None:
            with db:
                db.execute("INSERT OR REPLACE INTO gateways VALUES (?, ?)", (self._gateway, now_us))
                db.execute("DELETE FROM gateways WHERE seen_us < ?", (now_us - KEEP_US,))
                db.execute("DELETE FROM repeats WHERE at_us < ?", (now_us - KEEP_US,))

        await self._do(work)

    def close(self) -> None:
        """Let the file go."""
        self._thread.submit(self._shut)
        self._thread.shutdown(wait=True)

    def _shut(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def _begin(self, db: apsw.Connection, account_id: str, key: str, request: bytes, call_id: str) -> Kept | None:
        now_us, hashed, digest = self._now_us(), _hashed(key), sha256(request).hexdigest()
        db.execute("BEGIN IMMEDIATE")
        try:
            found = db.execute(
                "SELECT request, call, gateway, state, at_us, answer FROM repeats WHERE account = ? AND key = ?",
                (account_id, hashed),
            ).fetchone()
            if found is not None and found[4] >= now_us - KEEP_US:
                return self._again(db, digest, found)
            self._check_room(db, account_id)
            db.execute("INSERT OR REPLACE INTO gateways VALUES (?, ?)", (self._gateway, now_us))
            db.execute("DELETE FROM repeats WHERE account = ? AND key = ?", (account_id, hashed))
            db.execute(
                "INSERT INTO repeats VALUES (?, ?, ?, ?, ?, 'running', ?, NULL)",
                (account_id, hashed, digest, call_id, self._gateway, now_us),
            )
            return None
        finally:
            db.execute("COMMIT")

    def _again(self, db: apsw.Connection, digest: str, found: tuple[Any, ...]) -> Kept:
        request, call, gateway, state, _, answer = found
        if request != digest:
            raise Conflict(
                f"this Idempotency-Key was used for another request, call {call}: take a new key for a new request",
                code="idempotency_mismatch", call=call, retry=False,
            )  # fmt: skip
        if state == "done":
            return msgspec.msgpack.decode(answer, type=Kept)
        if state == "running" and self._lives(db, gateway):
            raise Conflict(
                f"the first request with this Idempotency-Key, call {call}, is still running: ask again in 1 s",
                code="idempotency_in_flight", call=call, retry_after_s=1,
            )  # fmt: skip
        raise Conflict(
            f"the first request with this Idempotency-Key, call {call}, ended without an answer that could be kept and may"
            " have been charged (see `fabric usage`): take a new key to run it again",
            code=_CODE_OF_STATE.get(state, "idempotency_unfinished"), call=call, retry=False,
        )  # fmt: skip

    def _lives(self, db: apsw.Connection, gateway: str) -> bool:
        seen = db.execute("SELECT seen_us FROM gateways WHERE gateway = ?", (gateway,)).fetchone()
        return seen is not None and seen[0] >= self._now_us() - DEAD_US

    def _check_room(self, db: apsw.Connection, account_id: str) -> None:
        (count,) = db.execute("SELECT records FROM kept WHERE account = ?", (account_id,)).fetchone() or (0,)
        if count >= RECORDS_PER_ACCOUNT_MAX:
            raise RateLimited(
                f"{RECORDS_PER_ACCOUNT_MAX} Idempotency-Keys of yours are kept already, each for a day: leave it out",
                code="too_many_idempotency_keys", limit=RECORDS_PER_ACCOUNT_MAX, retry_after_s=60,
            )  # fmt: skip

    async def _end(self, account_id: str, key: str, state: str, answer: bytes | None) -> None:
        def work(db: apsw.Connection) -> None:
            db.execute("BEGIN IMMEDIATE")
            try:
                has_room = answer is None or _has_room(db, account_id, len(answer))
                db.execute(
                    "UPDATE repeats SET state = ?, answer = ? WHERE account = ? AND key = ? AND gateway = ?",
                    (
                        state if has_room else "large",
                        answer if has_room else None,
                        account_id,
                        _hashed(key),
                        self._gateway,
                    ),
                ).fetchall()
            finally:
                db.execute("COMMIT")

        await self._do(work)

    async def _do(self, work: Callable[[apsw.Connection], Done]) -> Done:
        def on_thread() -> Done:
            if self._opened is None:
                self._opened = _open(self._file)
            return work(self._opened)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, on_thread)
        except (apsw.Error, OSError) as error:
            raise Unavailable(
                "what an Idempotency-Key promises can't be kept now: try again, or leave it out",
                code="idempotency_unavailable", why=type(error).__name__,
            ) from None  # fmt: skip


def _has_room(db: apsw.Connection, account_id: str, size: int) -> bool:
    """Whether an answer of so many bytes may be kept beside the account's others, and beside all others."""
    kept: dict[str, int] = dict(db.execute("SELECT account, bytes FROM kept_bytes"))
    own = kept.get(account_id, 0)
    return own + size <= KEPT_BYTES_PER_ACCOUNT_MAX and sum(kept.values()) + size <= KEPT_BYTES_IN_ALL_MAX


def _open(file: Path) -> apsw.Connection:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.touch(mode=0o600, exist_ok=True)
    db = apsw.Connection(str(file))
    db.set_busy_timeout(_BUSY_MS)
    db.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 16777216")
    if _version(db) < _VERSION:
        _prepare(db)
    return db


def _prepare(db: apsw.Connection) -> None:
    """Make the tables, or those that an earlier gateway's file lacks, and count what is in it; once, whoever else is at it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        if _version(db) < _VERSION:
            db.execute(_SCHEMA)
            db.execute(_COUNTED)
            db.execute(f"PRAGMA user_version = {_VERSION}")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _version(db: apsw.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone() or (0,)
    return int(version)


def _hashed(key: str) -> str:
    return sha256(key.encode()).hexdigest()
