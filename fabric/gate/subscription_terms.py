"""What a subscription is offered for, and which of these terms a subscriber has.

A subscriber keeps its terms until it has been told of others and a whole cycle has passed since: the first cycle that begins both on
other terms' date or later, and after a cycle that had begun when they were told, has them. So has the end of an offer: whose
offer has ended goes on with another one, or stops, as that says; what it doesn't say stops.
"""

from typing import Final, NamedTuple

from fabric import versions
from fabric.charging import plans
from fabric.charging.catalogue import COMPUTE, Catalogue, Cycle, Subscription
from fabric.charging.in_force import in_force
from fabric.charging.plans import DAY_US
from fabric.gate import notices
from fabric.gate.core import Core
from fabric.gate.periods import written
from fabric.gate.price_state import OfferTerms
from fabric.gate.state import SubscriptionRecord
from fabric.units import family_of, format_cny, format_ct, format_llm_tokens

_MONTH_MAX_US: Final = 31 * DAY_US


class Terms(NamedTuple):
    """What a cycle is to be had for."""

    number: int
    """As the terms of its offer are kept."""
    offer: Subscription | None
    """None = there is nothing of that name any more."""
    begins_us: int

    @property
    def are_over(self) -> bool:
        """Whether no such cycle begins."""
        return self.offer is None or self.offer.is_over(self.begins_us)


def todays(core: Core, name: str) -> Terms:
    """What is in force for whoever begins now."""
    return at(core, name, core.now_us)


def at(core: Core, name: str, at_us: int) -> Terms:
    """What was in force at a moment for whoever began then."""
    steps = core.state.offers.get(name)
    if not steps:
        return Terms(0, core.catalogue.subscription(name), at_us)
    step = in_force(steps, at_us) or steps[0]
    return Terms(steps.index(step), step.offer, at_us)


def bought(core: Core, offer: Subscription) -> int:
    """Which terms these are, that were paid for: those in force where they are none."""
    steps = core.state.offers.get(offer.name, [])
    same = [number for number, step in enumerate(steps) if step.offer == offer and step.since_us <= core.now_us]
    return same[-1] if same else todays(core, offer.name).number


def of_cycle(core: Core, record: SubscriptionRecord, index: int) -> Terms:
    """What a subscriber's cycle after the one that it is in is to be had for.

    Args:
        core: for all terms.
        record: whose.
        index: which cycle.
    """
    own = core.offer_of(record)
    if own is None:
        return Terms(record.terms, None, record.next_at_us)
    begins_us = plans.cycle_start_us(own, started_at_us=record.started_at_us, index=index)
    steps = core.state.offers.get(record.subscription)
    if not steps:
        return Terms(0, own, begins_us)
    before_us = plans.cycle_start_us(own, started_at_us=record.started_at_us, index=index - 1)
    found = record.terms
    for number in range(record.terms + 1, len(steps)):
        if steps[number].since_us <= begins_us and steps[number].told_at_us <= before_us:
            found = number
    return Terms(found, steps[found].offer, begins_us)


def move_on(core: Core, record: SubscriptionRecord, ended: Subscription | None, *, at_us: int) -> Subscription | None:
    """Its offer has ended: begin what its subscribers go on with, and count its cycles from here; None = they don't, or this one has
    that already.
    """
    seen = {record.subscription}
    while ended is not None and ended.ends is not None and ended.ends.then not in ("", *seen):
        name = ended.ends.then
        seen.add(name)
        following = at(core, name, at_us)
        if following.are_over:
            ended = following.offer
            continue
        if any(other.subscription == name for other in core.subscribed_by.get(record.account_id, ())):
            return None
        record.subscription, record.terms = name, following.number
        record.started_at_us, record.index = at_us, -1
        return following.offer
    return None


