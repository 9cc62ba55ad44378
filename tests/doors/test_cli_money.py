"""Money at an operator's command line: accounts with credit, what they pay, and what was booked by mistake."""

import json

import msgspec
import pytest

from fabric.charging.catalogue import Ends, Mode, Plan
from fabric.charging.tariffs import Weight
from fabric.cli.llm_packages import money_of
from fabric.cli.usage_by import print_by
from fabric.gate.events import Configure, NodeUp, Pool
from fabric.gate.serving_events import Authorize, SettleHold
from fabric.ledger.scopes import Service, Use
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from tests.doors.conftest import CATALOGUE, START_US, TARIFFS

USE = Use(service=Service.INFERENCE)
POSTPAID = Plan(
    name="on-account",
    tier_rank=0,
    price_microcny_per_ct=400_000,
    lifetime_days=30,
    mode=Mode.POSTPAID,
    credit_limit_uhs=20 * UHS_PER_CT,
)


@pytest.fixture
def operator(house, run):
    """Commands of an operator, where there is a postpaid plan and payments are real."""
    catalogue = msgspec.structs.replace(CATALOGUE, plans=(*CATALOGUE.plans, POSTPAID))
    house.port.seed(Configure(tariffs=TARIFFS, catalogue=catalogue, payments="operator"))
    house.door.sandbox_payments = False

    def command(*words, code=0):
        return run(*words, key=house.root, code=code)

    return command


def use_up(house, account, tokens):
    used_uhs = tokens * UHS_PER_CT
    house.port.seed(
        Authorize(hold_id="h", account_id=account, amount_uhs=used_uhs, use=USE, ttl_us=60_000_000),
        SettleHold(hold_id="h", account_id=account, seq=1, used_uhs=used_uhs),
    )


def test_an_account_on_credit_from_its_first_call_to_its_paid_invoice(house, operator):
    operator("ops", "open-account", "cyd", "--plan", "on-account", "--credit", 10)
    use_up(house, "cyd", 5)
    operator("ops", "close-period", "2023-11")
    shown = operator("balance", "--account", "cyd").output
    assert "0 CT of 10 CT credit, and 5 CT in invoices of 2.00 CNY to pay" in shown
    assert "2.00" in operator("ops", "accounts").output
    paid = ("ops", "record-payment", "cyd", "1.50", "--payment-ref", "BANK-1")
    assert "1.50 CNY of cyd booked; 0.50 CNY are still to pay" in operator(*paid).output
    assert "0.50 CNY are still to pay" in operator(*paid).output, "said twice it is booked once"
    too_much = operator("ops", "record-payment", "cyd", "0.51", "--payment-ref", "BANK-2", code=2)
    assert "0.50 CNY to pay" in too_much.stderr
    balance = json.loads(operator("balance", "--account", "cyd", "--json").output)
    assert (balance["receivable_cny"], balance["invoiced_ct"]) == ("0.50", "1.25")


def test_credit_is_what_was_said_and_never_on_a_prepaid_plan(operator):
    for account, words, credit in (("a", (), "20"), ("b", ("--credit", "0"), "0"), ("c", ("--credit", "7.5"), "7.5")):
        operator("ops", "open-account", account, "--plan", "on-account", *words)
        balance = json.loads(operator("balance", "--account", account, "--json").output)
        assert balance["credit_limit_ct"] == credit
    refused = operator("ops", "open-account", "d", "--plan", "starter", "--credit", "5", code=2).stderr
    assert "plan 'starter' is prepaid" in refused
    assert "choose a postpaid plan (on-account)" in refused
    operator("ops", "open-account", "d", "--plan", "starter", "--credit", "0")


def test_an_operator_books_each_payment_for_an_account_by_its_reference(operator, run):
    assert "pay the operator" in run("topup", 5, code=3).stderr
    assert "--payment-ref" in operator("topup", 5, "--account", "acme", code=2).stderr
    bought = ("topup", 5, "--account", "acme", "--payment-ref")
    assert "5 CT bought for 2.50 CNY" in operator(*bought, "INV-1").output
    assert "105 CT free now" in operator(*bought, "INV-1").output
    assert "booked before" in operator("topup", 6, *bought[2:], "INV-1", code=6).stderr
    assert "subscribed to monthly for 4.00 CNY" in operator(
        "subscribe", "monthly", "--account", "acme", "--payment-ref", "INV-2"
    ).output  # fmt: skip
    assert "held CT  CNY" in run("statement").output


