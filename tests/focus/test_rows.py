"""Rows of FOCUS: they pass the rules, tell each charge's exact cost, and no cell is a formula."""

import csv
import io
from decimal import Decimal

import pytest

from fabric.audit.records import Booked
from fabric.focus.columns import CONTRACT_COMMITMENT, COST_AND_USAGE, DATASETS, OWN_COLUMNS
from fabric.focus.lots import PICO
from fabric.focus.rows import Account, LotTerms, charge_row, lot_row
from fabric.focus.rules import check, check_file, main
from fabric.focus.text import csv_lines, json_line, plain_cell, safe_cell
from fabric.ledger.transfers import Posting, Transfer
from tests.audit.histories import DAY, T0, history
from tests.focus.test_charges import charges_of

ACME = Account("ada", '=HYPERLINK("http://x","y")', "fabric.example/test")
COLUMNS = (*(column.name for column in DATASETS[COST_AND_USAGE]), *OWN_COLUMNS)
LOT_COLUMNS = tuple(column.name for column in DATASETS[CONTRACT_COMMITMENT])


def rows_of(seed, account="ada"):
    charges, reckoned = charges_of(history(seed).of(account))
    return [charge_row(ACME, charge) for charge in charges], reckoned


def read_back(text):
    found = csv.DictReader(io.StringIO(text.decode(), newline=""))
    return [{name: plain_cell(cell) or None for name, cell in row.items()} for row in found]


@pytest.mark.parametrize("account", ["ada", "cyd"])
def test_rows_of_random_histories_pass_the_rules_in_both_forms(tmp_path, account):
    for seed in range(25):
        rows, reckoned = rows_of(seed, account)
        path = tmp_path / f"{seed}.csv"
        path.write_bytes(b"".join(csv_lines(rows, COLUMNS)))
        assert list(check_file(path)) == []
        path.write_bytes(b"".join(json_line(row, COLUMNS) for row in rows))
        assert list(check_file(path)) == []
        terms = LotTerms(
            effective_at_us=T0, expires_at_us=T0 + DAY if seed % 2 else None, scope="llama" if seed % 3 else ""
        )
        lots = [lot_row(ACME, lot, terms, now_us=T0 + 2 * DAY) for lot in reckoned.lots.values()]
        path.write_bytes(b"".join(csv_lines(lots, LOT_COLUMNS)))
        assert list(check_file(path)) == []


def test_a_lots_effective_costs_in_the_file_are_its_price_to_a_millionth():
    spent = 0
    for seed in range(40):
        rows, reckoned = rows_of(seed)
        read = read_back(b"".join(csv_lines(rows, COLUMNS)))
        for lot in reckoned.lots.values():
            mine = [row for row in read if row["x_LotId"] == lot.lot_id]
            effective = sum(Decimal(row["EffectiveCost"]) for row in mine)
            billed = sum(Decimal(row["BilledCost"]) for row in mine)
            assert abs(effective + Decimal(lot.left_pico).scaleb(-12) - billed) <= Decimal("1e-6")
            spent += bool(effective and not lot.left)
    assert spent > 5


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1", "'=1", "'", "ok", "a=1"]
)
def test_no_cell_is_a_formula_and_each_reads_back(text):
    cell = safe_cell(text)
    assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))
    assert plain_cell(cell) == text
    (row,) = read_back(b"".join(csv_lines([{"BillingAccountName": text}], ("BillingAccountName",))))
    assert row["BillingAccountName"] == text


def test_numbers_are_written_in_full():
    row = {"BilledCost": Decimal("-1E-12"), "EffectiveCost": Decimal("1E+3")}
    assert list(csv_lines([row], tuple(row)))[1] == b"-0.000000000001,1000\r\n"
    assert json_line(row, tuple(row)) == b'{"BilledCost":-0.000000000001,"EffectiveCost":1000}\n'


def a_row():
    rows, _ = rows_of(3)
    row = next(
        row for row in rows if row["ChargeCategory"] == "Usage" and row.get("CommitmentDiscountStatus") == "Used"
    )
    return read_back(b"".join(csv_lines([row], COLUMNS)))[0]


