"""What customers read: usage, statements and receipts, from wherever the follower is, and as the journal has them."""

import base64
import random

import msgspec
import pytest

from fabric.api.statement_text import StatementText
from fabric.audit.checkpoint import Verifier
from fabric.audit.merkle import leaf_hash, verify_inclusion
from fabric.audit.records import Balances, Statement
from fabric.charging.records import Cdr
from fabric.errors import JournalCorrupt
from fabric.gate.events import TopUp
from fabric.gate.questions import BookedOf, ReceiptsOf, RecordsOf, StatementOf, StatementPage
from fabric.journal import history
from fabric.journal.auditor import Auditor
from fabric.journal.followers import Follower
from fabric.journal.projector import Projector
from fabric.journal.tables import JOBS, TILES, select
from fabric.journal.tables_sqlite import SqliteTables
from tests.audit.conftest import CT, KEY, ORIGIN, calls, pages, whole_statement
from tests.audit.plain_statement import Booked, summarise

QUESTIONS = (
    RecordsOf(),
    RecordsOf(account_id="acme"),
    RecordsOf(account_id="beta", from_us=1),
    RecordsOf(account_id="acme", job_id="job-1"),
    StatementOf(account_id="acme"),
    StatementOf(account_id="beta", until_us=1_700_000_030_000_000),
    StatementOf(account_id="nobody"),
    ReceiptsOf(account_id="acme"),
    ReceiptsOf(account_id="acme", job_id="job-1"),
    BookedOf(account_id="acme"),
    BookedOf(account_id="beta", until_us=1_700_000_030_000_000),
)
_booked = msgspec.json.Decoder(Booked)


@pytest.fixture
async def busy(log):
    """A log with jobs and calls in it."""
    await log.run_job("acme", job_id="job-1")
    await log.run_job("beta", job_id="job-2")
    for account in ("acme", "beta"):
        await log.write(calls(account))
    await log.run_job("acme", job_id="job-3")
    return log


@pytest.fixture
async def tables(tmp_path):
    tables = SqliteTables(tmp_path / "tables")
    yield tables
    await tables.close()


def auditor_of(log, tables=None):
    return Auditor(log.writer.journal, origin=ORIGIN, signing_key=KEY, tables=tables)


def follower_of(log, tables, batch=10):
    return Follower(log.writer.journal, Projector(tables), name="test", batch=batch)


async def answered(auditor, question, limit):
    """All of it, in pages."""
    question = msgspec.structs.replace(question, limit=limit)
    if isinstance(question, StatementOf):
        return await whole_statement(auditor, question)
    found = [page async for page in pages(auditor, question)]
    lists = [
        getattr(page, "records", None) or getattr(page, "receipts", None) or getattr(page, "entries", ())
        for page in found
    ]
    assert all(len(each) <= limit for each in lists)
    return [item for each in lists for item in each]


@pytest.mark.parametrize("steps", [0, 1, 3, 100])
async def test_answers_are_the_same_wherever_the_follower_is_and_however_they_are_cut(busy, tables, steps):
    follower, plain = follower_of(busy, tables), auditor_of(busy)
    for _ in range(steps):
        await follower.step()
    for question in QUESTIONS:
        expected = await answered(plain, question, 10**6)
        for limit in (1, 4, 1_000):
            assert await answered(auditor_of(busy, tables), question, limit) == expected, question


async def test_a_statement_in_pages_is_the_one_reckoned_plainly_from_the_whole_journal(busy, tables):
    await follower_of(busy, tables).catch_up()
    entries = [entry async for entry in busy.writer.journal.read()]
    auditor = auditor_of(busy, tables)
    times = [0, *{_booked.decode(entry.leaf).at_us for entry in entries}]
    for account in ("acme", "beta", "nobody"):
        mine = [_booked.decode(entry.leaf) for entry in entries if account in entry.accounts]
        for number in range(12):
            from_us, until_us = random.Random(number).choices([*times, None], k=2)
            question = StatementOf(account_id=account, from_us=from_us or 0, until_us=until_us)
            found = await answered(auditor, question, 3)
            period = summarise(mine, account_id=account, from_us=from_us or 0, until_us=until_us)
            assert (found.opening, found.closing) == (period.opening, period.closing)
            assert (found.lines, found.records) == (period.lines, period.records)


