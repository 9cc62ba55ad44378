"""A statement that was written to a file is held against the export: each line, each balance."""

import json

import msgspec
import pytest

from fabric.audit.verify import verify_export
from fabric.cli.money import as_strings
from fabric.gate.questions import StatementOf
from tests.audit.conftest import calls


@pytest.mark.parametrize("account", [None, "acme"])
async def test_a_statement_is_what_the_export_says_and_no_figure_of_it_can_be_changed(log, account):
    await log.write(calls("acme"))
    middle = log.clock.now_us()
    await log.run_job("acme", job_id="job-1")
    key, lines = log.auditor.verifier_key, await log.export(account)
    for period in ({}, {"from_us": middle}, {"until_us": middle}):
        statement = await log.statement(StatementOf(account_id="acme", **period))
        found = as_strings(json.loads(msgspec.json.encode(statement)))
        assert found["lines"]
        report = verify_export(lines, trusted_key=key, statement=json.dumps(found))
        assert report.ok, report
    for name, value in found["lines"][1].items():
        if name not in ("flags", "packages", "left"):
            other = json.loads(json.dumps(found))
            other["lines"][1][name] = str(int(value) + 1) if str(value).lstrip("-").isdecimal() else "other"
            assert "line 2 of the statement" in verify_export(lines, statement=json.dumps(other)).problem, name
    for changed in (
        found | {"lines": found["lines"][:-1]},
        found | {"opening": found["opening"] | {"free_uhs": "1"}},
        found | {"closing": found["closing"] | {"held_uhs": "1"}},
        found | {"account_id": "beta"},
        {},
        [],
    ):
        assert not verify_export(lines, statement=json.dumps(changed)).ok
