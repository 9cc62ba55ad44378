"""A journal with every kind of event, what is made of it, and what is read from that: for the tests of the projection."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from fabric.charging.records import Cdr
from fabric.journal.followers import Follower
from fabric.journal.projector import Projector
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.store import Entry
from fabric.journal.tables import TABLES, select
from fabric.journal.tables_sqlite import SqliteTables
from tests.audit.plain_statement import Booked
from tests.journal.test_followers import Crash, Shelf
from tests.journals.golden import releases, unpacked

PAGE = 3
booked = msgspec.json.Decoder(Booked)
cdr = msgspec.json.Decoder(Cdr)


def newest_story(folder: Path) -> list[Entry]:
    """The newest golden journal."""

    async def read():
        journal = SqliteJournal(unpacked(releases()[-1] / "sqlite" / "closed", folder))
        found = [entry async for entry in journal.read()]
        await journal.close()
        return found

    with ThreadPoolExecutor(1) as thread:  # whoever asks may have a loop of its own running
        return thread.submit(asyncio.run, read()).result()


class Story(Shelf):
    """A journal in memory that grows by what is in another one."""

    def __init__(self, entries):
        super().__init__()
        self.whole, self.page = entries, 50

    def grow_to(self, size):
        self.entries = {entry.seq: entry for entry in self.whole[:size]}
        self.size = size


class CrashingTables(SqliteTables):
    """Tables whose writer dies now and then, before or after a batch is kept."""

    crash = ""

    async def write(self, before, rows):
        if self.crash == "before":
            raise Crash
        kept = await super().write(before, rows)
        if self.crash == "after":
            raise Crash
        return kept


def follower_of(shelf, tables, batch=20):
    return Follower(shelf, Projector(tables), name="projection", batch=batch)


async def dumped(tables) -> dict[str, list]:
    queries = [select("*", table, {}, order=", ".join(table.key), limit=10**6) for table in TABLES]
    return dict(zip((table.name for table in TABLES), await tables.read(*queries), strict=True))


async def made(path: Path, entries) -> dict[str, list]:
    """What the tables come to where nothing ever goes wrong, in one batch."""
    shelf, tables = Story(entries), SqliteTables(path)
    shelf.grow_to(len(entries))
    await follower_of(shelf, tables, batch=10**6).catch_up()
    found = await dumped(tables)
    await tables.close()
    return found


async def records_of(history, account_id, job_id=None, *, from_us=0, until_us=None, size, limit=PAGE):
    found, after = [], (from_us, -1, -1)
    while True:
        page = await history.records(account_id, job_id, after=after, until_us=until_us, size=size, limit=limit)
        assert len(page.rows) <= limit
        found += [cdr.decode(row) for _, row in page.rows]
        if not page.more:
            return found
        if page.rows:
            after = page.rows[-1][0]


async def statement_of(history, account_id, *, from_us=0, until_us=None, size):
    bounds = await history.bounds(account_id, from_us=from_us, until_us=until_us, size=size)
    options = {"stop": bounds.stop, "size": size, "limit": PAGE}
    lines, records = [], []
    for found, read in ((lines, history.lines), (records, history.records_of_entries)):
        after, more = (bounds.start, -1), True
        while more:
            page = await read(account_id, after=after, **options)
            found += [row for _, row in page.rows]
            after, more = (page.rows[-1][0] if page.rows else after), page.more
    opening = await history.balances(account_id, before=(bounds.start, 0), size=size)
    closing = await history.balances(account_id, before=(bounds.stop, 0), size=size)
    return bounds, opening, closing, lines, records


def all_records(entries, account_id, job_id=None, *, from_us=0, until_us=2**62):
    """By the whole journal."""
    found = [
        (record.ended_at_us, entry.seq, n, record)
        for entry in entries
        if account_id is None or account_id in entry.accounts
        for n, record in enumerate(booked.decode(entry.leaf).records)
        if account_id in (None, record.account_id) and job_id in (None, record.job_id)
    ]
    return [one[-1] for one in sorted(found, key=lambda one: one[:3]) if from_us <= one[0] < until_us]


def names_in(entries):
    accounts = sorted({account for entry in entries for account in entry.accounts})
    jobs = sorted({record.job_id for entry in entries for record in booked.decode(entry.leaf).records} - {""})
    return accounts, jobs