def test_a_line_of_a_statement_shows_what_it_charges_or_takes_off():
    assert [money_of({"cny_microcny": each}) for each in (2_500_000, -10_000, 0)] == ["2.50", "-0.01", ""]


def test_what_is_unused_of_a_mistake_is_taken_back_and_why_is_kept(house, operator):
    reason = ("--reason", "typed 100 for 10")
    operator("topup", 100, "--account", "acme", "--payment-ref", "INV-3")
    lot = json.loads(operator("balance", "--account", "acme", "--json").output)["lots"][-1]["lot_id"]
    done = operator("ops", "void", "acme", lot, "--tokens", 90, *reason).output
    assert f"90 CT of {lot} voided, 45.00 CNY taken back" in done
    assert "10 tokens are unused" in operator("ops", "void", "acme", lot, "--tokens", 11, *reason, code=6).stderr
    assert "there is no lot" in operator("ops", "void", "globex", lot, *reason, code=5).stderr


def test_plans_say_what_is_given_how_often_for_how_long_and_what_becomes_of_the_rest(run):
    text = " ".join(run("plans").output.split())
    assert "edge 9.00 10 CT + 60 5g-min 30 d" in text
    assert "monthly 4.00 10 month its cycle nothing other tokens are used starter" in text


def test_a_code_is_said_once_and_a_count_of_nothing_never(run, house):
    plans = tuple(msgspec.structs.replace(plan, non_preemptible=True) for plan in CATALOGUE.plans)
    house.port.seed(
        Configure(
            tariffs=msgspec.structs.replace(
                TARIFFS, version=2, weights=(*TARIFFS.weights, Weight(accelerator="910B", ppm=1))
            ),
            catalogue=msgspec.structs.replace(CATALOGUE, version=2, plans=plans),
        ),
        NodeUp(node_id="lent", accelerator="910B", devices=8, pool=Pool.RESERVED),
    )
    told = run("submit", "--tokens", 1, "-x", "910B", "--no-preemptible", "--", "true", code=2).stderr
    assert told.count("no_pool_for") == 1
    assert "Choose another service" in told
    assert "no pool that has such devices" in told
    assert "for a model" in told, "a model has neither of these options"
    told = run("submit", "--tokens", 1, "-x", "H100:64", "--devices-per-node", 64, "--", "true", code=2).stderr
    assert "with 64 on each node" in told
    assert "0 ×" not in told


def test_prices_are_checked_line_by_line_and_a_wrong_weight_ends_with_2(house, operator, tmp_path):
    file = tmp_path / "tariffs.yaml"
    figure = "basis: {unit: fp16_dense_tflops, figure: nominal, value: %s, source: a sheet}"
    curve = 'curve: [{utilisation: 0, burn: "0.25"}, {utilisation: "0.80", burn: 1}, {utilisation: 1, burn: 1}]'
    lines = ["version: 1", "weights:", f"  - {{accelerator: H100, weight: 1, {figure % 989}}}", curve]
    lines[3:3] = [
        f'  - {{accelerator: A100, weight: "0.315", {figure % 312}}}',
        '  - {accelerator: 910B, weight: "0.3"}',
    ]
    file.write_text("\n".join(lines))
    shown = operator("ops", "prices", "check", file).output
    assert [line.split()[:2] for line in shown.splitlines()] == [["holds", "H100"], ["holds", "A100"], ["910B", "0.3"]]
    file.write_text("\n".join(lines).replace("312", "624"))
    wrong = operator("ops", "prices", "check", file, code=2)
    assert "WRONG  A100 0.315 is not 624 / 989" in wrong.output
    assert "correct A100" in wrong.stderr
    in_force = json.loads(operator("ops", "prices", "check", "--json").output)
    assert {each["holds"] for each in in_force} == {None}, "those of the test name no basis"


