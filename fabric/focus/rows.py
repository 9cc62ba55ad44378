"""A charge, or a lot, as a row of FOCUS: what its columns say, in exact decimals. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from typing import Final, NamedTuple

from fabric.focus.charges import ADJUSTMENT, DAY_US, PURCHASE, UNUSED, USE, Charge
from fabric.focus.lots import Lot
from fabric.focus.text import Row, Value
from fabric.ledger.transfers import CT
from fabric.units import THOUSANDTHS, UHS_PER_CT

_EXACT: Final = Context(prec=60)
_FINEST: Final = Decimal("1e-12")
_NEVER: Final = "9999-12-31T00:00:00Z"
"""The end of what doesn't end: the column may not be null."""
_SERVICES: Final = {
    "Job": ("Accelerator jobs", "Compute", "Containers"),
    "Model": ("Language models", "AI and Machine Learning", "Generative AI"),
    "Hold": ("Compute tokens", "Compute", "Other (Compute)"),
}
_FREQUENCIES: Final = {USE: "Usage-Based", UNUSED: "Usage-Based"}


class Account(NamedTuple):
    """Whose rows they are."""

    account_id: str
    name: str
    operator: str
    """Who serves, hosts and invoices: the name of its log."""


class LotTerms(NamedTuple):
    """What the fabric knows of a lot beside its entries."""

    effective_at_us: int
    expires_at_us: int | None
    scope: str = ""
    """"" = good for anything."""


def charge_row(account: Account, charge: Charge) -> Row:
    """A row of Cost and Usage."""
    of, lot, day = charge.of, charge.lot, charge.at_us // DAY_US
    service, category, subcategory = _SERVICES[of.kind if of is not None else "Hold"]
    if charge.asset not in {CT, ""}:
        service, category, subcategory = _SERVICES["Model"]
    row: dict[str, Value] = {
        "BilledCost": _money(charge.billed_pico),
        "EffectiveCost": _money(charge.effective_pico),
        "BillingAccountId": account.account_id,
        "BillingAccountName": account.name or None,
        "BillingCurrency": "CNY",
        "BillingPeriodStart": _moment(_month(charge.at_us, 0)),
        "BillingPeriodEnd": _moment(_month(charge.at_us, 1)),
        "ChargeCategory": {USE: "Usage", UNUSED: "Usage", PURCHASE: "Purchase", ADJUSTMENT: "Adjustment"}[charge.kind],
        "ChargeClass": "Correction" if _corrects(charge) else None,
        "ChargeDescription": _description(charge),
        "ChargeFrequency": _frequency(charge),
        "ChargePeriodStart": _moment(_at(day * DAY_US)),
        "ChargePeriodEnd": _moment(_at((day + 1) * DAY_US)),
        "HostProviderName": account.operator,
        "InvoiceIssuerName": account.operator,
        "ServiceProviderName": account.operator,
        "InvoiceId": charge.invoice_id or None,
        "InvoiceDetailId": f"{charge.invoice_id}/1" if charge.invoice_id else None,
        "ServiceCategory": category,
        "ServiceName": service,
        "ServiceSubcategory": subcategory,
        "x_LotId": lot.lot_id if lot else None,
    }
    row |= _costs(charge) | _resource(charge)
    if lot is not None:
        row |= _commitment(charge, lot)
    return row | _ours(charge)


