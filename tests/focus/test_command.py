"""`fabric focus check`, offline."""

import json

from typer.testing import CliRunner

from fabric.cli.app import app
from fabric.focus.text import csv_lines
from tests.focus.test_rows import COLUMNS, rows_of


def test_a_file_is_checked_offline_and_what_is_wrong_is_named(tmp_path):
    path, run = tmp_path / "f.csv", CliRunner()
    rows, _ = rows_of(3)
    path.write_bytes(b"".join(csv_lines(rows, COLUMNS)))
    assert "keeps to the rules" in run.invoke(app, ["focus", "check", str(path)]).output
    path.write_bytes(path.read_bytes().replace(b",CNY,", b",Yuan,", 1))
    found = run.invoke(app, ["focus", "check", str(path), "--json"])
    assert found.exit_code != 0
    assert "BillingCurrency" in json.dumps(found.output)
    assert run.invoke(app, ["focus", "check", str(tmp_path / "none.csv")]).exit_code != 0
    assert run.invoke(app, ["focus", "export", str(tmp_path / "x.csv"), "--dataset", "all"]).exit_code != 0
