"""What is read, against the whole journal: wherever the follower is, and whatever it does meanwhile."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.errors import Conflict
from fabric.journal.encoding import decode_entry
from fabric.journal.history import History
from fabric.journal.tables import GAPS, PROGRESS, RECORDS, select
from fabric.journal.tables_sqlite import SqliteTables
from tests.audit.plain_statement import summarise
from tests.journal.story import (
    PAGE,
    Story,
    all_records,
    booked,
    cdr,
    follower_of,
    names_in,
    records_of,
    statement_of,
)


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

    mine = [booked.decode(entry.leaf) for entry in entries if account in entry.accounts]
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
            found += [cdr.decode(row) for _, row in page.rows]
            after, more = (page.rows[-1][0] if page.rows else after), page.more
            with suppress(Conflict):
                await follower.step()
        assert found == all_records(story, account)
    await tables.close()


async def test_no_page_is_found_by_looking_through_a_table_or_by_sorting_it(story, tmp_path):
    """However long the journal is: each query walks an index from where its page begins."""
    shelf, tables = Story(story), SqliteTables(tmp_path / "tables")
    shelf.grow_to(len(story))
    await follower_of(shelf, tables).catch_up()
    asked, read = [], tables.read

    async def noted(*queries):
        asked.extend(queries)
        return await read(*queries)

    tables.read = noted
    history, (accounts, jobs), size = History(shelf, tables), names_in(story), len(story)
    for account, job in ((accounts[0], None), (accounts[0], jobs[0]), (None, None), (None, jobs[0])):
        await records_of(history, account, job, from_us=1, until_us=2**60, size=size)
    await statement_of(history, accounts[0], from_us=1, until_us=2**60, size=size)
    await history.entries(accounts[0], jobs[0], after=-1, size=size, limit=PAGE)
    for account in (accounts[0], None):
        await history.jobs(account, before=(2**60, ""), from_us=1, size=size, limit=PAGE)
    of_one = {PROGRESS.name, GAPS.name}
    texts = {text: given for text, given in asked if not any(f".{name} " in text for name in of_one)}
    assert len(texts) >= 10
    for text, values in texts.items():
        (plan,) = await read((f"EXPLAIN QUERY PLAN {text}", values))
        steps = [row[-1] for row in plan]
        assert not [step for step in steps if "TEMP B-TREE" in step or step.startswith("SCAN")], (text, steps)
    await tables.close()
