"""The projection against the journal: each row is what the whole journal says, whatever crashed while it was made."""

import os
import random
from contextlib import suppress
from itertools import count
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.adapters.entries import decode_entry
from fabric.adapters.journal import Entry
from fabric.adapters.journal_sqlite import SqliteJournal
from fabric.audit.statements import Booked, summarise
from fabric.charging.records import Cdr
from fabric.errors import Conflict, JournalCorrupt
from fabric.journal import projection
from fabric.journal.followers import Follower, Position
from fabric.journal.history import History
from fabric.journal.projector import Projector
from fabric.journal.tables import ABOUT, ENTRIES, GAPS, LINES, RECORDS, TABLES, NoTables, select
from fabric.journal.tables_postgres import PostgresTables
from fabric.journal.tables_sqlite import SqliteTables
from tests.journal.test_followers import Crash, Shelf
from tests.journals.golden import releases, unpacked

PAGE = 3
_names = count(1)
_booked = msgspec.json.Decoder(Booked)
_cdr = msgspec.json.Decoder(Cdr)


@pytest.fixture(scope="session")
def story(tmp_path_factory) -> list[Entry]:
    """A journal with every kind of event in it."""
    import asyncio

    async def read():
        journal = SqliteJournal(unpacked(releases()[-1] / "sqlite" / "closed", tmp_path_factory.mktemp("golden")))
        found = [entry async for entry in journal.read()]
        await journal.close()
        return found

    return asyncio.run(read())


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def make_tables(request, tmp_path):
    """A function that gives tables in one and the same new place."""
    if request.param == "sqlite":
        return lambda: SqliteTables(tmp_path / "tables")
    dsn, schema = request.getfixturevalue("postgres_server").dsn, f"read_{os.getpid()}_{next(_names)}"
    return lambda: PostgresTables(dsn, schema=schema)


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

    async def write(self, before, after, rows):
        if self.crash == "before":
            raise Crash
        kept = await super().write(before, after, rows)
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


ROUNDS = st.lists(
    st.tuples(st.integers(0, 600), st.sampled_from(["", "before", "after"]), st.integers(1, 200), st.booleans()),
    max_size=8,
)
"""The journal grows by so many; where the follower's writer dies; entries in a batch; whether another one follows, too."""


@settings(max_examples=25)
@given(rounds=ROUNDS)
async def test_whatever_crashes_the_rows_are_those_of_the_whole_journal(story, tmp_path_factory, rounds):
    folder = tmp_path_factory.mktemp("projection")
    shelf, tables = Story(story), CrashingTables(folder / "crashed")
    for more, crash, batch, another in rounds:
        shelf.grow_to(min(shelf.size + more, len(story)))
        tables.crash = crash
        try:
            await follower_of(shelf, tables, batch=batch).catch_up()
        except Crash:
            await tables.close()
        if another:
            other = SqliteTables(tables.path)
            await follower_of(shelf, other).catch_up()
            await other.close()
    tables.crash = ""
    shelf.grow_to(len(story))
    await follower_of(shelf, tables).catch_up()
    assert await dumped(tables) == await made(folder / "whole", story)
    await tables.close()


async def test_two_projectors_on_the_same_tables_make_each_row_once(story, tmp_path, make_tables):
    shelf = Story(story)
    both = [make_tables(), make_tables()]
    followers = [follower_of(shelf, tables, batch=7) for tables in both]
    for size in range(0, len(story) + 1, 40):
        shelf.grow_to(size)
        for follower in random.Random(size).sample(followers * 2, 4):
            with suppress(Conflict):
                await follower.step()
    shelf.grow_to(len(story))
    await follower_of(shelf, both[0]).catch_up()
    assert await dumped(both[1]) == await made(tmp_path / "whole", story)
    for tables in both:
        await tables.close()


# -- what is read ------------------------------------------------------------------------------------------------------


async def records_of(history, account_id, job_id=None, *, from_us=0, until_us=None, size, limit=PAGE):
    found, after = [], (from_us, -1, -1)
    while True:
        page = await history.records(account_id, job_id, after=after, until_us=until_us, size=size, limit=limit)
        assert len(page.rows) <= limit
        found += [_cdr.decode(row) for _, row in page.rows]
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
        for n, record in enumerate(_booked.decode(entry.leaf).records)
        if account_id in (None, record.account_id) and job_id in (None, record.job_id)
    ]
    return [one[-1] for one in sorted(found, key=lambda one: one[:3]) if from_us <= one[0] < until_us]


def names_in(entries):
    accounts = sorted({account for entry in entries for account in entry.accounts})
    jobs = sorted({record.job_id for entry in entries for record in _booked.decode(entry.leaf).records} - {""})
    return accounts, jobs


