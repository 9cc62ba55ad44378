"""`fabric simulate`: from a file to tables, without a fabric."""

import json

import pytest
from typer.testing import CliRunner

from fabric.cli.app import app

TRACE = "submit_s,duration_s,devices,user\n" + "".join(
    f"{60 * at},{600 * (1 + at % 7)},{(1, 1, 2, 8)[at % 4]},user-{at % 5}\n" for at in range(60)
)


@pytest.fixture
def simulate(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE)

    def call(*words):
        return CliRunner().invoke(app, ["simulate", str(trace), *words])

    return call


def test_policies_stand_beside_each_other_in_one_table(simulate):
    found = simulate("--nodes", "2x8", "-p", "fabric", "-p", "fifo", "--tiers", "60/30/10")
    assert found.exit_code == 0, found.output
    assert "60 jobs on 16 devices" in found.output
    rows = [line.split()[0] for line in found.output.splitlines() if line and line.split()[0] in ("fabric", "fifo")]
    assert rows == ["fabric", "fifo"]


def test_json_has_every_run_with_its_seed(simulate):
    found = simulate("--nodes", "2x8", "-p", "all", "--seeds", "2", "--tiers", "60/30/10", "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert {run["seed"] for run in told["runs"]} == {1, 2}
    assert all(run["ended"] == 60 for run in told["runs"])


def test_a_cluster_is_found_that_is_large_enough_where_none_is_named(simulate):
    found = simulate("-p", "best-effort")
    assert found.exit_code == 0, found.output
    assert "not ended" in found.output


def test_two_kinds_of_nodes_and_a_cluster_files_scheduling(simulate, tmp_path):
    more = tmp_path / "eager.yaml"
    found = simulate("--nodes", "1x8:A100", "--nodes", "1x8:reserved", "-p", str(more))
    assert found.exit_code == 2
    assert "eager.yaml" in found.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nodes", "8"], "COUNTxDEVICES"),
        (["--nodes", "0x8"], "COUNTxDEVICES"),
        (["-p", "nobody"], "there is no policy"),
        (["--tiers", "60/30"], "add up to 100"),
        (["--checkpoint", "often"], "30s, 5min, 1h or 2d"),
        (["--checkpoint", "0"], "more than 0"),
    ],
)
def test_what_cant_be_meant_is_said_in_a_line(simulate, words, says):
    found = simulate(*words)
    assert found.exit_code == 2
    assert says in " ".join(found.output.split())
