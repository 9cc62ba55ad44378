"""Tariffs and catalogue from YAML, read strictly.

Prices and ratios are decimal text, never YAML floats; what doesn't fit together is refused with the place in the file,
what was found there, and what is allowed. What the values mean is said in `fabric.charging`.
"""

from pathlib import Path

from msgspec.structs import replace

from fabric.charging.burn import BurnCurve, flaws_of, ratio
from fabric.charging.catalogue import Bundle, Catalogue, Mode, Overflow, Subscription
from fabric.charging.tariffs import HOURS_A_DAY, Tariffs, within
from fabric.config.catalogue_file import CatalogueFile, LlmSubscriptionSection
from fabric.config.dated_sections import STOP
from fabric.config.files import read_sections
from fabric.config.package_sections import FamilySection
from fabric.config.price_sections import (
    BundleSection,
    ModelRateSection,
    RestrictionSection,
    SubscriptionSection,
    TariffsFile,
    WeightSection,
)
from fabric.errors import InvalidConfig
from fabric.units import LLM, PPM, format_cny

Mistake = tuple[str, str, str]
"""Where in the file, what was found, what is allowed."""


def load_tariffs(path: Path | str) -> Tariffs:
    """The tariffs that a file describes.

    Raises:
        InvalidConfig: it can't be read, or doesn't say what it must; every mistake in it, a line each.
    """
    file = Path(path)
    given = read_sections(file, model=TariffsFile, environ={})
    points = tuple((point.utilisation, point.burn) for point in given.curve)
    _refuse(file, [*_mistaken_weights(given.weights), *_mistaken_curve(points), *_mistaken_rates(given.rates)])
    return Tariffs(
        version=given.version,
        effective_from_us=given.effective_from,
        name=given.name,
        notes=given.notes,
        utc_offset_minutes=given.clock,
        weights=tuple(weight.built() for weight in given.weights),
        curve=BurnCurve(points),
        rates=tuple(rate.built(rate.model or "") for rate in given.rates),
    )


def load_catalogue(path: Path | str) -> Catalogue:
    """The plans, bundles and subscriptions that a file describes.

    Raises:
        InvalidConfig: it can't be read, or doesn't say what it must; every mistake in it, a line each.
    """
    file = Path(path)
    given = read_sections(file, model=CatalogueFile, environ={})
    _refuse(file, _mistaken_catalogue(given))
    return Catalogue(
        version=given.version,
        effective_from_us=given.effective_from,
        plans=tuple(plan.built() for plan in given.plans),
        bundles=tuple(_bundle(bundle.built(), given.families) for bundle in given.bundles),
        subscriptions=tuple(_subscription(each.built(), given.families) for each in given.subscriptions),
        settlement_hours=given.settlement_hours,
    )


def _bundle(bundle: Bundle, families: tuple[FamilySection, ...]) -> Bundle:
    """With what its packages of LLM tokens are good for, and how they are counted."""
    by_name = {family.sold_as: family for family in families}
    parts = (
        replace(part, asset=family.asset, restriction=family.restriction)
        if (family := by_name.get(part.asset)) is not None
        else part
        for part in bundle.components
    )
    return replace(bundle, components=tuple(parts))


def _subscription(offer: Subscription, families: tuple[FamilySection, ...]) -> Subscription:
    family = next((family for family in families if family.sold_as == offer.asset), None)
    return offer if family is None else replace(offer, asset=family.asset, restriction=family.restriction)


def _mistaken_families(given: CatalogueFile) -> list[Mistake]:
    """Families that are sold and aren't there; and those that nobody could count, because nothing takes anything."""
    known = [family.sold_as for family in given.families]
    mistakes = _named_twice("families", [family.name for family in given.families])
    sold = [
        (f"bundles[{at}].parts[{place}]", part.asset)
        for at, bundle in enumerate(given.bundles)
        for place, part in enumerate(bundle.parts)
        if part.asset.startswith(LLM)
    ]
    sold += [
        (f"subscriptions[{at}]", offer.asset)
        for at, offer in enumerate(given.subscriptions)
        if isinstance(offer, LlmSubscriptionSection)
    ]
    named = ", ".join(known) or "none: add it to families"
    mistakes += [(where, asset, f"a family that is there: {named}") for where, asset in sold if asset not in known]
    for at, family in enumerate(given.families):
        if not any(family.weights.built()):
            mistakes.append((f"families[{at}].weights", "nothing but 0", "a weight above 0"))
    for at, offer in enumerate(given.subscriptions):
        if isinstance(offer, LlmSubscriptionSection) and offer.only != RestrictionSection():
            mistakes.append((f"subscriptions[{at}].only", "a restriction", "none: the family says what it is good for"))
    return mistakes


def _refuse(file: Path, mistakes: list[Mistake]) -> None:
    if mistakes:
        message = "\n".join(f"{file}: {where}: found {found}; allowed: {allowed}" for where, found, allowed in mistakes)
        raise InvalidConfig(message, file=str(file), path=mistakes[0][0], mistakes=len(mistakes))