def test_prices_are_shown_with_their_dates_and_what_they_will_change(house, operator):
    shown = operator("ops", "prices").output
    assert [line.split() for line in shown.splitlines()[2:]] == [
        ["tariffs", "1", "in", "force"],
        ["catalogue", "1", "in", "force"],
    ]
    day_us = 86_400_000_000
    weights = (TARIFFS.weights[0], Weight(accelerator="A100", ppm=400_000))
    ends = Ends(at_us=START_US + 60 * day_us)
    (monthly,) = CATALOGUE.subscriptions
    house.port.seed(
        Configure(
            tariffs=msgspec.structs.replace(
                TARIFFS, version=2, weights=weights, effective_from_us=START_US + 40 * day_us
            ),
            catalogue=msgspec.structs.replace(
                CATALOGUE,
                version=7,
                effective_from_us=START_US + 50 * day_us,
                plans=(*CATALOGUE.plans, msgspec.structs.replace(POSTPAID, price_microcny_per_ct=600_000)),
                subscriptions=(msgspec.structs.replace(monthly, ends=ends),),
            ),
            payments="operator",
        )
    )
    text = " ".join(operator("ops", "prices").output.split())
    assert "A100 0.312 0.4" in text
    assert "plan on-account 0.40 CNY 0.60 CNY" in text
    assert "subscription monthly 10 for 4.00 CNY 10 for 4.00 CNY, ends 2024-01-" in text
    assert "plan starter" not in text, "it stays as it is"
    assert "A100 0.312 0.4" in " ".join(operator("plans").output.split()), "customers see it, too"
    found = json.loads(operator("ops", "prices", "--json").output)
    assert [each["since_us"] for each in found["announced"]] == [START_US + 40 * day_us, START_US + 50 * day_us]
    assert operator("ops", "prices", "check").output, "a word of its own"


def test_a_limit_that_resets_is_set_listed_and_taken_away(run):
    made = json.loads(run("keys", "create", "--limit", 5, "--per", "day", "--json").output)
    run("keys", "limit", made["key_id"], "--amount", 100, "--per", "month", "--unit", "llm", "--zone", "Asia/Shanghai")
    run("keys", "limit", "--amount", "9.90", "--unit", "cny", "--warn")
    listed = json.loads(run("keys", "limits", "--json").output)
    assert [(each["whose"], each["period"], each["unit"]) for each in listed] == [
        ("account", "month", "cny"), ("key", "day", "ct"), ("key", "month", "llm"),
    ]  # fmt: skip
    run("keys", "limit", made["key_id"], "--per", "day", "--remove")
    assert "Asia/Shanghai" in run("keys", "limits", made["key_id"]).output


def test_usage_is_summed_by_key_model_and_tag(run):
    run("submit", "--tokens", "0.1", "--tag", "team=red", "--", "true")
    for by in ("key", "model", "job", "tag:team"):
        assert isinstance(json.loads(run("usage", "--by", by, "--json").output), list)
    assert "invalid_by" in run("usage", "--by", "weather", code=2).stderr


class Jobs:
    """A door at which two jobs have tags."""

    def jobs(self, wanted, *, most):
        said = {"a": ["team=red", "exp7"], "b": ["team=blue"], "c": []}
        return [pb.Job(job_id=name, tags=tags, key_id=f"k-{name}") for name, tags in said.items()], ""


def test_what_jobs_cost_is_summed_by_the_value_of_a_tag(capsys):
    records = [pb.Cdr(job_id=name, charged_uhs=uhs) for name, uhs in (("a", 5), ("b", 7), ("a", 6), ("c", 1))]
    records.append(pb.Cdr(model="m", key_id="k-call", charged_uhs=2))
    print_by(Jobs(), records, "tag:team", as_json=True)
    assert json.loads(capsys.readouterr().out) == [
        {"tag:team": "red", "records": 2, "charged_uhs": "11"}, {"tag:team": "blue", "records": 1, "charged_uhs": "7"},
        {"tag:team": "–", "records": 2, "charged_uhs": "3"},
    ]  # fmt: skip
    print_by(Jobs(), records, "key", as_json=True)
    assert [each["key"] for each in json.loads(capsys.readouterr().out)] == ["k-a", "k-b", "k-call", "k-c"]