def note(core: Core, before: Catalogue | None, *, at_us: int) -> None:
    """A catalogue was set, or announced: remember which terms that are, and tell those who have others."""
    state = core.state
    if before is None or state.rules < versions.PRICES_OF_THEIR_TIME:
        return
    coming = [(each.since_us, each.catalogue) for each in state.announced if each.catalogue is not None]
    catalogues = [(at_us, core.catalogue), *coming]
    offers = [offer for _, each in [(0, before), *catalogues] for offer in each.subscriptions]
    for name in dict.fromkeys((*(offer.name for offer in offers), *state.offers)):
        known = state.offers.get(name) or [OfferTerms(since_us=0, told_at_us=0, offer=before.subscription(name))]
        steps = [step for step in known if step.since_us <= at_us]
        told = {(step.since_us, step.offer): step.told_at_us for step in known}
        new: list[OfferTerms] = []
        for since_us, catalogue in catalogues:
            offer = catalogue.subscription(name)
            if offer != steps[-1].offer:
                told_at_us = told.get((since_us, offer))
                step = OfferTerms(
                    since_us=since_us, told_at_us=at_us if told_at_us is None else told_at_us, offer=offer
                )
                new += [step] if told_at_us is None else []
                steps.append(step)
        if len(steps) > 1 or name in state.offers:
            state.offers[name] = steps
        withdrawn = any(step not in steps for step in known)
        _tell(core, name, new, withdrawn=withdrawn)


def _tell(core: Core, name: str, steps: list[OfferTerms], *, withdrawn: bool) -> None:
    """Whoever has the offer is told what it will be, and from which of its own cycles on; or that it isn't any more."""
    if not steps and not withdrawn:
        return
    for record in core.state.subscriptions:
        own = core.offer_of(record) if record.subscription == name else None
        if own is None:
            continue
        if withdrawn and not steps:
            text = f"{own.title or own.name}: what was announced is withdrawn, and it stays as it is"
            notices.tell(core, record.account_id, "subscription_changes", name, text)
        for step in steps:
            text, what = _text(record, own, step)
            notices.tell(core, record.account_id, what, name, text)


def _text(record: SubscriptionRecord, own: Subscription, step: OfferTerms) -> tuple[str, str]:
    offer = step.offer
    ends_us = step.since_us if offer is None else 0 if offer.ends is None else offer.ends.at_us
    title = own.title or own.name
    if offer is not None and not ends_us:
        begins_us = _has_it_us(record, own, step, step.since_us)
        gives = f"{format_ct(offer.amount_uhs)} CT"
        if offer.asset != COMPUTE:
            gives = f"{format_llm_tokens(offer.amount_uhs)} tokens of {family_of(offer.asset)}"
        text = f"{title}: {gives} for {format_cny(offer.price_microcny)} CNY a cycle, from the cycle of {_day(begins_us)} on"
        return text, "subscription_changes"
    last_us = _has_it_us(record, own, step, max(step.since_us, ends_us))
    ends = None if offer is None else offer.ends
    then = "it stops" if ends is None or not ends.then else f"it goes on as {ends.then}"
    rest = "is good for one cycle more" if ends is not None and ends.keeps_rollover else "expires"
    text = f"{title} ends on {_day(last_us)}: {then}, and what would be carried over {rest}"
    return text, "subscription_ends"


def _has_it_us(record: SubscriptionRecord, own: Subscription, step: OfferTerms, since_us: int) -> int:
    """When the first of a subscriber's cycles begins that these terms, which are of a date, are for."""
    length_us = own.cycle_days * DAY_US if own.cycle is Cycle.DAYS else _MONTH_MAX_US
    index = max(record.index + 1, (max(since_us, step.told_at_us) - record.started_at_us) // length_us)
    while True:
        before_us, begins_us = (
            plans.cycle_start_us(own, started_at_us=record.started_at_us, index=each) for each in (index - 1, index)
        )
        if begins_us >= since_us and before_us >= step.told_at_us:
            return begins_us
        index += 1


def _day(at_us: int) -> str:
    return written(at_us // DAY_US)
