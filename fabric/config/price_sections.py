"""The shape of the price files: which keys there are, and what may stand behind each.

A decimal is written as text ("0.315") or as a whole number; YAML's floats are refused, because 0.1 is not a tenth in them.
"""

import re
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, PlainValidator, Tag
from pydantic_core import PydanticCustomError

from fabric.accelerators import canonical_accelerator
from fabric.charging.basis import Basis, Figure
from fabric.charging.catalogue import (
    COMPUTE,
    Bundle,
    Component,
    Cycle,
    Mode,
    Overflow,
    Plan,
    Restriction,
    Subscription,
)
from fabric.charging.tariffs import HOURS_A_DAY, Weight
from fabric.config.dated_sections import EndsSection, Moment
from fabric.config.dunning_section import DunningSection
from fabric.config.package_sections import LlmAsset, SomeLlmTokens
from fabric.config.sections import Name, Section
from fabric.config.serving import MODEL_PATTERN, RateSection
from fabric.errors import InvalidAmount
from fabric.ledger.scopes import Service
from fabric.units import AMOUNT_UHS_MAX, INT64_MAX, LLM, PPM, parse_ct

WEIGHT_MAX_PPM: Final = 100 * PPM
PRICE_MAX_CNY: Final = 1_000_000_000
LIFETIME_MAX_DAYS: Final = 3650
CYCLE_MAX_DAYS: Final = 366
_DECIMAL: Final = re.compile(r"\d{1,10}(\.\d{1,6})?", re.ASCII)
_OFFSET: Final = re.compile(r"([+-])(\d\d):([0-5]\d)", re.ASCII)
_OFFSET_MAX_MINUTES: Final = 14 * 60


def _millionths(given: Any) -> int | None:
    """A decimal in 10⁻⁶, None for anything that isn't one exactly."""
    if isinstance(given, bool) or not isinstance(given, int | str) or not _DECIMAL.fullmatch(str(given)):
        return None
    return int(Decimal(str(given)) * PPM)


def _ratio(given: Any) -> int:
    ppm = _millionths(given)
    if ppm is None:
        raise PydanticCustomError("ratio", 'a ratio in quotes, such as "0.315", with at most 6 decimals')
    return ppm


def _weight(given: Any) -> int:
    ppm = _ratio(given)
    if not 0 < ppm <= WEIGHT_MAX_PPM:
        raise PydanticCustomError("weight", 'more than "0" and at most "100"')
    return ppm


def _price(given: Any) -> int:
    amount = _millionths(given)
    if amount is None or amount > PRICE_MAX_CNY * PPM:
        raise PydanticCustomError("price", 'CNY in quotes, such as "0.50", with at most 6 decimals')
    return amount


def _tokens(given: Any) -> int:
    """µHs of an amount of compute tokens that may be 0."""
    if given == "0" or (given == 0 and isinstance(given, int) and not isinstance(given, bool)):
        return 0
    try:
        uhs = int(parse_ct(given))
    except InvalidAmount:
        uhs = AMOUNT_UHS_MAX + 1
    if uhs > AMOUNT_UHS_MAX:
        raise PydanticCustomError(
            "tokens", 'tokens as a whole number or in quotes, such as "12.5", with at most 8 decimals, up to 10000000'
        )
    return uhs


def _some_tokens(given: Any) -> int:
    uhs = _tokens(given)
    if uhs == 0:
        raise PydanticCustomError("some_tokens", "more than 0 tokens")
    return uhs


def _offset_minutes(given: Any) -> int:
    match = _OFFSET.fullmatch(given) if isinstance(given, str) else None
    minutes = int(match[2]) * 60 + int(match[3]) if match else _OFFSET_MAX_MINUTES + 1
    if match is None or minutes > _OFFSET_MAX_MINUTES:
        raise PydanticCustomError("offset", 'the distance from UTC in quotes, such as "+08:00"')
    return -minutes if match[1] == "-" else minutes


def _hours(given: Any) -> tuple[int, int]:
    if (
        isinstance(given, list)
        and [type(hour) for hour in given] == [int, int]
        and all(0 <= hour <= HOURS_A_DAY for hour in given)
        and given[0] not in (given[1], HOURS_A_DAY)
    ):
        return given[0], given[1]
    raise PydanticCustomError("hours", "two different whole hours from 0 to 24, such as [22, 6]")