async def test_customers_read_what_they_have_just_written(busy, tables):
    auditor, follower = auditor_of(busy, tables), follower_of(busy, tables)
    for number in range(6):
        await busy.write([TopUp(account_id="acme", amount_uhs=CT + number, request_id=f"own-{number}")])
        statement = await whole_statement(auditor, StatementOf(account_id="acme"))
        assert statement.lines[-1].amount_uhs == CT + number
        assert statement.until_size == busy.writer.head.size
        receipts = await answered(auditor, ReceiptsOf(account_id="acme"), 100)
        assert f"own-{number}".encode() in base64.b64decode(receipts[-1].leaf)
        if number == 2:
            await follower.step()
        elif number == 4:
            await follower.catch_up()


async def test_pages_are_about_one_size_of_the_journal_whatever_is_written_meanwhile(busy, tables):
    for question in QUESTIONS:
        auditor, follower = auditor_of(busy, tables), follower_of(busy, tables)
        before = await answered(auditor_of(busy), question, 10**6)
        found, asked = [], msgspec.structs.replace(question, limit=2)
        while asked is not None:
            page = await auditor.answer(asked)
            found.append(page)
            asked = page.following
            await busy.write([TopUp(account_id="acme", amount_uhs=CT)])
            await follower.step()
        if isinstance(question, StatementOf):
            lines = [line for page in found for line in page.statement.lines]
            assert lines == list(before.lines)
            assert {page.statement.until_size for page in found} == {before.until_size}
        else:
            assert sum(
                len(getattr(page, "records", None) or getattr(page, "receipts", None) or getattr(page, "entries", ()))
                for page in found
            ) == len(before)


async def test_receipts_of_a_tiled_log_verify_under_its_checkpoint(log, tables, monkeypatch):
    for place in ("fabric.audit.merkle", "fabric.journal.projector", "fabric.journal.tree"):
        monkeypatch.setattr(f"{place}.TILE", 4)
    follower = follower_of(log, tables, batch=3)
    for step in range(20):
        if step % 3:
            await follower.step()
        await log.write([TopUp(account_id="acme", amount_uhs=CT)])
        auditor = auditor_of(log, tables)
        for receipt in await answered(auditor, ReceiptsOf(account_id="acme"), 7):
            signed = Verifier.parse(auditor.verifier_key).checkpoint(receipt.checkpoint)
            proof = [bytes.fromhex(node) for node in receipt.proof]
            leaf = leaf_hash(base64.b64decode(receipt.leaf))
            assert verify_inclusion(leaf, index=receipt.seq, size=signed.size, proof=proof, root=signed.root)
    (kept,) = await tables.read(select("tile", TILES, {}, order="tile", limit=100))
    assert len(kept) > 5


async def test_tiles_that_do_not_lead_to_the_sealed_root_are_read_again_from_the_journal(log, tables, monkeypatch):
    for place in ("fabric.audit.merkle", "fabric.journal.projector", "fabric.journal.tree"):
        monkeypatch.setattr(f"{place}.TILE", 4)
    await follower_of(log, tables).catch_up()
    kept = await tables.read(select("tile", TILES, {}, order="tile", limit=100))
    real = tables.read

    async def wrong(*queries):
        return [[(row[0], bytes(32)) for row in found] if "tiles" in query[0] else found
                for query, found in zip(queries, await real(*queries), strict=True)]  # fmt: skip

    monkeypatch.setattr(tables, "read", wrong)
    assert kept[0]
    auditor = auditor_of(log, tables)
    signed = Verifier.parse(auditor.verifier_key).checkpoint(await auditor.checkpoint())
    assert signed.root == log.writer.head.root