def _mistaken_weights(weights: tuple[WeightSection, ...]) -> list[Mistake]:
    if not weights:
        return [("weights", "no weights", "at least one")]
    mistakes: list[Mistake] = []
    plain = {weight.accelerator: at for at, weight in enumerate(weights) if weight.unconditional}
    for at, weight in enumerate(weights):
        if weight.accelerator not in plain:
            found = f"{weight.accelerator} only under conditions"
            mistakes.append((f"weights[{at}]", found, f"one weight of {weight.accelerator} that holds always, too"))
            plain[weight.accelerator] = at
        for earlier in range(at):
            if weight.rivals(weights[earlier]) and _share_an_hour(weight.hours, weights[earlier].hours):
                found = f"a second weight of {weight.accelerator} for what weights[{earlier}] says already"
                mistakes.append((f"weights[{at}]", found, "one weight for each case"))
                break
        if weight.accelerator == "H100" and weight.unconditional and weight.weight != PPM:
            mistakes.append((f"weights[{at}].weight", ratio(weight.weight), "1 for H100: that is what a token is"))
    return mistakes


def _share_an_hour(one: tuple[int, int] | None, other: tuple[int, int] | None) -> bool:
    """Whether both may be in force at once, of two weights that differ in their hours alone."""
    if one is None or other is None:
        return one is other
    return any(within(one, hour) and within(other, hour) for hour in range(HOURS_A_DAY))


def _mistaken_curve(points: tuple[tuple[int, int], ...]) -> list[Mistake]:
    return [
        ("curve" if flaw.at is None else f"curve[{flaw.at}]", flaw.found, flaw.allowed) for flaw in flaws_of(points)
    ]


def _mistaken_rates(rates: tuple[ModelRateSection, ...]) -> list[Mistake]:
    cases = [(rate.model, rate.accelerator) for rate in rates]
    return [
        (f"rates[{at}]", f"a second rate of {model or 'any model'} on {accelerator or 'any type'}", "one for each case")
        for at, (model, accelerator) in enumerate(cases)
        if (model, accelerator) in cases[:at]
    ]


def _mistaken_catalogue(given: CatalogueFile) -> list[Mistake]:
    mistakes: list[Mistake] = [] if given.plans else [("plans", "no plans", "at least one")]
    mistakes += _named_twice("plans", [plan.name for plan in given.plans])
    mistakes += _named_twice("bundles", [bundle.name for bundle in given.bundles])
    mistakes += _mistaken_families(given)
    mistakes += _named_twice("subscriptions", [subscription.name for subscription in given.subscriptions])
    for at, plan in enumerate(given.plans):
        if (plan.mode is Mode.POSTPAID) != (plan.credit_limit > 0):
            where = f"plans[{at}].credit_limit"
            found = "a credit limit on a prepaid plan" if plan.credit_limit else "no credit limit on a postpaid plan"
            mistakes.append((where, found, "a credit limit exactly where mode is postpaid"))
    for at, bundle in enumerate(given.bundles):
        mistakes += _mistaken_bundle(f"bundles[{at}]", bundle)
    modes = {plan.name: plan.mode for plan in given.plans}
    names = [subscription.name for subscription in given.subscriptions]
    for at, subscription in enumerate(given.subscriptions):
        mistakes += _mistaken_subscription(f"subscriptions[{at}]", subscription, modes)
        ends = subscription.ends
        if ends is not None and ends.then not in {STOP, *names} - {subscription.name}:
            others = ", ".join(name for name in names if name != subscription.name)
            allowed = f"{STOP}, or another subscription of this file: {others or 'there is none'}"
            mistakes.append((f"subscriptions[{at}].ends.then", repr(ends.then), allowed))
    return mistakes


def _named_twice(kind: str, names: list[str]) -> list[Mistake]:
    return [
        (f"{kind}[{at}].name", f"{name!r} a second time", "every name once")
        for at, name in enumerate(names)
        if name in names[:at]
    ]


def _mistaken_bundle(where: str, bundle: BundleSection) -> list[Mistake]:
    if not bundle.parts:
        return [(f"{where}.parts", "no parts", "at least one")]
    shares = sum(part.share for part in bundle.parts)
    if shares == bundle.price:
        return []
    found = f"shares of {format_cny(shares)} in all"
    return [(f"{where}.parts", found, f"shares that add up to the bundle's price, {format_cny(bundle.price)}")]


def _mistaken_subscription(where: str, subscription: SubscriptionSection, modes: dict[str, Mode]) -> list[Mistake]:
    mistakes: list[Mistake] = []
    if subscription.plan not in modes:
        mistakes.append((f"{where}.plan", repr(subscription.plan), f"a plan of this file: {', '.join(modes)}"))
    elif subscription.overflow is Overflow.POSTPAID and modes[subscription.plan] is not Mode.POSTPAID:
        found = f"'postpaid' on the prepaid plan {subscription.plan!r}"
        mistakes.append((f"{where}.overflow", found, "block or wallet, or a plan whose mode is postpaid"))
    if (subscription.cycle == "days") != (subscription.cycle_days is not None):
        found = "nothing" if subscription.cycle_days is None else str(subscription.cycle_days)
        mistakes.append((f"{where}.cycle_days", found, "a number of days exactly where cycle is days"))
    if subscription.rollover.min > subscription.rollover.max:
        mistakes.append((f"{where}.rollover", "min above max", "min of at most max"))
    if subscription.rollover.max and subscription.lifetime_days is not None:
        found = f"{subscription.lifetime_days} beside a rollover"
        mistakes.append((f"{where}.lifetime_days", found, "tokens that outlive their cycle, or roll over, not both"))
    return mistakes
