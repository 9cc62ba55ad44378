"""The journal in one SQLite file: durable on one machine, with nothing to install.

WAL with synchronous=FULL, so an answered commit survives loss of power. One connection writes, in a thread of its own,
and is the only one that checkpoints; another reads. The newest to open the file is the writer: every commit checks its
epoch inside the transaction, so a process that hung and comes back is fenced out, and no lock file can be left behind.
SQLite's pages have no checksums, so every row read is hashed again; knows nothing of what a leaf says.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import apsw

from fabric.audit.merkle import EMPTY_ROOT, leaf_hash
from fabric.errors import JournalCorrupt
from fabric.journal import integrity
from fabric.journal.sqlite_file import SqliteFile
from fabric.journal.store import Entry, Snapshot, TreeHead

P = ParamSpec("P")
T = TypeVar("T")

SCHEMA_VERSION: Final = 1
BUSY_MS: Final = 10_000
CHECKPOINT_PAGES: Final = 4_000
INDEX_EVERY: Final = 4_096
"""Entries are indexed by account so many at a time: one by one, each would touch a page of its account's."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS head (
  singleton INTEGER PRIMARY KEY CHECK (singleton = 1), epoch INTEGER NOT NULL, size INTEGER NOT NULL, root BLOB NOT NULL,
  indexed INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS entries (
  seq INTEGER PRIMARY KEY, leaf BLOB NOT NULL, leaf_hash BLOB NOT NULL, accounts TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS account_entries (
  account_id TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (account_id, seq)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS snapshots (
  size INTEGER PRIMARY KEY, root BLOB NOT NULL, edge BLOB NOT NULL, state BLOB NOT NULL, digest BLOB NOT NULL) STRICT;
"""
_ROWS: Final = "SELECT seq, leaf, leaf_hash, accounts FROM entries WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?"
_ROWS_OF: Final = (
    "SELECT seq, leaf, leaf_hash, accounts FROM account_entries JOIN entries USING (seq)"
    " WHERE account_id = ? AND seq >= ? AND seq < ? ORDER BY seq LIMIT ?"
)
_INDEX: Final = """
INSERT OR IGNORE INTO account_entries
  SELECT account.value, seq FROM entries, json_each(entries.accounts) AS account
  WHERE seq >= (SELECT indexed FROM head) ORDER BY 1, 2;
UPDATE head SET indexed = size
"""
_END_OF_TIME: Final = 2**62


class SqliteJournal(SqliteFile):
    """A `Journal` in a file. Not open until `open()`; opening it again takes a new epoch."""

    def __init__(self, path: Path | str, *, vfs: str | None = None, max_pages: int | None = None) -> None:
        """Name the file.

        Args:
            path: created when opened, with its directory.
            vfs: another way to the disk than the system's, by the name apsw knows it under.
            max_pages: a limit to the file's size: beyond it a commit fails like on a full disk.
        """
        super().__init__(path, name="journal", translating=_translating)
        self._vfs = vfs
        self._max_pages = max_pages
        self._epoch = 0

    async def exists(self) -> bool:
        return await self._in(self._reading, self._exists)

    async def open(self) -> int:
        """Take the journal over, and check that what it holds hashes to what was sealed."""
        await self._in(self._reading, self._close_reader)
        self._epoch = await self._in(self._writing, self._take_over)
        await self._in(self._reading, self._check)
        return self._epoch

    async def head(self) -> TreeHead:
        return await self._in(self._reading, self._head)

    async def append(self, entries: Sequence[Entry], head: TreeHead) -> None:
        await self._in(self._writing, self._append, entries, head)

    async def read(
        self, start: int = 0, stop: int | None = None, *, account: str | None = None
    ) -> AsyncIterator[Entry]:
        end = _END_OF_TIME if stop is None else stop
        while start < end:
            rows = await self._in(self._reading, self._rows, start, end, account)
            for entry in rows:
                yield entry
            if len(rows) < integrity.ROWS_PER_READ:
                return
            start = rows[-1].seq + 1

    async def leaf_hashes(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        return await self._in(self._reading, self._leaf_hashes, start, stop)

    async def stored_from(self, seq: int) -> int | None:
        return await self._in(self._reading, self._stored_from, seq)

    async def save_snapshot(self, snapshot: Snapshot) -> None:
        await self._in(self._writing, self._save_snapshot, snapshot)

    async def load_snapshot(self, *, at_most: int | None = None) -> Snapshot | None:
        return await self._in(self._reading, self._load_snapshot, _END_OF_TIME if at_most is None else at_most)

    # -- in the writing thread -----------------------------------------------------------------------------------------

    def _take_over(self) -> int:
        self._close_writer()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        keep_private(self.path)
        connection = self._connect()
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        if self._max_pages is not None:
            connection.execute(f"PRAGMA max_page_count = {self._max_pages}")
        self._writer = connection
        with transaction(connection):
            version = connection.execute("PRAGMA user_version").get
            if version not in (0, SCHEMA_VERSION):
                raise integrity.corrupt(f"it was written by another version (schema {version})", seq=None)
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("INSERT OR IGNORE INTO head VALUES (1, 0, 0, ?, 0)", (EMPTY_ROOT,))
            epoch: int = connection.execute("UPDATE head SET epoch = epoch + 1 RETURNING epoch").get
        return epoch

    def _append(self, entries: Sequence[Entry], head: TreeHead) -> None:
        connection = self._writer
        assert connection is not None, "open() comes first"
        start = head.size - len(entries)
        integrity.check_order(entries, start=start, head=head)
        rows = [
            (entry.seq, entry.leaf, leaf_hash(entry.leaf), integrity.join_accounts(entry.accounts)) for entry in entries
        ]
        with transaction(connection):
            self._fence(connection)
            connection.execute("UPDATE head SET size = ?, root = ? WHERE size = ?", (head.size, head.root, start))
            if connection.changes() != 1:
                raise integrity.corrupt(
                    f"the sealed size is not {start}, after which entries were to be added", seq=start
                )
            connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", rows)
            if head.size // INDEX_EVERY > start // INDEX_EVERY:
                connection.execute(_INDEX)

    def _save_snapshot(self, snapshot: Snapshot) -> None:
        connection = self._writer
        assert connection is not None, "open() comes first"
        row = (
            snapshot.size,
            snapshot.root,
            b"".join(snapshot.edge),
            snapshot.state,
            integrity.snapshot_digest(snapshot),
        )
        with transaction(connection):
            self._fence(connection)
            connection.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?)", row)
            connection.execute(
                "DELETE FROM snapshots WHERE size NOT IN (SELECT size FROM snapshots ORDER BY size DESC LIMIT ?)",
                (integrity.SNAPSHOTS_KEPT,),
            )

    def _fence(self, connection: apsw.Connection) -> None:
        found = connection.execute("SELECT epoch FROM head").get
        if found != self._epoch:
            raise integrity.fenced(epoch=self._epoch, found=found)

    # -- in the reading thread -----------------------------------------------------------------------------------------

    def _exists(self) -> bool:
        query = "SELECT count(*) FROM sqlite_master WHERE name IN ('head', 'entries', 'account_entries')"
        return self.path.exists() and self._read_from().execute(query).get == len(
            ("head", "entries", "account_entries")
        )

    def _check(self) -> None:
        try:
            head, hashes = self._head(), self._leaf_hashes(0, None)
            integrity.check_root(hashes, head)
        except JournalCorrupt as error:
            self._name_first_bad()
            raise error from None

    def _name_first_bad(self) -> None:
        """Read every entry, so that the error names the first whose bytes were changed, if it is bytes that were."""
        start = 0
        while rows := self._rows(start, _END_OF_TIME, None):
            start = rows[-1].seq + 1

    def _head(self) -> TreeHead:
        for size, root in self._read_from().execute("SELECT size, root FROM head"):
            if isinstance(size, int) and isinstance(root, bytes):
                return TreeHead(size=size, root=root)
        raise integrity.corrupt("its head is missing or unreadable", seq=None)

    def _rows(self, start: int, stop: int, account: str | None) -> list[Entry]:
        if account is None:
            return self._checked(_ROWS, (start, stop, integrity.ROWS_PER_READ), consecutive_from=start)
        indexed: int = self._read_from().execute("SELECT indexed FROM head").get
        found = self._checked(_ROWS_OF, (account, start, min(stop, indexed), integrity.ROWS_PER_READ))
        start = max(start, indexed)
        while len(found) < integrity.ROWS_PER_READ and start < stop:
            rows = self._checked(_ROWS, (start, stop, integrity.ROWS_PER_READ), consecutive_from=start)
            found += [entry for entry in rows if account in entry.accounts]
            start = rows[-1].seq + 1 if rows else stop
        return found[: integrity.ROWS_PER_READ]

    def _checked(
        self, query: str, bindings: tuple[str | int, ...], *, consecutive_from: int | None = None
    ) -> list[Entry]:
        entries: list[Entry] = []
        for seq, leaf, stored_hash, accounts in self._read_from().execute(query, bindings):
            entry = Entry(seq=seq, leaf=leaf, accounts=integrity.split_accounts(accounts, seq=seq))
            expected = None if consecutive_from is None else consecutive_from + len(entries)
            entries.append(integrity.checked(entry, stored_hash=stored_hash, expected_seq=expected))
        return entries

    def _leaf_hashes(self, start: int, stop: int | None) -> list[bytes]:
        end = _END_OF_TIME if stop is None else stop
        found = self._read_from().execute(
            "SELECT seq, leaf_hash FROM entries WHERE seq >= ? AND seq < ? ORDER BY seq", (start, end)
        )
        return integrity.in_order(found, start=start)

    def _stored_from(self, seq: int) -> int | None:
        found: int | None = self._read_from().execute("SELECT min(seq) FROM entries WHERE seq >= ?", (seq,)).get
        return found

    def _load_snapshot(self, at_most: int) -> Snapshot | None:
        query = "SELECT size FROM snapshots WHERE size <= ? ORDER BY size DESC"
        sizes = [size for (size,) in self._read_from().execute(query, (at_most,))]
        hashes = self._leaf_hashes(0, sizes[0]) if sizes else []
        for size in sizes:
            found = self._read_from().execute("SELECT root, edge, state, digest FROM snapshots WHERE size = ?", (size,))
            for root, edge, state, digest in found:
                snapshot = Snapshot(size=size, root=root, edge=integrity.split_edge(edge), state=state)
                if integrity.agrees(snapshot, digest=digest, hashes=hashes):
                    return snapshot
        return None

    def _read_from(self) -> apsw.Connection:
        if self._reader is None:
            self._reader = self._connect()
            self._reader.execute("PRAGMA query_only = ON")
        return self._reader

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self.path), vfs=self._vfs)
        connection.set_busy_timeout(BUSY_MS)
        return connection


def keep_private(path: Path) -> None:
    """Everybody's bills are read by the owner alone. SQLite gives what lies beside the file the file's own mode. One that
    is there is not opened: to close it again would drop SQLite's locks on it.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        for each in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            with suppress(FileNotFoundError, PermissionError):  # another's file has the mode that they gave it
                each.chmod(0o600)


def _translating(call: Callable[[], T]) -> T:
    """Run, and say SQLite's errors in our words."""
    try:
        return call()
    except (apsw.CorruptError, apsw.NotADBError, apsw.FormatError, UnicodeDecodeError) as error:
        raise integrity.corrupt(f"SQLite says {error}", seq=None) from error
    except (apsw.Error, OSError) as error:
        raise integrity.full(f"{type(error).__name__}: {error}") from error


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    """All or nothing, with the write lock from the start. A failed commit leaves nothing of it behind."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