@pytest.mark.parametrize(
    ("changed", "column"),
    [
        ({"BilledCost": None}, "BilledCost"),
        ({"BilledCost": "1,5"}, "BilledCost"),
        ({"BilledCost": "+1"}, "BilledCost"),
        ({"BilledCost": "1e+3"}, "BilledCost"),
        ({"BillingAccountId": " "}, "BillingAccountId"),
        ({"BillingAccountName": "N/A"}, "BillingAccountName"),
        ({"BillingCurrency": "Yuan"}, "BillingCurrency"),
        ({"BillingPeriodStart": "2026-11-01"}, "BillingPeriodStart"),
        ({"BillingPeriodStart": "2026-02-30T00:00:00Z"}, "BillingPeriodStart"),
        ({"BillingPeriodEnd": "1970-01-01T00:00:00Z"}, "BillingPeriodEnd"),
        ({"ChargePeriodStart": "1970-01-01T00:00:00Z"}, "ChargePeriodStart"),
        ({"ChargePeriodEnd": "1970-01-01T00:00:00Z"}, "ChargePeriodEnd"),
        ({"ChargeCategory": "Use"}, "ChargeCategory"),
        ({"ChargeClass": "Refund"}, "ChargeClass"),
        ({"ChargeCategory": "Tax"}, "SkuId"),
        ({"ChargeCategory": "Purchase"}, "ChargeFrequency"),
        ({"CommitmentDiscountStatus": None}, "CommitmentDiscountStatus"),
        ({"CommitmentDiscountQuantity": None}, "CommitmentDiscountQuantity"),
        ({"CommitmentDiscountId": None}, "CommitmentDiscountName"),
        ({"CommitmentDiscountStatus": "Unused"}, "ConsumedQuantity"),
        ({"ConsumedQuantity": None, "ConsumedUnit": None}, "ConsumedQuantity"),
        ({"ConsumedUnit": None}, "ConsumedUnit"),
        ({"ContractApplied": "[]"}, "ContractApplied"),
        ({"ContractApplied": '{"Elements":[]}'}, "ContractApplied"),
        ({"ContractApplied": '{"Elements":[{"ContractId":"a"}]}'}, "ContractApplied"),
        ({"ContractApplied": '{"a":1,"a":2}'}, "ContractApplied"),
        ({"ContractedCost": "7"}, "ContractedCost"),
        ({"ListUnitPrice": "-1"}, "ListUnitPrice"),
        ({"ListUnitPrice": None}, "ListUnitPrice"),
        ({"PricingQuantity": None}, "PricingQuantity"),
        ({"PricingCategory": "Free"}, "PricingCategory"),
        ({"InvoiceId": "i"}, "InvoiceDetailId"),
        ({"ServiceCategory": "Ray"}, "ServiceCategory"),
        ({"ServiceCategory": "Storage"}, "ServiceSubcategory"),
        ({"SkuPriceId": None}, "SkuPriceId"),
        ({"Tags": "team=red"}, "Tags"),
        ({"HostProviderName": None}, "HostProviderName"),
    ],
)
def test_each_rule_finds_what_breaks_it(changed, column):
    row = a_row()
    assert list(check([row], columns=COLUMNS, dataset=COST_AND_USAGE)) == []
    assert column in {flaw.column for flaw in check([row | changed], columns=COLUMNS, dataset=COST_AND_USAGE)}


@pytest.mark.parametrize(
    ("changed", "column"),
    [
        ({"ContractCommitmentModel": "Continuous"}, "ContractCommitmentFulfillmentInterval"),
        ({"ContractCommitmentPaymentInterval": "Monthly"}, "ContractCommitmentPaymentInterval"),
        ({"ContractCommitmentDurationType": "30"}, "ContractCommitmentDurationType"),
        ({"ContractCommitmentBenefitCategory": "Discount"}, "ContractCommitmentDiscountPercentage"),
        ({"ContractCommitmentDiscountPercentage": "30"}, "ContractCommitmentDiscountPercentage"),
        ({"ContractCommitmentApplicability": "{}"}, "ContractCommitmentApplicability"),
        ({"ContractCommitmentUnit": None}, "ContractCommitmentUnit"),
        ({"ContractCommitmentLifecycleStatus": "Alive"}, "ContractCommitmentLifecycleStatus"),
        ({"ContractPeriodEnd": "1970-01-01T00:00:00Z"}, "ContractPeriodEnd"),
    ],
)
def test_each_rule_of_commitments_finds_what_breaks_it(changed, column):
    _, reckoned = rows_of(3)
    lot = next(iter(reckoned.lots.values()))
    bare = lot_row(ACME, lot, LotTerms(T0, T0 + 30 * DAY), now_us=T0)
    (row,) = read_back(b"".join(csv_lines([bare], LOT_COLUMNS)))
    assert list(check([row], columns=LOT_COLUMNS, dataset=CONTRACT_COMMITMENT)) == []
    found = {flaw.column for flaw in check([row | changed], columns=LOT_COLUMNS, dataset=CONTRACT_COMMITMENT)}
    assert column in found
    twice = check([row, row], columns=LOT_COLUMNS, dataset=CONTRACT_COMMITMENT)
    assert {flaw.column for flaw in twice} == {"ContractCommitmentId"}


def test_a_column_that_is_missing_doubled_or_unknown_is_found(tmp_path, capsys):
    for columns in (COLUMNS[1:], (*COLUMNS, "BilledCost"), (*COLUMNS, "Colour"), (*COLUMNS, "x y")):
        assert list(check([], columns=columns, dataset=COST_AND_USAGE)), columns
    path = tmp_path / "f.csv"
    path.write_bytes(b"".join(csv_lines(rows_of(3)[0], COLUMNS)))
    assert main([str(path)]) == 0
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"'=HYPERLINK", b"=HYPERLINK"))
    assert main([str(path)]) == 2
    assert "takes for a formula" in capsys.readouterr().out
    path.write_bytes(whole + b"1,2\r\n")
    assert main([str(path)]) == 2


def test_money_that_is_for_nothing_in_particular_is_an_adjustment():
    money = (Posting("cash/bank", "CNY", -7), Posting("op/op/revenue", "CNY", 7))
    back = Transfer(transfer_id=1, kind="charge_back", account_id="ada", ref="pay", at_us=T0, postings=money)
    (charge,), _ = charges_of([Booked(seq=0, at_us=T0, transfers=(back,))])
    assert charge.billed_pico == charge.effective_pico == -7 * PICO
    row = charge_row(ACME, charge)
    (read,) = read_back(b"".join(csv_lines([row], COLUMNS)))
    assert list(check([read], columns=COLUMNS, dataset=COST_AND_USAGE)) == []
