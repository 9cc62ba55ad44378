"""The command line over a real door: what people see, what programs read, and how commands end."""

import json

import pytest
import typer
from typer.testing import CliRunner

from fabric.cli import app
from fabric.client.profile import profile_file
from fabric.errors import FabricError, Unavailable
from fabric.gate.events import LeaseStarted
from fabric.results import read_parcel
from fabric.storage.layout import artifact_key


@pytest.fixture
def job(house):
    made = house.fabric().submit(lambda: 42, tokens=2, name="answer")
    made.wait(timeout=20)
    return made


TABLES = [
    (("quote", "--tokens", 2, "-x", "H100:2"), "2 × H100"),
    (("jobs",), "answer"),
    (("balance",), "acme (Acme)"),
    (("usage",), "1 × "),
    (("statement",), "account acme"),
    (("plans",), "starter"),
    (("plan",), "starter"),
    (("topup", 5), "5 CT bought"),
    (("bundle", "edge"), "bundle edge bought for 9.00 CNY"),
    (("keys", "ls"), "k-acme"),
    (("keys", "create", "--name", "ci"), "fab_"),
    (("audit", "receipts"), "entry 1"),
    (("top",), "burning 0 CT/s"),
    (("models",), "no models are offered"),
]
OPERATORS = [
    (("ops", "accounts"), "globex"),
    (("ops", "nodes"), "H100"),
    (("ops", "leases"), "no leases"),
    (("ops", "open-account", "initech", "--plan", "starter"), "initech is open"),
    (("ops", "grant", "acme", "3", "--days", 7), "3 CT granted"),
    (
        ("ops", "void", "acme", "lot-1", "--reason", "typed 100 for 10", "--tokens", 90),
        "90 CT of lot-1 voided, 45.00 CNY",
    ),
    (("ops", "drain", "h1"), "draining"),
    (("ops", "undrain", "h1"), "takes jobs again"),
    (("ops", "close-period", "2027-01"), "closed"),
    (("ops", "usage"), "no open usage"),
]


@pytest.mark.parametrize(("words", "shows"), TABLES)
def test_a_command_shows_people_a_table_and_programs_json(run, job, words, shows):
    shown = run(*words).output
    assert shows in shown
    assert "\x1b" not in shown
    json.loads(run(*words, "--json").output)


@pytest.mark.parametrize(("words", "shows"), OPERATORS)
def test_an_operators_command_is_an_operators(run, house, words, shows):
    assert "operator_only" in run(*words, code=3).stderr
    assert shows in run(*words, key=house.root).output


@pytest.mark.parametrize("words", [words for words, _ in OPERATORS])
def test_what_an_operator_is_told_is_json_too(run, house, words):
    found = json.loads(run(*words, "--json", key=house.root).output)
    assert isinstance(found, list) == (words[1] in {"accounts", "nodes", "leases", "usage"})


@pytest.mark.parametrize("word", ["drain", "undrain"])
def test_a_node_that_is_not_there_is_refused_and_those_that_are_named(run, house, word):
    refused = run("ops", word, "nosuch", key=house.root, code=5).stderr
    assert "there is no node 'nosuch': there are a1, h0, h1" in refused
    assert "not_found" in refused


def test_a_drained_node_is_taken_back(run, house):
    states = []
    for word in ("drain", "undrain", "undrain"):
        run("ops", word, "h1", key=house.root)
        [node] = [each for each in json.loads(run("ops", "nodes", "--json", key=house.root).output)
                  if each["node_id"] == "h1"]  # fmt: skip
        states.append(node["state"])
    assert states == ["draining", "up", "up"]


def commands(group, *words):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *words, name)
        else:
            yield " ".join([*words, name]), command


def test_every_command_answers_programs_with_json():
    every = dict(commands(typer.main.get_command(app)))
    assert {"up", "doctor", "submit", "run", "logs", "top", "audit verify", "ops nodes", "keys create"} <= set(every)
    silent = [
        name for name, command in every.items() if "--json" not in {opt for p in command.params for opt in p.opts}
    ]
    assert silent == []


def test_an_operator_acts_for_a_customer(run, house):
    assert json.loads(run("balance", "--json", "-a", "globex", key=house.root).output)["account_id"] == "globex"


