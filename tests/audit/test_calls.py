"""Calls in the log: what a verifier, a statement and a replay make of them."""

import json

import msgspec
import pytest

from fabric.audit.verify import verify_export
from fabric.charging.rates import Rate
from fabric.charging.tariffs import Tariffs, Weight
from fabric.gate.account_events import AddMember, CreateKey, CreateProject
from fabric.gate.events import Configure
from fabric.gate.questions import RecordsOf, StatementOf
from fabric.gate.roles import Role
from fabric.gate.serving_events import Authorize, CallUsed, ModelSpec, OfferModel, SettleHold, UpdateHold
from fabric.ledger.scopes import Service, Use
from tests.audit.conftest import CATALOGUE, CT, calls
from tests.audit.test_replay import replayed
from tests.audit.test_verify import changed, leaves_of, whole_export


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
    statement = await spoken.statement(StatementOf(account_id="acme"))
    records = [record for record in await spoken.records(RecordsOf(account_id="acme")) if record.model]
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


async def test_a_record_of_another_project_member_or_tag_than_its_call_is_found(log):
    await log.write(marked("acme"))
    assert verify_export(await log.export()).ok
    leaves = leaves_of(await log.export())
    changes = {
        "project": lambda record: record.update(project="ads"),
        "member": lambda record: record.update(member="li"),
        "told": lambda record: record.update(tags=["team=blue"]),
    }
    for found, change in changes.items():
        report = verify_export(tampered(leaves, lambda entry, change=change: change(entry["records"][0])))
        assert not report.ok, found
        assert {"told": "not recorded as it was told"}.get(found, "its key 'k'") in report.problem
    older = tampered(leaves, lambda entry: [entry["records"][0].pop(name) for name in ("project", "member")])
    assert verify_export(older).ok, "records of before name no project and no member"


async def test_a_jobs_record_with_other_tags_than_its_own_its_keys_and_its_projects_is_found(log):
    project, member, key, *_ = marked("acme")
    project = msgspec.structs.replace(project, tags=("cost-centre=7", "team=red"))
    await log.write([project, member, msgspec.structs.replace(key, tags=("team=blue",))])
    await log.run_job("acme", job_id="j", key_id="k", tags=("exp7",))
    leaves = leaves_of(await log.export())
    assert verify_export(whole_export(leaves)).ok
    (at,) = (seq for seq, leaf in enumerate(leaves) if json.loads(leaf)["records"])
    (record,) = json.loads(leaves[at])["records"]
    assert record["tags"] == ["cost-centre=7", "team=blue", "exp7"]
    report = verify_export(whole_export(changed(leaves, at, records=[record | {"tags": ["team=blue", "exp7"]}])))
    assert not report.ok
    assert "has the tags" in report.problem


def marked(account: str) -> list:
    """A call with tags, and a key of a project's member."""
    of = {"account_id": account, "hold_id": f"{account}-slice"}
    offer, authorize, *_ = calls(account)
    used = msgspec.structs.replace(calls(account)[2].calls[0], key_id="k", tags=("team=red",))
    return [
        CreateProject(account_id=account, project="search", wallet=account),
        AddMember(account_id=account, member="dan", role=Role.DEVELOPER),
        CreateKey(key_id="k", account_id=account, secret_sha256="", project="search", member="dan"),
        offer,
        authorize,
        SettleHold(seq=1, calls=(used,), **of),
    ]


def beyond(account: str) -> list:
    """One slice holds all that the account has; another pays for a call that nothing is left for."""
    of = {"account_id": account}
    use = Use(service=Service.INFERENCE, accelerators=("H100",), models=("tiny",))
    used = CallUsed(
        call_id="beyond", model="tiny", accelerator="H100", prompt_tokens=100, completion_tokens=33,
        started_at_us=1_800_000_000_000_000, ended_at_us=1_800_000_000_500_000, ended="stop",
    )  # fmt: skip
    return [
        Authorize(hold_id="small", amount_uhs=100, use=use, ttl_us=60_000_000, **of),
        Authorize(hold_id="all", amount_uhs=1_000 * CT, minimum_uhs=1, use=use, ttl_us=60_000_000, **of),
        SettleHold(hold_id="small", seq=1, calls=(used,), used_uhs=7, **of),
    ]