@settings(max_examples=30)
@given(data=st.data())
async def test_what_is_read_is_what_the_whole_journal_says_however_far_the_follower_is(story, tmp_path_factory, data):
    size = data.draw(st.integers(0, len(story)), label="size")
    reached = data.draw(st.integers(0, len(story)), label="the follower has reached")
    shelf, tables = Story(story), SqliteTables(tmp_path_factory.mktemp("read") / "tables")
    shelf.grow_to(reached)
    await follower_of(shelf, tables).catch_up()
    shelf.grow_to(max(size, reached))
    history, entries = History(shelf, tables), story[:size]
    accounts, jobs = names_in(story)
    account, job = data.draw(st.sampled_from(accounts)), data.draw(st.sampled_from(jobs))
    times = st.sampled_from(sorted({decode_entry(entry.leaf).at_us for entry in story}))
    from_us, until_us = data.draw(times, label="from"), data.draw(st.none() | times, label="until")
    end = 2**62 if until_us is None else until_us

    for whose, of_job in ((account, None), (account, job), (None, None), (None, job)):
        found = await records_of(history, whose, of_job, from_us=from_us, until_us=until_us, size=size)
        assert found == all_records(entries, whose, of_job, from_us=from_us, until_us=end)

    mine = [_booked.decode(entry.leaf) for entry in entries if account in entry.accounts]
    period = summarise(mine, account_id=account, from_us=from_us, until_us=until_us)
    bounds, opening, closing, lines, records = await statement_of(
        history, account, from_us=from_us, until_us=until_us, size=size
    )
    stop = size if period.next_seq is None else period.next_seq
    assert bounds == (stop if period.first_seq is None else period.first_seq, stop)
    assert (opening, closing) == (period.opening, period.closing)
    assert lines == [msgspec.json.encode(line) for line in period.lines]
    assert records == [msgspec.json.encode(record) for record in period.records]
    await tables.close()


async def test_sums_are_the_journals_to_the_last_unit(story, make_tables):
    shelf, tables = Story(story), make_tables()
    shelf.grow_to(len(story))
    await follower_of(shelf, tables).catch_up()
    for account in names_in(story)[0]:
        (found,) = await tables.read(
            select("charged_uhs", RECORDS, {"account_id = ?": (account,)}, order="seq", limit=10**6)
        )
        booked = [decode_entry(entry.leaf) for entry in story if account in entry.accounts]
        assert sum(row[0] for row in found) == sum(
            record.charged_uhs for one in booked for record in one.records if record.account_id == account
        )
        posted = [
            posting.amount
            for one in booked
            for transfer in one.transfers
            for posting in transfer.postings
            if posting.asset == "CT" and posting.account in (f"cust/{account}/available", f"cust/{account}/held")
        ]
        balances = await History(shelf, tables).balances(account, before=(len(story), 0), size=len(story))
        assert balances.free_uhs + balances.held_uhs == sum(posted)
    await tables.close()


async def test_rows_in_postgres_are_those_in_sqlite_and_come_anew_when_they_are_gone(story, tmp_path, make_tables):
    shelf, tables = Story(story), make_tables()
    follower = follower_of(shelf, tables, batch=30)
    for size in (10, 200, len(story)):
        shelf.grow_to(size)
        await follower.catch_up()
    whole = await made(tmp_path / "whole", story)
    assert await dumped(tables) == whole
    other = make_tables()
    await other.throw_away()
    with pytest.raises(NoTables):
        await dumped(tables)
    await follower_of(shelf, other).catch_up()
    assert await dumped(tables) == whole
    for each in (tables, other):
        await each.close()


async def test_no_row_of_an_account_comes_from_an_entry_that_is_not_its_own(story, tmp_path):
    rows = await made(tmp_path / "tables", story)
    for table in (ENTRIES, LINES, RECORDS, ABOUT):
        column = list(table.columns).index("account_id")
        seq = list(table.columns).index("seq")
        assert rows[table.name]
        for row in rows[table.name]:
            assert row[column] in story[row[seq]].accounts
    for row in rows["records"]:
        assert _cdr.decode(row[-1]).account_id == row[0]


def about(recorded, job_id):
    """Whether an entry is about a job, as plainly as can be."""
    refs = {transfer.ref.rpartition("#")[0] or transfer.ref for transfer in recorded.transfers}
    named = getattr(recorded.event, "job_id", None) == job_id
    return named or job_id in refs or any(record.job_id == job_id for record in recorded.records)