def test_usage_names_the_jobs_whose_lease_has_no_record_yet(run, house, job):
    assert "recorded here when" not in run("usage").output
    house.port.run_jobs = False
    runs = house.fabric().submit(lambda: 42, tokens=2)
    house.port.seed(LeaseStarted(lease_id=f"{runs.id}.1"))
    shown = run("usage").output
    assert f"recorded here when they have left their devices: {runs.id}" in shown
    assert runs.id not in run("usage", "--job", job.id).output


def test_amounts_in_json_are_strings_of_uhs_and_of_tokens(run):
    balance = json.loads(run("balance", "--json").output)
    assert balance["free_uhs"] == "360000000000"
    assert balance["free_ct"] == "100"
    assert balance["burn_uhs_per_s"] == "0"
    assert balance["lots"][0]["price_cny"]


def test_a_script_is_submitted_and_followed_to_its_end(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("print(1)")
    done = run("submit", "train.py", "--tokens", 2, "--accelerators", "H100:1", "--follow")
    assert "running train.py" in done.stdout
    job_id = done.stderr.strip()
    assert json.loads(run("job", job_id, "--json").output)["state"] == "succeeded"
    assert run("logs", job_id).output == "running train.py\n"
    assert run("result", job_id).output == "None\n"
    made = json.loads(run("submit", "--tokens", 2, "--json", "--", "python", "train.py", "--json").output)
    assert made["job_id"].startswith("job-")


def test_what_a_program_follows_is_json_on_standard_output_and_logs_beside_it(run):
    done = run("run", "--tokens", 1, "--json", "--", "echo", "hello")
    assert json.loads(done.stdout)["state"] == "succeeded"
    assert "running echo hello" in done.stderr
    made = json.loads(run("submit", "--tokens", 1, "--json", "-f", "--", "echo", "hello").stdout)
    (piece,) = map(json.loads, run("logs", made["job_id"], "--json").stdout.splitlines())
    assert piece == {"rank": 0, "attempt": 1, "offset": 0, "data": "running echo hello\n"}


def test_who_follows_a_job_to_where_it_is_parked_is_told_that_it_is_not_done(run, house):
    house.port.pause_jobs = True
    done = run("run", "--tokens", 1, "--json", "--", "echo", "hello", code=9)
    assert json.loads(done.stdout)["state"] == "parked"
    assert "parked: paused" in done.stderr
    assert "fabric raise-limit job-" in done.stderr


def test_a_result_can_be_written_unopened(run, job, tmp_path):
    assert run("result", job.id).output == "42\n"
    run("result", job.id, "-o", tmp_path / "out")
    assert read_parcel((tmp_path / "out").read_bytes()).value() == 42


def test_a_job_is_stopped_resumed_and_given_more(run, house):
    house.port.run_jobs = False
    job_id = house.fabric().submit(lambda: 1, tokens=1).id
    assert "parked" in run("pause", job_id).output
    run("raise-limit", job_id, "3")
    run("resume", job_id)
    assert json.loads(run("cancel", job_id, "--json").output) == {"job_id": job_id, "accepted": True}
    assert "4" in run("top", "--once").output or run("jobs").output


def test_a_job_is_known_by_the_beginning_of_its_id(run, job):
    assert json.loads(run("job", job.id[:12], "--json").output)["job_id"] == job.id
    assert run("result", job.id[:12]).output == "42\n"
    assert "not_found" in run("job", "job-0000", code=5).stderr


@pytest.mark.parametrize("word", ["job", "pause", "logs", "result"])
def test_a_beginning_that_many_jobs_share_is_ambiguous_and_some_are_named(run, job, house, word):
    assert f"job- is the beginning of 1 job, {job.id}: give more" in run(word, "job-", code=2).stderr
    house.fabric().submit(lambda: 42, tokens=2)
    told = run(word, "job-", code=2).stderr
    assert "is the beginning of 2 jobs" in told
    assert job.id in told
    assert "ambiguous_job" in told


def test_a_jobs_name_is_no_id_and_who_gives_one_is_told_the_ids(run, job):
    told = run("pause", "answer", code=5).stderr
    assert "`fabric jobs`" in told
    assert f"1 job of that name: {job.id}" in told
    assert "of that name" not in run("usage", "--job", "nobody", code=5).stderr


def test_the_checkpoints_of_a_job_are_listed_if_nothing_else_is_asked(run, job):
    assert run("checkpoints", job.id).output == run("checkpoints", "ls", job.id).output
    assert json.loads(run("checkpoints", job.id[:12], "--json").output) == []
    assert "No such command" in run("checkpoints", "lst", job.id, code=2).stderr


@pytest.mark.parametrize("limit", [0, -1])
def test_no_jobs_at_all_can_not_be_asked_for(run, limit):
    assert "--limit" in run("jobs", "--limit", limit, code=2).stderr


@pytest.mark.parametrize(
    "words", [("balance",), ("usage",), ("statement",), ("jobs",), ("keys", "ls"), ("audit", "receipts"),
              ("audit", "export")]
)  # fmt: skip
def test_of_a_customer_who_is_not_there_nothing_is_shown(run, house, words):
    assert "there is no account 'poor'" in run(*words, "-a", "poor", key=house.root, code=5).stderr
    run(*words, "-a", "globex", key=house.root)


def test_who_takes_the_environments_key_for_the_profiles_is_told_which_comes_first(run):
    assert "FABRIC_API_KEY comes before the profile" in run("ops", "nodes", code=3).stderr
    told = run("keys", "create", "-a", "poor", code=3).stderr
    assert "leave `--account` of the CLI" in told
    assert "FABRIC_API_KEY comes before the profile" in told


def test_a_new_key_works_and_a_revoked_one_does_not(run):
    made = json.loads(run("keys", "create", "--limit", 5, "--days", 1, "--json").output)
    run("balance", key=made["api_key"])
    run("keys", "revoke", made["key_id"])
    assert "key_revoked" in run("balance", key=made["api_key"], code=3).stderr


ENDINGS = [
    (("quote", "--tokens", "1e3"), 2, "invalid_amount"),
    (("submit", "--tokens", "0.5", "-x", "B9000:1", "--", "true"), 2, "unknown_accelerator"),
    (("quote", "--tokens", "0.5", "-x", "H100:0"), 2, "invalid_accelerators"),
    (("submit", "nowhere.py", "--tokens", "1"), 2, "script_not_found"),
    (("submit", ".", "--tokens", "1"), 2, "not_a_command"),
    (("run", "--tokens", "1", "--", "/usr"), 2, "not_a_command"),
    (("submit", "--tokens", "1", "--env", "A", "--", "true"), 2, "invalid_env"),
    (("submit", "--tokens", "500", "--", "true"), 4, "insufficient_tokens"),
    (("job", "job-nowhere"), 5, "not_found"),
    (("cancel", "job-nowhere"), 5, "not_found"),
    (("bundle", "nothing"), None, ""),
    (("ops", "nodes"), 3, "operator_only"),
    (("audit", "verify", "/nowhere"), 2, "no_export"),
    (("keys", "create", "--days", "-1"), 2, "invalid_duration"),
    (("keys", "create", "--per", "day"), 2, "invalid_limit"),
    (("keys", "limit", "--amount", "5", "--remove"), 2, "invalid_limit"),
]


@pytest.mark.parametrize(("words", "code", "says"), ENDINGS)
def test_an_expected_error_is_one_line_with_its_code_and_no_traceback(run, words, code, says):
    run("balance")
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code or (code is None and done.exit_code in {2, 5})
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.output
    words = (
        (*words[: words.index("--")], "--json", *words[words.index("--") :]) if "--" in words else (*words, "--json")
    )
    as_json = CliRunner().invoke(app, list(words))
    assert json.loads(as_json.stderr)["error"]["code"] in done.stderr
    assert as_json.stdout == ""


def test_a_subscription_is_taken_once_and_ended(run):
    assert "monthly" in run("subscribe", "monthly").output
    assert "already" in run("subscribe", "monthly", code=6).stderr
    assert "current cycle" in run("unsubscribe", "monthly").output


def test_a_job_that_failed_ends_with_seven(run, house):
    failed = house.fabric().submit(lambda: 1 / 0, tokens=1)
    failed.wait(timeout=20)
    assert "division by zero" in run("result", failed.id, code=7).stderr


def test_debug_shows_where_an_error_came_from(house, run, monkeypatch):
    monkeypatch.setenv("FABRIC_API_KEY", house.acme)
    done = CliRunner().invoke(app, ["--debug", "job", "job-nowhere"])
    assert isinstance(done.exception, FabricError)


def test_exit_codes_are_those_of_the_errors_and_are_documented():
    text = CliRunner().invoke(app, ["--help"]).output
    codes = {kind.exit_code for kind in _all_kinds(FabricError)}
    assert codes == {1, 2, 3, 4, 5, 6, 7, 8}
    for code in codes:
        assert f"{code} " in text.partition("Exit codes")[2]


def _all_kinds(kind):
    yield kind
    for each in kind.__subclasses__():
        yield from _all_kinds(each)


def test_an_export_goes_to_a_file_or_to_standard_output(run, job, tmp_path):
    run("audit", "export", tmp_path / "export.jsonl")
    assert job.id in (tmp_path / "export.jsonl").read_text()
    assert job.id in run("audit", "export").output


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("", "no_export", "it is empty: give a file that `fabric audit export FILE` has written"),
        ("a,b\n", "no_export", ", line 1: this is no JSON"),
        ('{"format": "token-fabric-audit", "version": 2, "origin": "o", "account": "a", "key": "k"}\n{"seq', "export_cut_short",
         "export.jsonl, line 2: the export is cut short within its last line: export it again with"),
        ('{"format": "token-fabric-audit", "version": 2, "origin": "o", "account": "a", "key": "k"}\n{}\n', "another_key",
         "not the trusted one: check --key"),
    ],
)  # fmt: skip
def test_an_export_that_proves_nothing_says_where_why_and_what_to_do(run, tmp_path, text, code, says):
    (tmp_path / "export.jsonl").write_text(text)
    told = run("audit", "verify", tmp_path / "export.jsonl", "--key", "other", code=2).stderr
    assert says in told
    assert code in told