@pytest.mark.parametrize("account", [None, "acme"])
async def test_a_write_off_is_verified_and_shown_in_the_statement(spoken, account):
    await spoken.write(beyond("acme"))
    report = verify_export(await spoken.export(account), trusted_key=spoken.auditor.verifier_key)
    assert report.ok, report
    statement = await spoken.statement(StatementOf(account_id="acme"))
    (line,) = [line for line in statement.lines if line.kind == "write_off"]
    (record,) = [record for record in statement.records if record.cdr_id == "beyond"]
    assert (line.amount_uhs, line.ref, line.flags) == (0, "small", ("over_hold",))
    assert line.written_off_uhs == record.absorbed_uhs > 0
    assert statement.closing.debt_uhs == 0


async def test_a_write_off_that_hides_a_charge_is_found(spoken):
    await spoken.write(beyond("acme"))
    leaves = leaves_of(await spoken.export())
    entry = json.loads(leaves[-1])
    (record,) = entry["records"]
    record["absorbed_uhs"] += 1
    done = json.dumps(entry, separators=(",", ":")).encode()
    assert "costs" in verify_export(whole_export([*leaves[:-1], done])).problem


def of_an_adapter(account: str, parent_rates: tuple[Rate, ...]) -> list:
    """An adapter without rates of its own, a call of it, and another one once its parent costs something else."""
    of, enabled = {"account_id": account}, (("enable-lora", "true"), ("max-lora-rank", "16"))
    use = Use(service=Service.INFERENCE, accelerators=("H100",), models=("law",))

    def base(rates):
        return OfferModel(spec=ModelSpec(name="home", source="/m", engine_args=enabled), rates=rates)

    def used(call_id):
        return CallUsed(
            call_id=call_id, model="law", accelerator="H100", prompt_tokens=100, completion_tokens=33,
            started_at_us=1_800_000_000_000_000, ended_at_us=1_800_000_000_500_000, ended="stop",
        )  # fmt: skip

    general = (msgspec.structs.replace(PRICE, output_uhs_per_mtok=3_000_000),)
    terms = {"weights": (Weight(accelerator="H100", ppm=1_000_000),)}
    return [
        Configure(tariffs=Tariffs(version=2, rates=general, **terms), catalogue=CATALOGUE),
        base(parent_rates),
        OfferModel(spec=ModelSpec(name="law", source="/l", parent="home")),
        Authorize(hold_id="law", amount_uhs=CT, use=use, ttl_us=60_000_000, **of),
        UpdateHold(hold_id="law", seq=1, calls=(used("first"),), **of),
        Configure(tariffs=Tariffs(version=3, rates=(PRICE,), **terms), catalogue=CATALOGUE),
        UpdateHold(hold_id="law", seq=2, calls=(used("second"),), **of),
        OfferModel(spec=ModelSpec(name="law", source="/l", parent="home")),
        SettleHold(hold_id="law", seq=3, calls=(msgspec.structs.replace(used("third"), rate_version=1),), **of),
    ]


PRICE = Rate(
    input_uhs_per_mtok=5_000_000, cached_uhs_per_mtok=1, output_uhs_per_mtok=7_000_000, reasoning_uhs_per_mtok=2
)


@pytest.mark.parametrize("account", [None, "acme"])
@pytest.mark.parametrize("parent_rates", [(), (PRICE,)])
async def test_calls_of_an_adapter_at_its_parents_price_are_verified(log, account, parent_rates):
    await log.write(of_an_adapter("acme", parent_rates))
    report = verify_export(await log.export(account), trusted_key=log.auditor.verifier_key)
    assert report.ok, report
    assert report.counts["calls"] == 3


async def test_a_call_of_an_adapter_charged_otherwise_than_its_parent_costs_is_found(log):
    await log.write(of_an_adapter("acme", (PRICE,)))

    def cheaper(entry):
        record = entry["records"][0]
        record["rate_uhs_per_mtok"][2] -= 1_000_000
        record["charged_uhs"] -= record["completion_tokens"]

    assert "was offered" in verify_export(tampered(leaves_of(await log.export()), cheaper)).problem