async def test_hashes_that_were_changed_since_are_found_when_something_is_proved_of_them(log, tables, monkeypatch):
    for place in ("fabric.audit.merkle", "fabric.journal.projector", "fabric.journal.tree"):
        monkeypatch.setattr(f"{place}.TILE", 4)
    await follower_of(log, tables).catch_up()
    real = log.writer.journal.leaf_hashes

    async def changed(start=0, stop=None):
        hashes = await real(start, stop)
        return [bytes(32), *hashes[1:]] if start == 4 else hashes

    monkeypatch.setattr(log.writer.journal, "leaf_hashes", changed)
    with pytest.raises(JournalCorrupt):
        await answered(auditor_of(log, tables), ReceiptsOf(account_id="acme"), 100)


async def test_a_follower_that_is_far_behind_is_given_a_moment_once(busy, tables, monkeypatch):
    monkeypatch.setattr(history, "REST_MAX", 5)
    monkeypatch.setattr(history, "WAIT_S", 0.1)
    auditor, looked = auditor_of(busy, tables), []
    await Projector(tables).position()
    real = tables.read

    async def counted(*queries):
        looked.append(1)
        return await real(*queries)

    monkeypatch.setattr(tables, "read", counted)
    first = await answered(auditor, StatementOf(account_id="acme"), 1_000)
    waited = len(looked)
    assert await answered(auditor, StatementOf(account_id="acme"), 1_000) == first
    assert waited > len(looked) - waited, "it is not waited for again"
    await follower_of(busy, tables).catch_up()
    assert await answered(auditor, StatementOf(account_id="acme"), 1_000) == first


async def test_no_answer_about_an_account_says_anything_of_another(busy, tables):
    await follower_of(busy, tables).catch_up()
    auditor = auditor_of(busy, tables)
    for question in QUESTIONS:
        if question.account_id == "acme":
            text = msgspec.json.encode(await answered(auditor, question, 3))
            leaves = (
                [base64.b64decode(one["leaf"]) for one in msgspec.json.decode(text) if "leaf" in one]
                if b"leaf" in text
                else []
            )
            assert b"beta" not in text
            assert b"job-2" not in text
            assert all(b"beta" not in leaf for leaf in leaves)


async def test_a_statement_is_written_as_its_pages_come_in_the_same_words(busy, tables):
    auditor = auditor_of(busy, tables)
    for question in (
        StatementOf(account_id="acme"),
        StatementOf(account_id="nobody"),
        StatementOf(account_id="beta", from_us=1),
    ):
        for limit in (1, 3, 1_000):
            text, asked = StatementText(), msgspec.structs.replace(question, limit=limit)
            written = b"".join([text.add(page) async for page in pages(auditor, asked)])
            assert written == msgspec.json.encode(await answered(auditor, question, 10**6))


async def test_a_statement_of_an_account_with_a_strange_name_is_written_whole():
    nothing = Balances()
    empty = Statement(
        account_id='"lines":["records":[', from_us=0, until_us=None, opening=nothing, closing=nothing, lines=(),
        from_size=0, from_root="", until_size=0, until_root="", records=(),
    )  # fmt: skip
    assert StatementText().add(StatementPage(statement=empty)) == msgspec.json.encode(empty)


async def test_jobs_have_the_records_that_usage_shows(busy, tables):
    await follower_of(busy, tables).catch_up()
    (rows,) = await tables.read(select("job_id, charged_uhs", JOBS, {}, order="job_id", limit=10))
    records: list[Cdr] = await answered(auditor_of(busy, tables), RecordsOf(), 100)
    assert [job_id for job_id, _ in rows] == ["job-1", "job-2", "job-3"]
    for job_id, charged_uhs in rows:
        assert charged_uhs == sum(record.charged_uhs for record in records if record.job_id == job_id) > 0