def lot_row(account: Account, lot: Lot, terms: LotTerms, *, now_us: int) -> Row:
    """A row of Contract Commitment: what was bought, at which price, until when."""
    start, end = _moment(_at(terms.effective_at_us)), _NEVER
    if terms.expires_at_us is not None:
        end = _moment(_at(terms.expires_at_us))
    scope: dict[str, object] = {"IsGlobalScope": True}
    if terms.scope:
        scope = {"IsComplexScope": True, "x_Scope": terms.scope}
    return {
        "BillingCurrency": "CNY",
        "ContractCommitmentApplicability": scope,
        "ContractCommitmentBenefitCategory": "Monetary Pool",
        "ContractCommitmentCategory": "Usage",
        "ContractCommitmentCost": _money(lot.price_microcny * 10**6),
        "ContractCommitmentCreated": _moment(_at(lot.granted_at_us)),
        "ContractCommitmentDescription": f"{_plain(_quantity(lot.granted, lot.asset))} {_unit(lot.asset)} by {lot.origin}",
        "ContractCommitmentDiscountPercentage": None,
        "ContractCommitmentDurationType": _duration(terms),
        "ContractCommitmentFulfillmentInterval": "Full Commitment Period",
        "ContractCommitmentId": lot.lot_id,
        "ContractCommitmentLastUpdated": _moment(_at(now_us)),
        "ContractCommitmentLifecycleStatus": _status(lot, terms, now_us),
        "ContractCommitmentModel": "Discontinuous",
        "ContractCommitmentOfferCategory": "Public" if lot.price_microcny else "Negotiated",
        "ContractCommitmentPaymentInterval": "One-Time",
        "ContractCommitmentPaymentModel": "All Upfront",
        "ContractCommitmentPeriodEnd": end,
        "ContractCommitmentPeriodStart": start,
        "ContractCommitmentQuantity": _quantity(lot.granted, lot.asset),
        "ContractCommitmentType": f"Prepaid tokens ({lot.origin})",
        "ContractCommitmentUnit": _unit(lot.asset),
        "ContractId": lot.lot_id,
        "ContractPeriodEnd": end,
        "ContractPeriodStart": start,
        "InvoiceIssuerName": account.operator,
        "ServiceProviderName": account.operator,
    }


def _costs(charge: Charge) -> dict[str, Value]:
    """Quantities and prices: the list and the contracted cost are what the quantity costs at the price it was sold at."""
    if charge.kind == ADJUSTMENT:
        cost = _money(charge.billed_pico)
        return {"ListCost": cost, "ContractedCost": cost, "PricingQuantity": None, "PricingUnit": None}
    quantity = _quantity(charge.amount, charge.asset)
    if charge.asset:
        pico, parts = charge.unit
        price = _EXACT.divide(Decimal(pico).scaleb(-12) * _parts(charge.asset), Decimal(parts)).quantize(
            _FINEST, context=_EXACT
        )
    else:
        price = _money(abs(charge.billed_pico))
    sku = charge.asset if charge.asset not in {CT, ""} else "compute-token" if charge.asset else charge.about
    cost = _EXACT.multiply(price, quantity).quantize(_FINEST, context=_EXACT)
    used = charge.kind == USE
    of = charge.of
    details: dict[str, object] | None = {"x_Accelerator": of.accelerator} if of is not None and of.accelerator else None
    return {
        "ConsumedQuantity": _consumed(charge) if used else None,
        "ConsumedUnit": ("H100-Seconds" if charge.asset == CT else "Tokens") if used else None,
        "ContractedCost": cost,
        "ContractedUnitPrice": price,
        "ListCost": cost,
        "ListUnitPrice": price,
        "PricingCategory": "Committed" if charge.lot is not None and charge.kind != PURCHASE else "Standard",
        "PricingQuantity": quantity,
        "PricingUnit": _unit(charge.asset),
        "SkuId": sku,
        "SkuMeter": _unit(charge.asset),
        "SkuPriceId": f"{sku}/{of.accelerator}" if of is not None and of.accelerator else sku,
        "SkuPriceDetails": details,
    }


def _resource(charge: Charge) -> dict[str, Value]:
    of, record, lot = charge.of, charge.record, charge.lot
    if of is not None:
        name = record.name if record is not None and record.name else of.name
        return {"ResourceId": of.name, "ResourceName": name, "ResourceType": of.kind, "Tags": _tags(charge)}
    if lot is not None:
        return {"ResourceId": lot.lot_id, "ResourceName": lot.lot_id, "ResourceType": "Token lot"}
    return {}


def _commitment(charge: Charge, lot: Lot) -> dict[str, Value]:
    if charge.kind == ADJUSTMENT:
        applied: dict[str, object] = {"ContractCommitmentAppliedCost": _money(charge.effective_pico)}
        return {"ContractApplied": _applied(lot, applied)}
    quantity = _quantity(charge.amount, charge.asset)
    cost = charge.billed_pico if charge.kind == PURCHASE else charge.effective_pico
    applied = {
        "ContractCommitmentAppliedCost": _money(cost),
        "ContractCommitmentAppliedQuantity": quantity,
        "ContractCommitmentAppliedUnit": _unit(charge.asset),
    }
    return {
        "CommitmentDiscountCategory": "Usage",
        "CommitmentDiscountId": lot.lot_id,
        "CommitmentDiscountName": lot.lot_id,
        "CommitmentDiscountQuantity": quantity,
        "CommitmentDiscountStatus": {USE: "Used", UNUSED: "Unused"}.get(charge.kind),
        "CommitmentDiscountType": "Prepaid tokens",
        "CommitmentDiscountUnit": _unit(charge.asset),
        "ContractApplied": _applied(lot, applied),
    }