def _accelerator(given: Any) -> str:
    if not isinstance(given, str) or not given.strip():
        raise PydanticCustomError("accelerator", "the name of an accelerator, such as H100, A100 or 910B")
    return canonical_accelerator(given)


Ratio = Annotated[int, PlainValidator(_ratio)]
Price = Annotated[int, PlainValidator(_price)]
Tokens = Annotated[int, PlainValidator(_tokens)]
Accelerator = Annotated[str, PlainValidator(_accelerator)]
LifetimeDays = Annotated[int, Field(ge=1, le=LIFETIME_MAX_DAYS)]
Version = Annotated[int, Field(ge=1, le=INT64_MAX)]
Names = Annotated[tuple[str, ...], Field(strict=False)]


def _figure(given: Any) -> int:
    value = _millionths(given)
    if not value:
        raise PydanticCustomError("figure", 'a figure of more than 0 in quotes, such as "989.4", or a whole number')
    return value


class BasisSection(Section):
    """What a weight is reckoned from: its figure over the H100's in the same unit."""

    unit: Name
    figure: Annotated[Figure, Field(strict=False)]
    value: Annotated[int, PlainValidator(_figure)]
    h100: Annotated[int, PlainValidator(_figure)] | None = None
    """Where the H100's own weight is in another unit."""
    source: Annotated[str, Field(min_length=1, max_length=500)]

    def built(self) -> Basis:
        return Basis(unit=self.unit, figure=self.figure, value=self.value, h100=self.h100, source=self.source)


class WeightSection(Section):
    """What a device weighs, always or under conditions."""

    accelerator: Accelerator
    weight: Annotated[int, PlainValidator(_weight)]
    service: Annotated[Service, Field(strict=False)] | None = None
    operator: Name | None = None
    tier: Name | None = None
    hours: Annotated[tuple[int, int], PlainValidator(_hours)] | None = None
    basis: BasisSection | None = None

    @property
    def unconditional(self) -> bool:
        return self.service is None and self.operator is None and self.tier is None and self.hours is None

    def rivals(self, other: "WeightSection") -> bool:
        """Whether the two differ in their weight and their hours at most."""
        return (self.accelerator, self.service, self.operator, self.tier) == (
            other.accelerator,
            other.service,
            other.operator,
            other.tier,
        )

    def built(self) -> Weight:
        return Weight(
            accelerator=self.accelerator,
            ppm=self.weight,
            service=None if self.service is None else self.service.value,
            operator=self.operator,
            tier=self.tier,
            hours=self.hours,
            basis=None if self.basis is None else self.basis.built(),
        )


class PointSection(Section):
    """One point of the burn curve."""

    utilisation: Ratio
    burn: Ratio


class ModelRateSection(RateSection):
    """Rates of a model that is offered without its own; without `model`, of every such model."""

    model: Annotated[str, Field(pattern=MODEL_PATTERN)] | None = None


class TariffsFile(Section):
    """tariffs.yaml"""

    version: Version
    effective_from: Moment = 0
    name: str = ""
    notes: str = ""
    clock: Annotated[int, PlainValidator(_offset_minutes)] = 0
    """By which `hours` are meant, as a distance from UTC."""
    weights: Annotated[tuple[WeightSection, ...], Field(strict=False)]
    curve: Annotated[tuple[PointSection, ...], Field(strict=False)]
    rates: Annotated[tuple[ModelRateSection, ...], Field(strict=False)] = ()


class RestrictionSection(Section):
    """What tokens may be spent on; what is not said is not restricted."""

    services: Annotated[tuple[Annotated[Service, Field(strict=False)], ...], Field(strict=False)] = ()
    accelerators: Annotated[tuple[Accelerator, ...], Field(strict=False)] = ()
    models: Names = ()
    operators: Names = ()

    def built(self) -> Restriction:
        return Restriction(
            services=tuple(service.value for service in self.services),
            accelerators=self.accelerators,
            models=self.models,
            operators=self.operators,
        )


