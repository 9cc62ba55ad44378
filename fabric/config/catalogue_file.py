"""The shape of plans.yaml as a whole, and of subscriptions of LLM tokens in it."""

from typing import Annotated, Any

from msgspec.structs import replace
from pydantic import Discriminator, Field, Tag

from fabric.charging.catalogue import COMPUTE, SETTLEMENT_HOURS, SETTLEMENT_HOURS_MAX, Subscription
from fabric.config.dated_sections import Moment
from fabric.config.package_sections import FamilySection, LlmAsset, LlmTokens, SomeLlmTokens
from fabric.config.price_sections import BundleSection, PlanSection, RolloverSection, SubscriptionSection, Version
from fabric.config.sections import Section


class LlmRolloverSection(RolloverSection):
    min: LlmTokens = 0
    max: LlmTokens = 0


class LlmSubscriptionSection(SubscriptionSection):
    """LLM tokens of a family every cycle."""

    asset: LlmAsset
    amount: SomeLlmTokens
    rollover: LlmRolloverSection = LlmRolloverSection()

    def built(self) -> Subscription:
        return replace(super().built(), asset=self.asset)


def _kind_of_subscription(given: Any) -> str:
    asset = given.get("asset", COMPUTE) if isinstance(given, dict) else getattr(given, "asset", COMPUTE)
    return "tokens" if asset == COMPUTE else "llm"


AnySubscription = Annotated[
    Annotated[SubscriptionSection, Tag("tokens")] | Annotated[LlmSubscriptionSection, Tag("llm")],
    Discriminator(_kind_of_subscription),
]


class CatalogueFile(Section):
    """plans.yaml"""

    version: Version
    effective_from: Moment = 0
    """From when on it holds; 0 = at once."""
    plans: Annotated[tuple[PlanSection, ...], Field(strict=False)]
    bundles: Annotated[tuple[BundleSection, ...], Field(strict=False)] = ()
    subscriptions: Annotated[tuple[AnySubscription, ...], Field(strict=False)] = ()
    families: Annotated[tuple[FamilySection, ...], Field(strict=False)] = ()
    """Of models whose tokens are sold in packages."""
    settlement_hours: Annotated[int, Field(ge=0, le=SETTLEMENT_HOURS_MAX)] = SETTLEMENT_HOURS
