"""Statements, receipts and exports, from the journal of a real gate."""

import asyncio
import base64

import msgspec
import pytest

from fabric.audit.checkpoint import Verifier
from fabric.audit.merkle import leaf_hash, verify_inclusion
from fabric.audit.verify import verify_export
from fabric.errors import JournalCorrupt, Unavailable
from fabric.gate.events import TopUp
from fabric.gate.questions import BalanceOf, ReceiptsOf, RecordsOf, StatementOf
from fabric.journal.encoding import decode_entry
from fabric.ledger.transfers import CT as ASSET
from fabric.units import UHS_PER_CT

CT = UHS_PER_CT


async def test_a_statement_ends_where_the_gate_says_the_account_stands(log):
    await log.run_job("acme", job_id="job-1")
    statement = await log.statement(StatementOf(account_id="acme"))
    balance = log.writer.core.ask(BalanceOf(account_id="acme"), log.clock.now_us())
    closing = statement.closing
    assert (closing.free_uhs, closing.held_uhs, closing.debt_uhs) == (
        balance.free_uhs,
        balance.held_uhs,
        balance.debt_uhs,
    )
    assert closing.posted_uhs == balance.posted_uhs
    assert sum(line.amount_uhs for line in statement.lines) == closing.posted_uhs - closing.debt_uhs
    paid = [line.cny_microcny for line in statement.lines if line.kind == "top_up"]
    assert paid == [5_000_000], "ten tokens at half a yuan"
    assert [record.job_id for record in statement.records] == ["job-1"]
    captured = sum(
        line.amount_uhs for line in statement.lines if line.kind == "capture" and line.ref.startswith("job-1")
    )
    assert -captured == statement.records[0].charged_uhs > 0


async def test_statements_of_two_halves_join_into_the_whole(log):
    whole = await log.statement(StatementOf(account_id="beta"))
    for line in whole.lines:
        first = await log.statement(StatementOf(account_id="beta", until_us=line.at_us))
        second = await log.statement(StatementOf(account_id="beta", from_us=line.at_us))
        assert first.closing == second.opening
        assert first.lines + second.lines == whole.lines
        assert second.closing == whole.closing
        assert first.until_size <= second.from_size


async def test_a_statement_lies_between_the_tree_heads_it_names(log):
    hashes = await log.writer.journal.leaf_hashes()
    statement = await log.statement(StatementOf(account_id="acme"))
    inside = [entry.seq async for entry in log.writer.journal.read(account="acme")]
    assert (inside[0], log.writer.head.size) == (statement.from_size, statement.until_size)
    assert statement.until_root == log.writer.head.root.hex()
    assert len(hashes) == statement.until_size


async def test_an_account_without_entries_has_an_empty_statement(log):
    statement = await log.statement(StatementOf(account_id="nobody"))
    assert (statement.lines, statement.records, statement.opening) == ((), (), statement.closing)


async def test_receipts_prove_that_each_entry_is_under_the_signed_checkpoint(log):
    receipts = await log.receipts(ReceiptsOf(account_id="acme"))
    assert len(receipts) == len([entry async for entry in log.writer.journal.read(account="acme")]) > 10
    for receipt in receipts:
        signed = Verifier.parse(log.auditor.verifier_key).checkpoint(receipt.checkpoint)
        leaf = base64.b64decode(receipt.leaf)
        proof = [bytes.fromhex(node) for node in receipt.proof]
        assert b"beta" not in leaf
        assert signed.size == receipt.tree_size == log.writer.head.size
        assert verify_inclusion(leaf_hash(leaf), index=receipt.seq, size=signed.size, proof=proof, root=signed.root)


async def test_receipts_of_a_job_are_those_of_its_tokens_and_records(log):
    await log.run_job("acme", job_id="job-1")
    of_account = await log.receipts(ReceiptsOf(account_id="acme"))
    of_job = await log.receipts(ReceiptsOf(account_id="acme", job_id="job-1"))
    assert 0 < len(of_job) < len(of_account)
    assert all(b"job-1" in base64.b64decode(receipt.leaf) for receipt in of_job)
    assert await log.receipts(ReceiptsOf(account_id="beta", job_id="job-1")) == []


