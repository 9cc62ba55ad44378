"""Calls in the log: what a verifier, a statement and a replay make of them."""

import json

import pytest

from fabric.audit.verify import verify_export
from fabric.gate.questions import RecordsOf, StatementOf
from tests.audit.conftest import calls
from tests.audit.test_replay import replayed
from tests.audit.test_verify import leaves_of, whole_export


@pytest.fixture
async def spoken(log):
    await log.write(calls("acme"))
    return log


@pytest.mark.parametrize("account", [None, "acme", "beta"])
async def test_calls_are_verified_with_the_rest(spoken, account):
    report = verify_export(await spoken.export(account), trusted_key=spoken.auditor.verifier_key)
    assert report.ok, report
    assert report.counts["calls"] == (0 if account == "beta" else 5)


async def test_a_journal_with_calls_and_models_replays(spoken):
    entries = [entry async for entry in spoken.writer.journal.read()]
    assert replayed(entries).snapshot() == spoken.writer.core.snapshot()


async def test_the_records_are_the_difference_in_the_statement(spoken):
    statement = await spoken.auditor.statement(StatementOf(account_id="acme"))
    records = [record for record in await spoken.auditor.records(RecordsOf(account_id="acme")) if record.model]
    captured = -sum(line.amount_uhs for line in statement.lines if line.ref == "acme-slice")
    assert captured == sum(record.charged_uhs for record in records) + 5
    assert [record.cdr_id for record in statement.records if record.model] == [record.cdr_id for record in records]


def tampered(leaves, change):
    """The log with one call's record changed, signed again: what a dishonest operator could do."""
    for at, leaf in enumerate(leaves):
        entry = json.loads(leaf)
        if any(record.get("model") and not record.get("covered") for record in entry["records"]):
            change(entry)
            done = json.dumps(entry, separators=(",", ":")).encode()
            return whole_export([*leaves[:at], done, *leaves[at + 1 :]])
    raise AssertionError("no call in the log")


def one_more_token(entry):
    entry["records"][0]["completion_tokens"] = entry["records"][0].get("completion_tokens", 0) + 1


def dearer(entry):
    entry["records"][0]["charged_uhs"] += 1


def another_rate(entry):
    record = entry["records"][1]
    record["rate_uhs_per_mtok"][0] += 1_000_000
    record["charged_uhs"] += record["prompt_tokens"] - record["cached_tokens"]


def twice(entry):
    entry["records"].append(entry["records"][0])


def less_reported(entry):
    entry["event"]["used_uhs"] -= 1


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (one_more_token, "costs"),
        (dearer, "costs"),
        (another_rate, "was offered"),
        (twice, "a second time"),
        (less_reported, "paid"),
    ],
)
async def test_a_call_that_is_charged_otherwise_than_it_was_counted_is_found(spoken, change, found):
    report = verify_export(tampered(leaves_of(await spoken.export()), change))
    assert not report.ok
    assert found in report.problem