def _applied(lot: Lot, applied: Mapping[str, object]) -> dict[str, object]:
    return {"Elements": [{"ContractId": lot.lot_id, "ContractCommitmentId": lot.lot_id, **applied}]}


def _ours(charge: Charge) -> dict[str, Value]:
    of, record = charge.of, charge.record
    if of is None:
        return {}
    found: dict[str, Value] = {
        "x_JobId": of.name if of.kind == "Job" else None,
        "x_Model": of.name if of.kind == "Model" else None,
        "x_Accelerator": of.accelerator or (record.accelerator if record is not None else "") or None,
        "x_KeyId": of.key_id or (record.key_id if record is not None else "") or None,
        "x_Project": (record.project if record is not None else "") or None,
        "x_Member": (record.member if record is not None else "") or None,
    }
    if charge.calls:
        counts = (charge.calls, *charge.tokens)
        names = ("x_Calls", "x_PromptTokens", "x_CachedTokens", "x_CompletionTokens", "x_ReasoningTokens")
        found |= {name: Decimal(count) for name, count in zip(names, counts, strict=True)}
    return found


def _tags(charge: Charge) -> Value:
    tags = charge.record.tags if charge.record is not None else ()
    pairs = (tag.partition("=") for tag in tags)
    found: dict[str, object] = {name: value if equals else True for name, equals, value in pairs}
    return found or None


def _corrects(charge: Charge) -> bool:
    """Whether it takes back what an earlier month has charged."""
    lot = charge.lot
    if charge.kind == PURCHASE and charge.amount < 0 and lot is not None:
        return _month(lot.granted_at_us, 0) < _month(charge.at_us, 0)
    return charge.kind == ADJUSTMENT and bool(charge.invoice_id)


def _frequency(charge: Charge) -> str:
    recurs = charge.lot is not None and charge.lot.origin == "subscription" and charge.kind == PURCHASE
    return "Recurring" if recurs else _FREQUENCIES.get(charge.kind, "One-Time")


def _description(charge: Charge) -> str:
    much = f"{_plain(_quantity(charge.amount, charge.asset))} {_unit(charge.asset)}"
    if charge.of is not None:
        where = f" on {charge.of.accelerator}" if charge.of.accelerator else ""
        return f"{much} used by {charge.of.kind.lower()} {charge.of.name}{where}"
    if charge.kind == UNUSED:
        return f"{much} gone unused"
    if charge.kind == PURCHASE:
        return (
            f"{much} {'taken back' if charge.amount < 0 else 'bought'}" if charge.asset else f"bought: {charge.about}"
        )
    return charge.about


def _duration(terms: LotTerms) -> str:
    if terms.expires_at_us is None:
        return "100 Years"
    days = max(1, round((terms.expires_at_us - terms.effective_at_us) / DAY_US))
    return "1 Day" if days == 1 else f"{days} Days"


def _status(lot: Lot, terms: LotTerms, now_us: int) -> str:
    if not lot.granted:
        return "Canceled"
    if terms.effective_at_us > now_us:
        return "Pending"
    if terms.expires_at_us is not None and terms.expires_at_us <= now_us:
        return "Expired"
    return "Active" if lot.left else "Exhausted"


def _consumed(charge: Charge) -> Decimal:
    return Decimal(charge.amount).scaleb(-6) if charge.asset == CT else _quantity(charge.amount, charge.asset)


def _parts(asset: str) -> int:
    """How many of the smallest parts are one of what is priced."""
    return UHS_PER_CT if asset == CT else THOUSANDTHS if asset else 1


def _unit(asset: str) -> str:
    return "Compute Tokens" if asset == CT else "Tokens" if asset else "Units"


def _quantity(amount: int, asset: str) -> Decimal:
    return _EXACT.divide(Decimal(amount), Decimal(_parts(asset))).quantize(_FINEST, context=_EXACT)


def _money(pico: int) -> Decimal:
    return Decimal(pico).scaleb(-12, context=_EXACT)


def _plain(value: Decimal) -> str:
    text = format(value, "f").rstrip("0").rstrip(".")
    return text or "0"


def _at(at_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)


def _month(at_us: int, later: int) -> datetime:
    at = _at(at_us)
    months = at.year * 12 + at.month - 1 + later
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


def _moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