def test_an_export_that_breaks_off_is_begun_again_and_whole_or_not_there(run, job, house, tmp_path, monkeypatch):
    whole, export = run("audit", "export").output, house.port.export

    async def breaking_off(*, account_id, since=None):
        async for line in export(account_id=account_id, since=since):
            yield line
        if left.pop():
            raise Unavailable("the export was interrupted: begin it again", code="export_interrupted")

    monkeypatch.setattr(house.port, "export", breaking_off)
    left = [False, True, True]
    run("audit", "export", tmp_path / "export.jsonl")
    assert (tmp_path / "export.jsonl").read_text() == whole
    left = [False, True, True]
    assert run("audit", "export").output == whole
    monkeypatch.setattr("fabric.client.client._ATTEMPTS", 2)
    monkeypatch.setattr("fabric.client.client._ATTEMPTS_ONCE_KNOWN", 2)
    left = [True] * 100
    assert "export_interrupted" in run("audit", "export", tmp_path / "cut.jsonl", code=8).stderr
    assert run("audit", "export", code=8).stdout == ""
    assert [file.name for file in tmp_path.glob("*.jsonl*")] == ["export.jsonl"]
    assert list(tmp_path.glob(".*.draft")) == []


@pytest.mark.parametrize("words", [("audit", "export"), ("result", "JOB", "--output"), ("artifact", "JOB", "--to")])
def test_a_file_that_can_not_be_written_is_named_and_not_a_traceback(run, job, house, tmp_path, words):
    house.port.blobs[artifact_key("acme", job.id, name="model")] = b"tar"
    words = [job.id if word == "JOB" else word for word in words]
    assert "file_unwritable" in run(*words, tmp_path / "nowhere" / "file.tar", code=2).stderr
    run(*words, tmp_path / "file.tar")
    if words[0] != "artifact":  # what has no suffix is a folder there
        run(*words, "/dev/null")
    assert (tmp_path / "file.tar").stat().st_size
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["file.tar"]


