"""Checks a file of FOCUS 1.4 as its specification asks for it: columns, types, nulls, allowed values, and what must add up.

Python's standard library is enough: `python -m fabric.focus.rules FILE` checks a CSV or JSON Lines file a row at a time. What it
can't see, because only the operator knows it, it doesn't judge. A cell that begins with an apostrophe is the text after it.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, NamedTuple

from fabric.focus.columns import (
    CONTRACT_COMMITMENT,
    COST_AND_USAGE,
    DATASETS,
    DECIMAL,
    JSON,
    MOMENT,
    SUBCATEGORIES,
    TEXT,
    Column,
)

NAME_MAX: Final = 60
FLAWS_MAX: Final = 1_000
"""So many are told; the file is wrong with one."""
TOLERANCE: Final = Decimal("1e-6")
"""Of a product, in the billing currency: unit prices are rounded to 10⁻¹²."""
_NUMBER: Final = re.compile(r"-?\d+(\.\d+)?([Ee]-?\d+)?", re.ASCII)
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_NAME: Final = re.compile(r"[A-Z][A-Za-z0-9]*|x_[A-Za-z0-9_]+", re.ASCII)
_DURATION: Final = re.compile(r"[1-9]\d* (Minute|Hour|Day|Week|Month|Quarter|Year)s?", re.ASCII)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_PRICED: Final = ("ListUnitPrice", "ContractedUnitPrice", "PricingQuantity", "PricingCategory", "SkuId", "SkuPriceId")

Cell = str | None
Cells = Mapping[str, Cell]


class Flaw(NamedTuple):
    """What is wrong, and where."""

    row: int
    """Counted from 1, without the header; 0 = the columns."""
    column: str
    what: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.column}: {self.what}" if self.row else f"{self.column}: {self.what}"


def check(rows: Iterable[Cells], *, columns: Iterable[str], dataset: str) -> Iterator[Flaw]:
    """All that is wrong with rows of a dataset, a row at a time."""
    names = list(columns)
    known = {column.name: column for column in DATASETS[dataset]}
    yield from _columns(names, known)
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        flaws = [flaw for name, column in known.items() if name in names for flaw in _cell(row.get(name), column)]
        if not flaws:  # sums of what isn't a number say nothing
            flaws += _charge(row) if dataset == COST_AND_USAGE else _contract(row, seen)
        for column, what in flaws:
            yield Flaw(number, column, what)


def _columns(names: list[str], known: Mapping[str, Column]) -> Iterator[Flaw]:
    for name in {each for each in names if names.count(each) > 1}:
        yield Flaw(0, name, "is there more than once")
    for column in known.values():
        if column.mandatory and column.name not in names:
            yield Flaw(0, column.name, "is mandatory, and isn't there")
    for name in names:
        if not _NAME.fullmatch(name) or len(name) > NAME_MAX:
            yield Flaw(0, name, "is no name of a column: Pascal case, or x_ before it")
        elif name not in known and not name.startswith("x_"):
            yield Flaw(0, name, "isn't of FOCUS here: columns of one's own begin with x_")


def _cell(cell: Cell, column: Column) -> Iterator[tuple[str, str]]:
    name = column.name
    if cell is None:
        if not column.nullable:
            yield name, "may not be null"
        return
    if not cell.strip() or cell.upper() in {"NULL", "N/A", "NONE", "NOT APPLICABLE"}:
        yield name, f"{cell!r} stands for null: leave it out"
    elif column.type == DECIMAL and not _NUMBER.fullmatch(cell):
        yield name, f"{cell[:40]!r} is no number"
    elif column.type == MOMENT and _at(cell) is None:
        yield name, f"{cell[:40]!r} is no date and time in UTC: YYYY-MM-DDTHH:mm:ssZ"
    elif column.type == JSON and not _is_object(cell):
        yield name, "is no JSON object, or has a key twice"
    elif column.allowed and cell not in column.allowed:
        yield name, f"{cell[:40]!r} is none of {', '.join(column.allowed)}"


def _charge(row: Cells) -> Iterator[tuple[str, str]]:
    category, correction = row.get("ChargeCategory"), row.get("ChargeClass") == "Correction"
    yield from _periods(row)
    yield from _pricing(row, category, correction=correction)
    yield from _products(row, correction=correction)
    yield from _commitments(row, category, correction=correction)
    yield from _pairs(row)
    if category == "Purchase" and row.get("ChargeFrequency") == "Usage-Based":
        yield "ChargeFrequency", "a purchase is not usage-based"
    parent = SUBCATEGORIES.get(row.get("ServiceSubcategory") or "")
    if parent is not None and parent != row.get("ServiceCategory"):
        yield "ServiceSubcategory", f"is of {parent}, not of {row.get('ServiceCategory')}"
    currency = row.get("BillingCurrency") or ""
    if not re.fullmatch(r"[A-Z]{3}", currency):
        yield "BillingCurrency", f"{currency[:20]!r} is no code of ISO 4217"
    covers = category == "Purchase" and row.get("ContractApplied") is not None
    if covers and _decimal(row, "EffectiveCost"):
        yield "EffectiveCost", "of a purchase that covers other charges it is 0"


def _periods(row: Cells) -> Iterator[tuple[str, str]]:
    begins, ends, since, until = (
        _at(row.get(name) or "")
        for name in ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd")
    )
    if begins is None or ends is None or since is None or until is None:
        return
    if not begins < ends:
        yield "BillingPeriodEnd", "isn't after its start"
    if not since < until:
        yield "ChargePeriodEnd", "isn't after its start"
    if not (begins <= since and until <= ends):
        yield "ChargePeriodStart", "the charge's period isn't within the billing period"


def _pricing(row: Cells, category: Cell, *, correction: bool) -> Iterator[tuple[str, str]]:
    for name in _PRICED:
        if category == "Tax" and row.get(name) is not None:
            yield name, "of a tax it is null"
        elif category in {"Usage", "Purchase"} and not correction and name in row and row.get(name) is None:
            yield name, f"of {category} it may not be null"
    if row.get("SkuPriceId") is None:
        for name in ("PricingQuantity", "PricingCategory", "ListUnitPrice", "ContractedUnitPrice", "SkuPriceDetails"):
            if row.get(name) is not None:
                yield name, "is null where there is no SkuPriceId"
    for name in ("ListUnitPrice", "ContractedUnitPrice"):
        if (price := _decimal(row, name)) is not None and price < 0:
            yield name, "is less than 0"
    if row.get("PricingCategory") == "Committed" and row.get("CommitmentDiscountId") is None:
        yield "PricingCategory", "is Committed without a commitment discount"


def _products(row: Cells, *, correction: bool) -> Iterator[tuple[str, str]]:
    quantity = _decimal(row, "PricingQuantity")
    for cost_name, price_name in (("ListCost", "ListUnitPrice"), ("ContractedCost", "ContractedUnitPrice")):
        cost, price = _decimal(row, cost_name), _decimal(row, price_name)
        if quantity is None or price is None or cost is None or correction:
            continue
        if abs(price * quantity - cost) > max(TOLERANCE, abs(cost) * TOLERANCE):
            yield cost_name, f"isn't {price_name} times PricingQuantity"
    unpriced = row.get("ContractedUnitPrice") is None and row.get("ChargeCategory") in {"Credit", "Adjustment"}
    if unpriced and _decimal(row, "ContractedCost") != _decimal(row, "BilledCost"):
        yield "ContractedCost", "without a unit price it is the billed cost"


def _commitments(row: Cells, category: Cell, *, correction: bool) -> Iterator[tuple[str, str]]:
    status, discount = row.get("CommitmentDiscountStatus"), row.get("CommitmentDiscountId")
    if discount is None:
        names = ("Category", "Name", "Quantity", "Status", "Type", "Unit")
        yield from (
            (f"CommitmentDiscount{name}", "is null where there is no commitment discount")
            for name in names
            if row.get(f"CommitmentDiscount{name}") is not None
        )
    elif category == "Usage" and status is None:
        yield "CommitmentDiscountStatus", "says of use whether it is Used or Unused"
    elif category in {"Usage", "Purchase"} and not correction and row.get("CommitmentDiscountQuantity") is None:
        yield "CommitmentDiscountQuantity", "may not be null"
    measured = row.get("ConsumedQuantity") is not None
    if category != "Usage" or status == "Unused":
        if measured:
            yield "ConsumedQuantity", "is null but for what was used"
    elif not measured and not correction and "ConsumedQuantity" in row:
        yield "ConsumedQuantity", "of what was used may not be null"
    yield from _applied(row, category, status)


def _applied(row: Cells, category: Cell, status: Cell) -> Iterator[tuple[str, str]]:
    text = row.get("ContractApplied")
    if text is None:
        return
    found = json.loads(text).get("Elements")
    if not isinstance(found, list) or not found or not all(isinstance(each, dict) for each in found):
        yield "ContractApplied", "has no Elements"
        return
    for each in found:
        cost, quantity = each.get("ContractCommitmentAppliedCost"), each.get("ContractCommitmentAppliedQuantity")
        if not all(isinstance(each.get(name), str) and each[name] for name in ("ContractId", "ContractCommitmentId")):
            yield "ContractApplied", "an element names no contract or commitment"
        elif cost is None and quantity is None:
            yield "ContractApplied", "an element has neither cost nor quantity"
        elif (quantity is None) != (each.get("ContractCommitmentAppliedUnit") is None):
            yield "ContractApplied", "an element's quantity and unit come together"
        elif (category == "Purchase" or status == "Unused") and row.get("ResourceId") != each["ContractCommitmentId"]:
            yield "ResourceId", "of a commitment's purchase, or what is unused of it, it is the commitment's id"


def _pairs(row: Cells) -> Iterator[tuple[str, str]]:
    """Of two columns one is null exactly where the other is."""
    for one, other in (
        ("ConsumedUnit", "ConsumedQuantity"),
        ("PricingUnit", "PricingQuantity"),
        ("CommitmentDiscountUnit", "CommitmentDiscountQuantity"),
        ("InvoiceDetailId", "InvoiceId"),
    ):
        if (row.get(one) is None) != (row.get(other) is None):
            yield one, f"and {other} are null together"
    if row.get("SkuMeter") is not None and row.get("SkuId") is None:
        yield "SkuMeter", "is null where there is no SkuId"


def _contract(row: Cells, seen: set[str]) -> Iterator[tuple[str, str]]:
    name = row.get("ContractCommitmentId") or ""
    if name in seen:
        yield "ContractCommitmentId", f"{name[:40]!r} is there twice"
    seen.add(name)
    if row.get("ContractCommitmentCost") is None and row.get("ContractCommitmentQuantity") is None:
        yield "ContractCommitmentCost", "and ContractCommitmentQuantity are not both null"
    if (row.get("ContractCommitmentQuantity") is None) != (row.get("ContractCommitmentUnit") is None):
        yield "ContractCommitmentUnit", "and ContractCommitmentQuantity are null together"
    for what in ("ContractCommitmentPeriod", "ContractPeriod"):
        if (row.get(f"{what}Start") or "") >= (row.get(f"{what}End") or ""):
            yield f"{what}End", "isn't after its start"
    if (
        row.get("ContractCommitmentModel") == "Continuous"
        and row.get("ContractCommitmentFulfillmentInterval") == "Full Commitment Period"
    ):
        yield "ContractCommitmentFulfillmentInterval", "of a continuous one it is shorter"
    if (
        row.get("ContractCommitmentPaymentModel") == "All Upfront"
        and row.get("ContractCommitmentPaymentInterval") != "One-Time"
    ):
        yield "ContractCommitmentPaymentInterval", "of what is paid upfront it is One-Time"
    yield from _benefit(row)
    yield from _scope(json.loads(row.get("ContractCommitmentApplicability") or "{}"))


def _benefit(row: Cells) -> Iterator[tuple[str, str]]:
    if not _DURATION.fullmatch(row.get("ContractCommitmentDurationType") or ""):
        yield "ContractCommitmentDurationType", "is a number and a unit of time"
    benefit, discount = (
        row.get("ContractCommitmentBenefitCategory"),
        _decimal(row, "ContractCommitmentDiscountPercentage"),
    )
    if (benefit == "Discount") and discount is None:
        yield "ContractCommitmentDiscountPercentage", "of a discount may not be null"
    if discount is not None and (benefit == "Availability" or not 0 <= discount <= 1):
        yield "ContractCommitmentDiscountPercentage", "is from 0 to 1, and null for availability"


def _scope(scope: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    every, complicated = scope.get("IsGlobalScope") is True, scope.get("IsComplexScope") is True
    listed = "Inclusions" in scope or "InclusionOperator" in scope
    if every and complicated:
        yield "ContractCommitmentApplicability", "is global and complex at once"
    elif (every or complicated) == listed:
        yield "ContractCommitmentApplicability", "has inclusions exactly where its scope is neither global nor complex"


def _decimal(row: Cells, name: str) -> Decimal | None:
    cell = row.get(name)
    try:
        return None if cell is None else Decimal(cell)
    except InvalidOperation:
        return None


def _at(cell: str) -> datetime | None:
    if not _MOMENT.fullmatch(cell):
        return None
    try:
        return datetime.strptime(cell, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        return None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _is_object(cell: str) -> bool:
    try:
        return isinstance(json.loads(cell, object_pairs_hook=_once), dict)
    except (ValueError, RecursionError):
        return False


# -- files -----------------------------------------------------------------------------------------------------------------


def dataset_of(columns: Iterable[str]) -> str:
    """Which dataset columns are of."""
    return CONTRACT_COMMITMENT if "ContractCommitmentId" in set(columns) else COST_AND_USAGE


def check_file(path: Path) -> Iterator[Flaw]:
    """All that is wrong with a file, CSV or JSON Lines.

    Raises:
        OSError, UnicodeDecodeError: it can't be read.
    """
    with path.open(encoding="utf-8", newline="") as file:
        begin = file.read(1)
        file.seek(0)
        if begin == "{":
            yield from _check_json(file)
            return
        reader = csv.reader(file, strict=True)
        columns = next(reader, [])
        try:
            yield from check(_csv_rows(reader, columns), columns=columns, dataset=dataset_of(columns))
        except (csv.Error, ValueError) as error:
            yield Flaw(0, "file", f"is no CSV: {error}")


def _csv_rows(lines: Iterable[list[str]], columns: list[str]) -> Iterator[Cells]:
    numbers = {column.name for each in DATASETS.values() for column in each if column.type != TEXT}
    for cells in lines:
        if len(cells) != len(columns):
            raise ValueError(f"a row has {len(cells)} cells, not {len(columns)}")
        for name, cell in zip(columns, cells, strict=True):
            if name not in numbers and cell.lstrip(" ").startswith(_FORMULA):
                raise ValueError(f"{name} is text that a spreadsheet takes for a formula: {cell[:40]!r}")
        yield {name: _text(cell) for name, cell in zip(columns, cells, strict=True)}


def _text(cell: str) -> Cell:
    return (cell.removeprefix("'")) or None


def _check_json(lines: Iterable[str]) -> Iterator[Flaw]:
    columns: list[str] = []

    def rows() -> Iterator[Cells]:
        for line in lines:
            yield _object(line, columns)

    found = rows()
    try:
        first = next(found, {})
        columns += list(first)
        yield from check(_chained(first, found), columns=columns, dataset=dataset_of(columns))
    except ValueError as error:
        yield Flaw(0, "file", f"is no JSON Lines: {error}")


def _chained(first: Cells, rest: Iterator[Cells]) -> Iterator[Cells]:
    if first:
        yield first
    yield from rest


def _object(line: str, columns: list[str]) -> Cells:
    found = json.loads(line, parse_float=str, parse_int=str, object_pairs_hook=_once)
    if not isinstance(found, dict) or (columns and list(found) != columns):
        raise ValueError("a line isn't an object with the columns of the first one")
    return {
        name: value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in found.items()
    }


def main(arguments: list[str] | None = None) -> int:
    """Check files; 0 = nothing is wrong, 2 = something is, or there is nothing to check."""
    files = sys.argv[1:] if arguments is None else arguments
    wrong = 0
    for name in files:
        for number, flaw in enumerate(check_file(Path(name))):
            wrong += 1
            if number < FLAWS_MAX:
                sys.stdout.write(f"{name}: {flaw}\n")
    return 2 if wrong or not files else 0


if __name__ == "__main__":
    sys.exit(main())
