"""Models and calls at the command line: offered, priced, scaled, withdrawn; and a thousand small charges that stay readable."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from fabric.checkpoints import commit_directory
from fabric.checkpoints.jobs import checkpoints_in
from fabric.cli.calls import calls_in, gathered_by_model, print_calls
from fabric.client.client import new_request_id
from fabric.storage.archive import DirectoryArchive
from fabric.storage.layout import artifact_key
from fabric.wire import fabric_pb2 as pb
from tests.doors.test_serving_calls import call, ledger, slice_of

RATES = [
    {
        "accelerator": accelerator,
        "input_uhs_per_mtok": str(40_000_000 * factor),
        "cached_uhs_per_mtok": str(4_000_000 * factor),
        "output_uhs_per_mtok": str(400_000_000 * factor),
        "reasoning_uhs_per_mtok": str(400_000_000 * factor),
    }
    for accelerator, factor in (("H100", 1), ("A100", 2))
]


@pytest.fixture
def offered(run, house, tmp_path):
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({"rates": RATES}))
    words = ("ops", "models", "offer", "tiny", "/models/tiny", "--accelerator", "A100", "--accelerator", "H100")
    more = ("--replicas", "0..3", "--ttft-ms", "500", "--engine", "max-num-seqs=8", "--rates", file)
    assert "tiny is offered" in run(*words, *more, key=house.root).output
    return file


def test_a_model_is_shown_with_its_state_and_the_price_of_a_million_tokens_on_each_accelerator(run, offered):
    shown = run("models").output
    lines = [line.split() for line in shown.splitlines() if " tiny " in f" {line} "]
    assert [line[1] for line in lines] == ["A100", "H100"]
    assert "0 of 0..3" in shown
    assert "0.0222" in shown, "80 H100-seconds in tokens"
    assert "0.011111" in shown, "80 H100-seconds at 0.50 CNY a token"


def test_a_model_is_json_for_programs(run, house, offered):
    (model,) = json.loads(run("models", "--json", key=house.root).output)
    assert (model["state"], model["rate_version"], model["spec"]["source"]) == ("waiting", 1, "/models/tiny")
    assert model["spec"]["engine_args"] == [{"name": "max-num-seqs", "value": "8"}]
    assert model["spec"]["engine"] == "vllm"
    assert model["rates"][0]["output_uhs_per_mtok"] == "400000000"
    (seen,) = json.loads(run("models", "--json").output)
    assert seen["spec"] is None, "where it comes from is the operator's to know"


def test_a_models_price_list_is_quoted_both_ways_in_the_customers_unit(run, offered):
    shown = run("quote", "--model", "tiny").output
    assert "tiny: 1 CT is 0.50 CNY" in shown
    (line,) = [line for line in shown.splitlines() if "H100" in line and "completion" in line]
    assert line.split()[2:] == ["0.1112", "0.0556", "9,000,000", "18,000,000"], "400 H100-seconds a million"
    quoted = json.loads(run("quote", "--model", "tiny", "--json").output)
    assert quoted["price_microcny_per_ct"] == "500000"
    for row in quoted["rates"]:
        assert row["tokens_per_ct"] * row["uhs_per_mtok"] <= 3_600_000_000 * 10**6
        assert row["microcny_per_mtok"] * 7_200 >= row["uhs_per_mtok"], "rounded up, as a customer reckons"
    assert "no model 'none'" in run("quote", "--model", "none", code=5).stderr
    assert "--tokens of a job, or --model" in run("quote", code=2).stderr


def test_a_source_is_a_whole_path_or_a_whole_job_id(run, house, offered, tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path)
    job = house.fabric().submit(lambda: 1, tokens=1)
    house.port.blobs[artifact_key("acme", job.id, name="model")] = b"tar"
    for given, source in (
        ("made", str(tmp_path / "made")),
        (f"job:{job.id[:10]}", f"job:{job.id}"),
        ("archive:x", "archive:x"),
    ):
        run("ops", "models", "offer", "m", given, "--accelerator", "H100", "--rates", offered, key=house.root)
        models = json.loads(run("models", "--json", key=house.root).output)
        assert models[-1]["spec"]["source"] == source


def test_a_job_that_there_is_not_or_that_left_no_model_is_not_offered(run, house, offered):
    words = ("ops", "models", "offer", "m")
    more = ("--accelerator", "H100", "--rates", offered)
    assert "there is no job" in run(*words, "job:job-zzzz", *more, key=house.root, code=5).stderr
    ended = house.fabric().submit(lambda: 1, tokens=1)
    assert ended.wait(timeout=20) == "succeeded"
    refused = run(*words, f"job:{ended.id}", *more, key=house.root, code=2).stderr
    assert "no_model" in refused
    assert "fabric.context.current().publish" in "".join(refused.split("\n"))
    house.port.run_jobs = False
    runs = house.fabric().submit(lambda: 1, tokens=1)
    assert "is offered" in run(*words, f"job:{runs.id}", *more, key=house.root).output, "it may publish one yet"


def test_a_job_that_published_nothing_is_said_how_to(run, house):
    job = house.fabric().submit(lambda: 1, tokens=1)
    assert job.wait(timeout=20) == "succeeded"
    refused = run("artifact", job.id, code=5).stderr
    assert "no_artifact" in refused
    assert "fabric.context.current().publish" in "".join(refused.split("\n"))


@pytest.mark.parametrize("kept", ["folder", "own"])
def test_a_job_is_offered_for_the_folder_that_it_kept_but_not_for_what_its_code_saved(
    run, house, offered, tmp_path, kept
):
    job = house.fabric().submit(lambda: 1, tokens=1)
    assert job.wait(timeout=20) == "succeeded"
    archive = DirectoryArchive(house.folder / "archive")
    checkpoints = checkpoints_in(archive, "acme", job.id, epoch=1, attempt_id="a1")
    checkpoints.claim()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "config.json").write_text("{}")
    if kept == "folder":
        commit_directory(checkpoints, tmp_path / "kept", step=1)
    else:
        draft = checkpoints.begin(1)
        draft.put("state", b"weights")
        checkpoints.commit(draft)
    words = ("ops", "models", "offer", "m", f"job:{job.id}", "--accelerator", "H100", "--rates", offered)
    run(*words, key=house.root, code=0 if kept == "folder" else 2)


@pytest.mark.parametrize(("joined", "code"), [(False, 5), (True, 0)])
def test_a_folder_that_is_not_here_is_refused_where_all_nodes_are_here_and_said_to_be_needed_elsewhere(
    run, house, offered, tmp_path, monkeypatch, joined, code
):
    words = ("ops", "models", "offer", "m", "/nowhere", "--accelerator", "H100", "--rates", offered)
    monkeypatch.setattr("fabric.daemon.running", lambda: SimpleNamespace(joined=joined, address=house.address))
    done = run(*words, key=house.root, code=code)
    assert ("no_folder" in done.stderr) if code else ("every node" in done.output)


def test_a_model_is_scaled_and_withdrawn(run, house, offered):
    assert "2 to 5 replicas" in run("ops", "models", "scale", "tiny", "2..5", key=house.root).output
    (model,) = json.loads(run("models", "--json").output)
    assert (model["replicas_min"], model["replicas_max"]) == (2, 5)
    assert "withdrawn" in run("ops", "models", "withdraw", "tiny", key=house.root).output
    assert "no models" in run("models").output
    assert "not_found" in run("ops", "models", "withdraw", "tiny", key=house.root, code=5).stderr


BAD = [
    (("scale", "tiny", "many"), 2, "from..to"),
    (("scale", "tiny", "5..2"), 2, "replicas_min"),
    (("scale", "none", "1"), 5, "there is no model"),
    (("offer", "tiny", "/m", "--engine", "trust-remote-code"), 2, "can't be set"),
    (("offer", "tiny", "/m", "--engine-name", "ollama"), 2, "choose of http, sglang, vllm"),
    (("offer", "tiny", "/m", "--engine-name", "http"), 2, "its source is a URL"),
    (("offer", "tiny", "http://h:1"), 2, "choose engine http"),
    (("offer", "tiny", "/m", "--accelerator", "B200"), 2, "there is no accelerator"),
    (("offer", "ti ny", "/m"), 2, "can't name a model"),
    (("offer", "tiny", "/m"), 2, "there are no rates"),
    (("offer", "tiny", "/m", "--dedicated-to", "nobody"), 5, "there is no account"),
    (("offer", "tiny", "/m", "--rates", "missing.json"), 5, "there is no file"),
]


@pytest.mark.parametrize(("words", "code", "found"), BAD)
def test_what_can_not_be_offered_is_refused_with_what_is_allowed(run, house, offered, words, code, found):
    assert found in run("ops", "models", *words, key=house.root, code=code).stderr


@pytest.mark.parametrize("text", ["", "[", "[{}]", "[1]", '{"x": 1}', '[{"input_uhs_per_mtok": 0.5}]'])
def test_rates_that_are_none_are_refused_with_the_file(run, house, tmp_path, text):
    file = tmp_path / "bad.json"
    file.write_text(text)
    refused = run("ops", "models", "offer", "tiny", "/m", "--rates", file, key=house.root, code=2)
    assert "bad.json" in refused.stderr


def test_only_an_operator_offers_models(run):
    assert "operator_only" in run("ops", "models", "offer", "tiny", "/m", code=3).stderr


# -- calls -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spoken(house, offered):
    async def speak():
        door = ledger(house)
        await door.authorize(**slice_of(10_000_000))
        for at in range(4):
            calls = [call(f"c{at}-{number}") for number in range(250)]
            more = {"more_uhs": 0, "minimum_uhs": 1, "ttl_us": 60_000_000}
            await door.update(hold_id="slice-1", account_id="acme", seq=at + 1, calls=calls, **more)
        await door.close()

    asyncio.run(speak())


def test_a_thousand_small_calls_are_a_line_and_with_calls_a_thousand(run, spoken):
    shown = run("usage").output
    assert len(shown.splitlines()) < 10
    assert "1000" in shown
    assert f"{8_000 * 1000 / 3_600_000_000:.8f}"[:9] in shown
    every = run("usage", "--calls").output
    assert sum("c3-" in line for line in every.splitlines()) == 250
    records = json.loads(run("usage", "--json").output)
    assert len(records) == 1000
    assert records[0]["rate_uhs_per_mtok"] == ["40000000", "4000000", "400000000", "400000000"]


def test_a_statement_gathers_what_gateways_held_and_took_by_model():
    def line(kind, ref, amount, held):
        return {"kind": kind, "ref": ref, "amount_uhs": amount, "held_uhs": held, "at_us": 1}

    lines = [
        line("top_up", "lot-1", 100, 0), line("hold", "gateway:acme:s1", 0, 50), line("capture", "gateway:acme:s1", -20, -20),
        line("hold", "job-1#1", 0, 5), line("release", "gateway:acme:s1", 0, -30), line("hold", "gateway:acme:s2", 0, 7),
    ]  # fmt: skip
    records = [{"lease_id": "gateway:acme:s1", "model": "tiny"}] * 3
    shown = gathered_by_model(lines, records)
    said = [(each["kind"], each["ref"], each["amount_uhs"], each["held_uhs"], each.get("count")) for each in shown]
    assert said == [
        ("top_up", "lot-1", 100, 0, None),
        ("hold", "job-1#1", 0, 5, None),
        ("calls", "tiny", -20, 0, 3),
        ("held for calls", "not used", 0, 7, 1),
    ]
    for name in ("amount_uhs", "held_uhs"):
        assert sum(each[name] for each in shown) == sum(each[name] for each in lines)


def test_a_statement_shows_every_call_that_is_asked_for(capsys):
    record = {
        "cdr_id": "c1", "account_id": "acme", "lease_id": "gateway:acme:s", "model": "tiny", "accelerator": "H100",
        "charged_uhs": 8_000, "prompt_tokens": 100, "rate_uhs_per_mtok": [1, 2, 3, 4], "ended_at_us": 1, "ended": "stop",
    }  # fmt: skip
    print_calls(calls_in([record, {"cdr_id": "job-1.1", "bands": [[1, 2]]}]))
    shown = capsys.readouterr().out
    assert "c1" in shown
    assert "0.00000222" in shown
    assert "job-1.1" not in shown


def test_a_balance_shows_what_a_lot_is_bound_to(run, house):
    scope = pb.Scope(models=["tiny"])
    grant = pb.GrantRequest(request_id=new_request_id(), account_id="acme", amount_uhs=3_600_000_000, scope=scope)
    house.client(house.root).call(grant, pb.Accepted)
    assert "for tiny" in run("balance").output