async def test_records_are_found_by_account_job_and_time(log):
    await log.run_job("acme", job_id="job-1")
    await log.run_job("beta", job_id="job-2")
    records = await log.records(RecordsOf())
    assert [record.job_id for record in records] == ["job-1", "job-2"]
    assert await log.records(RecordsOf(account_id="beta")) == records[1:]
    assert await log.records(RecordsOf(job_id="job-1")) == records[:1]
    assert await log.records(RecordsOf(from_us=records[1].ended_at_us)) == records[1:]
    assert await log.records(RecordsOf(until_us=records[1].ended_at_us)) == records[:1]


async def test_a_decision_about_two_accounts_is_two_entries_each_about_one(log):
    entries = [entry async for entry in log.writer.journal.read()]
    assert all(len(entry.accounts) <= 1 for entry in entries)
    recorded = [decode_entry(entry.leaf) for entry in entries]
    swept = [(one.event, recorded[one.continues].event) for one in recorded if one.continues is not None]
    assert {(part, whole.account_id) for part, whole in swept} == {(None, "beta")}, "acme's hold lapsed in between"


async def test_an_entry_of_two_customers_is_proved_but_its_content_is_kept_from_both(log, monkeypatch):
    real = log.writer.journal.read

    async def shared(*bounds, **options):
        async for entry in real(*bounds, **options):
            yield msgspec.structs.replace(entry, accounts=("acme", "beta"))

    monkeypatch.setattr(log.writer.journal, "read", shared)
    for receipt in await log.receipts(ReceiptsOf(account_id="acme")):
        assert receipt.leaf == ""
        assert len(receipt.leaf_hash) == 64
    report = verify_export(await log.export("acme"), trusted_key=log.auditor.verifier_key)
    assert report.ok, report
    assert report.counts["withheld entries"] > 10


@pytest.mark.parametrize("account", [None, "acme"])
@pytest.mark.parametrize("count", [1, 3, 7, 1000])
async def test_pages_are_the_export_however_they_are_cut_and_whatever_is_written_meanwhile(log, account, count):
    pages: list[bytes] = []
    while page := await log.auditor.export_page(account, start=len(pages), count=count):
        assert len(page) <= count
        pages += page
        await log.write([TopUp(account_id="acme", amount_uhs=CT)])
    report = verify_export([line.decode() for line in pages], trusted_key=log.auditor.verifier_key)
    assert report.ok, report
    assert await log.auditor.export_page(account, start=0, count=1) != []
    with pytest.raises(Unavailable) as refused:
        await log.auditor.export_page(account, start=10**6, count=1)
    assert refused.value.code == "export_interrupted"


async def test_two_readers_of_one_export_do_not_disturb_each_other(log):
    async def reader(count: int) -> list[str]:
        pages: list[bytes] = []
        while page := await log.auditor.export_page("acme", start=len(pages), count=count):
            pages += page
            await log.write([TopUp(account_id="acme", amount_uhs=CT)])
        return [line.decode() for line in pages]

    for lines in await asyncio.gather(reader(2), reader(3), reader(50)):
        assert verify_export(lines).ok


async def test_a_journal_damaged_behind_the_auditors_back_gives_no_receipt(log, monkeypatch):
    real = log.writer.journal.leaf_hashes

    async def damaged(*bounds):
        hashes = await real(*bounds)
        return [bytes(32), *hashes[1:]]

    monkeypatch.setattr(log.writer.journal, "leaf_hashes", damaged)
    with pytest.raises(JournalCorrupt):
        await log.auditor.checkpoint()
    monkeypatch.undo()
    assert (
        Verifier.parse(log.auditor.verifier_key).checkpoint(await log.auditor.checkpoint()).size == log.writer.head.size
    )


def test_tokens_are_the_asset_that_statements_add_up():
    assert ASSET == "CT"