def test_a_file_of_ones_own_that_can_not_be_read_is_named_and_not_a_traceback(run, house, tmp_path, monkeypatch):
    profile = profile_file({"XDG_CONFIG_HOME": str(tmp_path)})
    profile.mkdir(parents=True, mode=0o700)
    monkeypatch.delenv("FABRIC_ADDRESS")
    done = run("balance", code=2)
    assert str(profile) in done.stderr
    assert "file_unusable" in done.stderr


def test_without_an_address_the_error_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["balance"])
    assert (done.exit_code, "FABRIC_ADDRESS" in done.stderr) == (2, True)


def test_run_follows_a_command_to_its_end_and_tells_its_story(run):
    done = run("run", "--tokens", 1, "-x", "any:1-4", "--", "echo", "hello")
    assert "running echo hello" in done.output
    assert "RUNNING on 4 × H100 → SUCCEEDED" in done.output


def test_a_quote_by_name_tells_what_such_jobs_took(run, job):
    assert "no job of this name" in run("quote", "--tokens", 1, "--name", "other").output
    assert "for half of 1 runs" in run("quote", "--tokens", 1, "--name", "answer").output


def test_a_job_shows_its_story(run, job):
    shown = run("job", job.id).output
    assert "RUNNING on 1 × H100 → SUCCEEDED" in shown