class PlanSection(Section):
    name: Name
    title: str = ""
    rank: Annotated[int, Field(ge=0, le=9)]
    price: Price
    """CNY a token."""
    lifetime_days: LifetimeDays
    queue: Literal["standard", "priority"] = "standard"
    dedicated: bool = False
    non_preemptible: bool | None = None
    """Whether its jobs may ask never to be evicted; None = where its rank is 0."""
    mode: Annotated[Mode, Field(strict=False)] = Mode.PREPAID
    credit_limit: Tokens = 0
    dunning: DunningSection | None = None
    """Of a postpaid plan."""

    def built(self) -> Plan:
        return Plan(
            name=self.name,
            title=self.title or self.name,
            tier_rank=self.rank,
            price_microcny_per_ct=self.price,
            lifetime_days=self.lifetime_days,
            queue=self.queue,
            dedicated=self.dedicated,
            non_preemptible=self.non_preemptible,
            mode=self.mode,
            credit_limit_uhs=self.credit_limit,
            dunning=None if self.dunning is None else self.dunning.built(),
        )


class TokensPart(Section):
    """Compute tokens in a bundle."""

    asset: Literal["CT"]
    amount: Annotated[int, PlainValidator(_some_tokens)]
    share: Price
    lifetime_days: LifetimeDays
    only: RestrictionSection = RestrictionSection()

    def built(self) -> Component:
        return Component(
            asset=COMPUTE,
            amount=self.amount,
            share_microcny=self.share,
            lifetime_days=self.lifetime_days,
            restriction=self.only.built(),
        )


class LlmPart(Section):
    """LLM tokens of a family in a bundle."""

    asset: LlmAsset
    amount: SomeLlmTokens
    share: Price
    lifetime_days: LifetimeDays

    def built(self) -> Component:
        return Component(
            asset=self.asset, amount=self.amount, share_microcny=self.share, lifetime_days=self.lifetime_days
        )


class OtherPart(Section):
    """Units of something else in a bundle, such as minutes of 5G edge."""

    asset: Name
    amount: Annotated[int, Field(ge=1, le=INT64_MAX)]
    share: Price
    lifetime_days: LifetimeDays

    def built(self) -> Component:
        return Component(
            asset=self.asset, amount=self.amount, share_microcny=self.share, lifetime_days=self.lifetime_days
        )


def _kind_of_part(given: Any) -> str:
    asset = given.get("asset") if isinstance(given, dict) else getattr(given, "asset", None)
    is_llm = isinstance(asset, str) and asset.startswith(LLM)
    return "tokens" if asset == COMPUTE else "llm" if is_llm else "other"


Part = Annotated[
    Annotated[TokensPart, Tag("tokens")] | Annotated[LlmPart, Tag("llm")] | Annotated[OtherPart, Tag("other")],
    Discriminator(_kind_of_part),
]


class BundleSection(Section):
    name: Name
    title: str = ""
    price: Price
    parts: Annotated[tuple[Part, ...], Field(strict=False)]

    def built(self) -> Bundle:
        return Bundle(
            name=self.name,
            title=self.title or self.name,
            price_microcny=self.price,
            components=tuple(part.built() for part in self.parts),
        )


class RolloverSection(Section):
    """How much of what is left at a cycle's end is carried over."""

    min: Tokens = 0
    max: Tokens = 0


class SubscriptionSection(Section):
    name: Name
    title: str = ""
    plan: Name
    price: Price
    """CNY a cycle."""
    amount: Annotated[int, PlainValidator(_some_tokens)]
    cycle: Literal["month", "days"] = "month"
    cycle_days: Annotated[int, Field(ge=1, le=CYCLE_MAX_DAYS)] | None = None
    lifetime_days: LifetimeDays | None = None
    rollover: RolloverSection = RolloverSection()
    overflow: Annotated[Overflow, Field(strict=False)] = Overflow.WALLET
    only: RestrictionSection = RestrictionSection()
    ends: EndsSection | None = None

    def built(self) -> Subscription:
        return Subscription(
            name=self.name,
            title=self.title or self.name,
            plan=self.plan,
            price_microcny=self.price,
            amount_uhs=self.amount,
            cycle=Cycle(self.cycle),
            cycle_days=self.cycle_days or 0,
            lifetime_days=self.lifetime_days,
            rollover_min_uhs=self.rollover.min,
            rollover_max_uhs=self.rollover.max,
            overflow=self.overflow,
            restriction=self.only.built(),
            ends=None if self.ends is None else self.ends.built(),
        )
