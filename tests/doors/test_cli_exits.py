"""How commands about a job end: with the exit code of its script or command, where it has one."""

import json

import pytest


@pytest.mark.parametrize("own", [1, 3, 75, 137])
def test_who_follows_a_script_or_asks_for_its_result_ends_with_its_exit_code(run, house, own):
    house.port.exit_code = own
    done = run("submit", "--tokens", 1, "--json", "-f", "--", "false", code=own)
    shown = json.loads(done.stdout)
    assert (shown["state"], shown["exit_code"]) == ("failed", own)
    assert run("run", "--tokens", 1, "--", "false", code=own)
    told = run("result", shown["job_id"], "--json", code=own)
    assert json.loads(told.stderr)["error"]["facts"]["exit_code"] == own
    job = json.loads(run("job", shown["job_id"], "--json").stdout)
    assert (job["exit_code"], job["ran"][0]["nodes"], job["nodes"]) == (own, ["h0 × 1"], ["h0"])
    assert "h0 × 1" in run("job", shown["job_id"]).stdout


@pytest.mark.parametrize("save", [False, True])
def test_a_cancellation_gives_no_notice_unless_its_last_state_is_wanted(run, house, save):
    house.port.run_jobs = False
    job_id = run("submit", "--tokens", 1, "--", "sleep", "9").stdout.strip()
    run("cancel", job_id, *(["--save"] if save else []))
    (cancel,) = house.port.batches[-1]
    assert (cancel.save, cancel.at_once) == (save, not save)