@pytest.mark.parametrize("reached", [0, 100, 10**6])
async def test_the_entries_of_a_job_are_those_that_are_about_it(story, make_tables, reached):
    shelf, tables = Story(story), make_tables()
    shelf.grow_to(min(reached, len(story)))
    await follower_of(shelf, tables).catch_up()
    shelf.grow_to(len(story))
    history, (accounts, jobs) = History(shelf, tables), names_in(story)
    count = 0
    for account in accounts:
        for job in jobs:
            expected = [entry for entry in story if account in entry.accounts and about(decode_entry(entry.leaf), job)]
            found, after = [], -1
            while page := await history.entries(account, job, after=after, size=len(story), limit=PAGE):
                found += page
                after = page[-1].seq
            assert found == expected
            count += len(found)
    assert count > 30
    await tables.close()


@pytest.mark.parametrize("reached", [0, 200, 10**6])
async def test_jobs_are_found_by_account_and_time_with_what_they_came_to(story, make_tables, reached):
    shelf, tables = Story(story), make_tables()
    shelf.grow_to(min(reached, len(story)))
    await follower_of(shelf, tables).catch_up()
    shelf.grow_to(len(story))
    recorded = [decode_entry(entry.leaf) for entry in story]
    submitted = [one for one in recorded if type(one.event).__name__ == "Submit" and not hasattr(one.outcome, "code")]
    history = History(shelf, tables)
    for account in [None, *names_in(story)[0]]:
        mine = [one for one in submitted if account in (None, one.event.account_id)]
        found, before = [], (2**62, "")
        while page := await history.jobs(account, before=before, from_us=0, size=len(story), limit=PAGE):
            found += page
            before = (page[-1].submitted_at_us, page[-1].job_id)
        expected = sorted(((one.at_us, one.event.job_id) for one in mine), reverse=True)
        assert [(job.submitted_at_us, job.job_id) for job in found] == expected
        for job in found:
            records = [record for one in recorded for record in one.records if record.job_id == job.job_id]
            assert job.charged_uhs == sum(record.charged_uhs for record in records)
            assert job.refunded_uhs == sum(record.refunded_uhs for record in records)
            starts = {one.event.lease_id for one in recorded if type(one.event).__name__ == "LeaseStarted"}
            assert (job.started_at_us is not None) == any(lease.startswith(f"{job.job_id}.") for lease in starts)
    await tables.close()


async def test_pages_fit_together_while_the_follower_goes_on_between_them(story, tmp_path):
    shelf, tables = Story(story), SqliteTables(tmp_path / "tables")
    shelf.grow_to(len(story))
    follower, history = follower_of(shelf, tables, batch=60), History(shelf, tables)
    for account in (None, *names_in(story)[0]):
        await tables.throw_away()
        found, after, more = [], (0, -1, -1), True
        while more:
            page = await history.records(account, None, after=after, until_us=None, size=len(story), limit=PAGE)
            found += [_cdr.decode(row) for _, row in page.rows]
            after, more = (page.rows[-1][0] if page.rows else after), page.more
            with suppress(Conflict):
                await follower.step()
        assert found == all_records(story, account)
    await tables.close()


moves = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from("abc"),
    st.sampled_from(["available", "held", "debt"]),
    st.integers(1, 10**18),
)


@given(decisions=st.lists(st.lists(moves, max_size=4), max_size=12))
async def test_an_entry_of_several_accounts_gives_each_its_own_lines_alone(decisions):
    entries, number = [], 0
    for seq, decision in enumerate(decisions):
        transfers = []
        for giver, taker, name, amount in decision:
            number += 1
            postings = [[f"cust/{giver}/{name}", "CT", -amount], [f"cust/{taker}/available", "CT", amount]]
            of = {"transfer_id": number, "kind": "grant", "account_id": taker, "ref": "", "at_us": seq}
            transfers.append({**of, "postings": postings})
        leaf = {"seq": seq, "at_us": seq, "event": None, "outcome": None, "transfers": transfers, "records": []}
        accounts = tuple(sorted({name for move in decision for name in move[:2]}))
        entries.append(Entry(seq=seq, leaf=msgspec.json.encode(leaf), accounts=accounts))
    rows = projection.project([(entry, projection.told_by(entry)) for entry in entries], balances={}, jobs={})
    for account in "abc":
        mine = [_booked.decode(entry.leaf) for entry in entries if account in entry.accounts]
        expected = summarise(mine, account_id=account)
        lines = [row for row in rows.lines if row.account_id == account]
        assert [row.line for row in lines] == [msgspec.json.encode(line) for line in expected.lines]
        assert (lines[-1].balances if lines else expected.closing) == expected.closing
        assert all(account in entries[row.seq].accounts for row in lines)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


async def test_a_projection_of_another_format_is_thrown_away_and_made_anew(story, tmp_path, make_tables, monkeypatch):
    shelf, tables = Story(story), make_tables()
    shelf.grow_to(len(story))
    for place in ("sqlite", "postgres"):
        monkeypatch.setattr(f"fabric.journal.tables_{place}.FORMAT", projection.FORMAT + 1)
    await follower_of(shelf, tables).catch_up()
    monkeypatch.undo()
    reader = History(shelf, tables)
    before = await records_of(reader, None, size=len(story))
    await follower_of(shelf, tables).catch_up()
    assert await dumped(tables) == await made(tmp_path / "whole", story)
    assert await records_of(reader, None, size=len(story)) == before == all_records(story, None)
    await tables.close()


