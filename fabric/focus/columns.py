"""The columns of FOCUS 1.4's datasets that are written here, and those that every such dataset must have.

FinOps Open Cost and Usage Specification, version 1.4, datasets Cost and Usage and Contract Commitment: types, nullability and
allowed values as it says them. Conditional columns are those whose conditions hold here: unit prices, list prices, several
pricing categories, usage measurement, commitments, invoices, resources, tags. There are no regions, no capacity reservations,
no split allocation, and one currency.
"""

from typing import Final, NamedTuple

VERSION: Final = "1.4"
COST_AND_USAGE: Final = "CostAndUsage"
CONTRACT_COMMITMENT: Final = "ContractCommitment"

TEXT: Final = "String"
DECIMAL: Final = "Decimal"
MOMENT: Final = "Date/Time"
JSON: Final = "JSON"


class Column(NamedTuple):
    """One column."""

    name: str
    type: str = TEXT
    nullable: bool = False
    mandatory: bool = True
    allowed: tuple[str, ...] = ()


def _conditional(name: str, type: str = TEXT, *, nullable: bool = True, allowed: tuple[str, ...] = ()) -> Column:  # noqa: A002
    return Column(name, type, nullable, mandatory=False, allowed=allowed)


INTERVALS: Final = (
    "Hourly",
    "Daily",
    "Weekly",
    "Monthly",
    "Quarterly",
    "Semi-Annual",
    "Annual",
    "Full Commitment Period",
    "Transactional",
    "Custom",
)
CATEGORIES: Final = ("Usage", "Purchase", "Tax", "Credit", "Adjustment")
SUBCATEGORIES: Final = {
    "Containers": "Compute",
    "Other (Compute)": "Compute",
    "Generative AI": "AI and Machine Learning",
    "Machine Learning": "AI and Machine Learning",
    "Other (Other)": "Other",
}
"""Those that are written here, each with its one service category."""
SERVICE_CATEGORIES: Final = (
    "AI and Machine Learning",
    "Analytics",
    "Business Applications",
    "Compute",
    "Databases",
    "Developer Tools",
    "Identity",
    "Integration",
    "Internet of Things",
    "Management and Governance",
    "Media",
    "Migration",
    "Mobile",
    "Multicloud",
    "Networking",
    "Security",
    "Storage",
    "Web",
    "Other",
)

COST_AND_USAGE_COLUMNS: Final = (
    Column("BilledCost", DECIMAL),
    Column("BillingAccountId"),
    Column("BillingAccountName", nullable=True),
    Column("BillingCurrency"),
    Column("BillingPeriodEnd", MOMENT),
    Column("BillingPeriodStart", MOMENT),
    Column("ChargeCategory", allowed=CATEGORIES),
    Column("ChargeClass", nullable=True, allowed=("Correction",)),
    Column("ChargeDescription", nullable=True),
    _conditional("ChargeFrequency", nullable=False, allowed=("One-Time", "Recurring", "Usage-Based")),
    Column("ChargePeriodEnd", MOMENT),
    Column("ChargePeriodStart", MOMENT),
    _conditional("CommitmentDiscountCategory", allowed=("Spend", "Usage")),
    _conditional("CommitmentDiscountId"),
    _conditional("CommitmentDiscountName"),
    _conditional("CommitmentDiscountQuantity", DECIMAL),
    _conditional("CommitmentDiscountStatus", allowed=("Used", "Unused")),
    _conditional("CommitmentDiscountType"),
    _conditional("CommitmentDiscountUnit"),
    _conditional("ConsumedQuantity", DECIMAL),
    _conditional("ConsumedUnit"),
    _conditional("ContractApplied", JSON),
    Column("ContractedCost", DECIMAL),
    _conditional("ContractedUnitPrice", DECIMAL),
    Column("EffectiveCost", DECIMAL),
    Column("HostProviderName"),
    _conditional("InvoiceDetailId"),
    _conditional("InvoiceId"),
    Column("InvoiceIssuerName"),
    Column("ListCost", DECIMAL),
    _conditional("ListUnitPrice", DECIMAL),
    _conditional("PricingCategory", allowed=("Standard", "Dynamic", "Committed", "Other")),
    Column("PricingQuantity", DECIMAL, nullable=True),
    Column("PricingUnit", nullable=True),
    _conditional("ResourceId"),
    _conditional("ResourceName"),
    _conditional("ResourceType"),
    Column("ServiceCategory", allowed=SERVICE_CATEGORIES),
    Column("ServiceName"),
    Column("ServiceProviderName"),
    _conditional("ServiceSubcategory", nullable=False),
    _conditional("SkuId"),
    _conditional("SkuMeter"),
    _conditional("SkuPriceDetails", JSON),
    _conditional("SkuPriceId"),
    _conditional("Tags", JSON),
)
OWN_COLUMNS: Final = (
    "x_LotId",
    "x_JobId",
    "x_Model",
    "x_Accelerator",
    "x_KeyId",
    "x_Project",
    "x_Member",
    "x_Calls",
    "x_PromptTokens",
    "x_CachedTokens",
    "x_CompletionTokens",
    "x_ReasoningTokens",
)
"""Ours, after those of FOCUS: all may be null."""
CONTRACT_COMMITMENT_COLUMNS: Final = (
    Column("BillingCurrency", nullable=True),
    Column("ContractCommitmentApplicability", JSON),
    Column("ContractCommitmentBenefitCategory", allowed=("Discount", "Monetary Pool", "Availability", "Other")),
    Column("ContractCommitmentCategory", allowed=("Spend", "Usage")),
    Column("ContractCommitmentCost", DECIMAL, nullable=True),
    Column("ContractCommitmentCreated", MOMENT),
    Column("ContractCommitmentDescription", nullable=True),
    Column("ContractCommitmentDiscountPercentage", DECIMAL, nullable=True),
    Column("ContractCommitmentDurationType"),
    Column("ContractCommitmentFulfillmentInterval", allowed=INTERVALS),
    Column("ContractCommitmentId"),
    Column("ContractCommitmentLastUpdated", MOMENT),
    Column(
        "ContractCommitmentLifecycleStatus",
        allowed=("Proposed", "Pending", "Active", "Exhausted", "Expired", "Canceled", "Superseded"),
    ),
    Column("ContractCommitmentModel", allowed=("Continuous", "Discontinuous")),
    Column("ContractCommitmentOfferCategory", allowed=("Public", "Negotiated")),
    Column(
        "ContractCommitmentPaymentInterval",
        allowed=("One-Time", "Monthly", "Quarterly", "Semi-Annual", "Annual", "Custom"),
    ),
    Column("ContractCommitmentPaymentModel", allowed=("No Upfront", "Partial Upfront", "All Upfront")),
    Column("ContractCommitmentPeriodEnd", MOMENT),
    Column("ContractCommitmentPeriodStart", MOMENT),
    Column("ContractCommitmentQuantity", DECIMAL, nullable=True),
    Column("ContractCommitmentType"),
    Column("ContractCommitmentUnit", nullable=True),
    Column("ContractId"),
    Column("ContractPeriodEnd", MOMENT),
    Column("ContractPeriodStart", MOMENT),
    Column("InvoiceIssuerName"),
    Column("ServiceProviderName"),
)
DATASETS: Final = {COST_AND_USAGE: COST_AND_USAGE_COLUMNS, CONTRACT_COMMITMENT: CONTRACT_COMMITMENT_COLUMNS}
