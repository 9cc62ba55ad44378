"""The shape of packages of LLM tokens in the price files: families of models, and amounts that are counted in LLM tokens."""

import re
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from fabric.charging.catalogue import Restriction
from fabric.charging.packages import FAMILY, UNITS_MAX, WEIGHT_MAX, Weights, asset_of
from fabric.config.sections import Section
from fabric.config.serving import MODEL_PATTERN
from fabric.ledger.scopes import Service
from fabric.units import LLM, THOUSANDTHS

_WEIGHT: Final = re.compile(r"\d{1,4}(\.\d{1,3})?", re.ASCII)


def _weight(given: Any) -> int:
    is_decimal = isinstance(given, int | str) and not isinstance(given, bool) and _WEIGHT.fullmatch(str(given))
    thousandths = int(Decimal(str(given)) * THOUSANDTHS) if is_decimal else -1
    if not 0 <= thousandths <= WEIGHT_MAX:
        raise PydanticCustomError(
            "llm_weight", 'a weight in quotes, such as "0.1", with at most 3 decimals, up to 1000'
        )
    return thousandths


def _llm_tokens(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= UNITS_MAX // THOUSANDTHS:
        raise PydanticCustomError("llm_tokens", "a whole number of LLM tokens, up to 1000000000000")
    return given * THOUSANDTHS


def _some_llm_tokens(given: Any) -> int:
    units = _llm_tokens(given)
    if units == 0:
        raise PydanticCustomError("some_llm_tokens", "more than 0 LLM tokens")
    return units


Weight = Annotated[int, PlainValidator(_weight)]
LlmTokens = Annotated[int, PlainValidator(_llm_tokens)]
SomeLlmTokens = Annotated[int, PlainValidator(_some_llm_tokens)]
LlmAsset = Annotated[str, Field(pattern=rf"^{LLM}{FAMILY}$")]


class WeightsSection(Section):
    """What a token takes of a package, by what it is: of the prompt, of the prompt and cached, of the answer, of reasoning."""

    input: Weight = THOUSANDTHS
    cached: Weight | None = None
    """None = as much as any of the prompt."""
    output: Weight = THOUSANDTHS
    reasoning: Weight | None = None
    """None = as much as any of the answer."""

    def built(self) -> Weights:
        return Weights(
            prompt=self.input,
            cached=self.input if self.cached is None else self.cached,
            completion=self.output,
            reasoning=self.output if self.reasoning is None else self.reasoning,
        )


class FamilySection(Section):
    """Models whose tokens are sold in packages."""

    name: Annotated[str, Field(pattern=rf"^{FAMILY}$")]
    models: Annotated[tuple[Annotated[str, Field(pattern=MODEL_PATTERN)], ...], Field(strict=False)] = ()
    """() = all that are offered."""
    weights: WeightsSection = WeightsSection()

    @property
    def sold_as(self) -> str:
        """As parts and subscriptions name it."""
        return f"{LLM}{self.name}"

    @property
    def asset(self) -> str:
        """As it is booked: with its weights, so that a package that was sold is counted as it was."""
        return asset_of(self.name, self.weights.built())

    @property
    def restriction(self) -> Restriction:
        return Restriction(services=(Service.INFERENCE.value,), models=self.models)