async def test_damaged_tables_are_made_anew_beside_readers_that_have_them_open(story, tmp_path):
    shelf, tables, readers = Story(story), SqliteTables(tmp_path / "tables"), SqliteTables(tmp_path / "tables")
    shelf.grow_to(len(story))
    await follower_of(shelf, tables).catch_up()
    await dumped(readers)
    await tables.close()
    tables.path.write_bytes(b"no database" * 1_000)
    again = SqliteTables(tmp_path / "tables")
    await follower_of(shelf, again).catch_up()
    assert await dumped(again) == await dumped(readers) == await made(tmp_path / "whole", story)
    for each in (again, readers):
        await each.close()


async def test_tables_that_are_deleted_while_they_are_followed_are_made_anew(story, tmp_path):
    shelf, tables = Story(story), SqliteTables(tmp_path / "tables")
    shelf.grow_to(100)
    follower = follower_of(shelf, tables)
    await follower.catch_up()
    await SqliteTables(tmp_path / "tables").throw_away()
    with pytest.raises(NoTables):
        await dumped(tables)
    shelf.grow_to(len(story))
    with pytest.raises(Conflict):
        await follower.catch_up()
    await follower.catch_up()
    assert await dumped(tables) == await made(tmp_path / "whole", story)
    await tables.close()


async def test_what_is_missing_is_said_to_whoever_asks_and_not_passed_over(story, make_tables):
    shelf, tables = Story(story), make_tables()
    shelf.grow_to(len(story))
    del shelf.entries[50]
    await follower_of(shelf, tables).catch_up()
    (gaps,) = await tables.read(select("start, stop, why", GAPS, {}, order="start", limit=9))
    assert gaps == [(50, 51, "damaged")]
    history = History(shelf, tables)
    with pytest.raises(JournalCorrupt) as refused:
        await records_of(history, None, size=len(story))
    assert refused.value.facts["seq"] == 50
    assert await records_of(history, None, size=50) == all_records(story[:50], None)
    await tables.close()


async def test_an_entry_that_this_version_can_not_read_is_a_gap(story, tmp_path):
    shelf, tables = Story(story), SqliteTables(tmp_path / "tables")
    shelf.grow_to(60)
    shelf.entries[30] = Entry(seq=30, leaf=b'{"seq":30,"at_us":"soon"}', accounts=("acme",))
    await follower_of(shelf, tables).catch_up()
    assert (await dumped(tables))["gaps"] == [(30, 31, "damaged")]
    await tables.close()


async def test_a_late_word_from_an_earlier_attempt_changes_no_job():
    def entry(seq, event):
        leaf = {
            "seq": seq,
            "at_us": seq,
            "event": event,
            "outcome": {"outcome": "accepted"},
            "transfers": [],
            "records": [],
        }
        return Entry(seq=seq, leaf=msgspec.json.encode(leaf))

    events = [
        {
            "event": "submit",
            "job_id": "j",
            "account_id": "acme",
            "spec": {"name": "n", "kind": "function", "limit_uhs": 5},
        },
        {"event": "lease_started", "lease_id": "j.1"},
        {"event": "lease_finished", "lease_id": "j.1", "outcome": "lost"},
        {"event": "lease_started", "lease_id": "j.2"},
        {"event": "lease_finished", "lease_id": "j.1", "outcome": "failed", "error": "late"},
        {"event": "lease_started", "lease_id": "j.1"},
        {"event": "lease_finished", "lease_id": "j.2", "outcome": "succeeded"},
    ]
    entries = [entry(seq, event) for seq, event in enumerate(events)]
    seen = []
    for stop in range(1, len(entries) + 1):
        told = [(one, projection.told_by(one)) for one in entries[:stop]]
        job = projection.project(told, balances={}, jobs={}).jobs["j"]
        seen.append((job.attempts, job.outcome))
    assert seen == [(0, ""), (1, ""), (1, "lost"), (2, "lost"), (2, "lost"), (2, "lost"), (2, "succeeded")]


async def test_a_position_of_new_tables_is_none_and_then_where_the_batch_ended(make_tables):
    tables = make_tables()
    projector = Projector(tables)
    assert await projector.position() is None
    assert not await tables.write(Position(3), Position(4), {})
    assert await tables.write(None, Position(4, b"mark"), {})
    assert not await tables.write(None, Position(5), {})
    assert await projector.position() == Position(4, b"mark")
    await tables.close()
