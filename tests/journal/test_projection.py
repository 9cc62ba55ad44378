"""The projection against the journal: each row is what the whole journal says, whatever crashed while it was made."""

import random
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.charging.served import Served
from fabric.errors import Conflict, JournalCorrupt
from fabric.journal import projection
from fabric.journal.encoding import decode_entry
from fabric.journal.followers import Position
from fabric.journal.history import History
from fabric.journal.projector import Projector
from fabric.journal.store import Entry
from fabric.journal.tables import ABOUT, ENTRIES, GAPS, LINES, PROGRESS, RECORDS, NoTables, select
from fabric.journal.tables_sqlite import SqliteTables
from tests.audit.plain_statement import summarise
from tests.journal.story import (
    CrashingTables,
    Story,
    all_records,
    booked,
    cdr,
    dumped,
    follower_of,
    made,
    records_of,
)
from tests.journal.test_followers import Crash

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
        assert cdr.decode(row[-1]).account_id == row[0]


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
    rows = projection.project([(entry, projection.told_by(entry)) for entry in entries])
    for account in "abc":
        mine = [booked.decode(entry.leaf) for entry in entries if account in entry.accounts]
        expected = summarise(mine, account_id=account)
        lines = [row for row in rows.lines if row.account_id == account]
        assert [row.line for row in lines] == [msgspec.json.encode(line) for line in expected.lines]
        assert (lines[-1].balances if lines else expected.closing) == expected.closing
        assert all(account in entries[row.seq].accounts for row in lines)


async def test_calls_are_counted_by_model_and_plan_as_the_journal_has_them(story, tmp_path):
    expected, plans = {}, {}
    for one in (decode_entry(entry.leaf) for entry in story):
        if type(one.event).__name__ == "OpenAccount" and not hasattr(one.outcome, "code"):
            plans[one.event.account_id] = one.event.plan
        for record in one.records:
            if record.model:
                key = (record.model, plans[record.account_id])
                expected[key] = expected.get(key, Served()).with_call(record)
    shelf, tables = Story(story), SqliteTables(tmp_path / "tables")
    for size in (len(story) // 2, len(story)):
        shelf.grow_to(size)
        await follower_of(shelf, tables).catch_up()
    assert await History(shelf, tables).served() == expected
    assert sum(each.charged_uhs for each in expected.values()) > 0
    await tables.close()


# -- what goes wrong ---------------------------------------------------------------------------------------------------


async def test_a_projection_of_another_format_is_thrown_away_and_made_anew(story, tmp_path, make_tables, monkeypatch):
    shelf, tables = Story(story), make_tables()
    shelf.grow_to(len(story))
    monkeypatch.setattr("fabric.journal.projector.FORMAT", projection.FORMAT + 1)
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
        job = projection.project(told).jobs["j"]
        seen.append((job.attempts, job.outcome))
    assert seen == [(0, ""), (1, ""), (1, "lost"), (2, "lost"), (2, "lost"), (2, "lost"), (2, "succeeded")]


async def test_a_position_of_new_tables_is_none_and_then_where_the_batch_ended(make_tables):
    tables = make_tables()
    projector = Projector(tables)
    assert await projector.position() is None
    at = {PROGRESS: [(projection.FORMAT, 4, b"mark", b"")]}
    assert not await tables.write(3, at)
    assert await tables.write(None, at)
    assert not await tables.write(None, at)
    assert await projector.position() == Position(4, b"mark")
    await tables.close()
