"""Setting limits that reset: what can be meant, who may, and what clocks they follow."""

from collections.abc import Iterable, Iterator
from typing import Final

from fabric.gate import keys, limit_texts, limits, organisations, refusals
from fabric.gate.account_events import CreateKey
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.key_scopes import BEYOND_A_LIMIT, KeyScope
from fabric.gate.limit_events import LearnZone, LimitTerms, SetLimit, Unit, Whose
from fabric.gate.limit_state import Limit
from fabric.gate.periods import STARTS_MAX, UTC
from fabric.units import AMOUNT_UHS_MAX, INT64_MAX, KeyId

EACH_MAX: Final = 8
"""Limits of one key or account."""
ZONES_MAX: Final = 1_000
ZONE_CHARS_MAX: Final = 64
AMOUNTS_MAX: Final = {Unit.CT: AMOUNT_UHS_MAX, Unit.CNY: 10**15, Unit.LLM: 10**15}


def learn_zone(core: Core, event: LearnZone) -> Outcome:
    """Count by these clocks from now on. A period that has begun is not begun anew."""
    zone, zones = event.zone, core.state.zones
    if flaw := zone.flaw or ("" if 0 < len(zone.name) <= ZONE_CHARS_MAX else "a zone has a name"):
        return refusals.invalid(f"{flaw}: not {zone.name[:80]!r}", code="invalid_zone")
    if zone.name not in zones and len(zones) >= ZONES_MAX:
        return refusals.invalid(f"{ZONES_MAX} time zones are known, which is all", code="too_many_zones")
    for limit in (each for each in _all(core) if each.terms.zone == zone.name):
        limits.roll(core, limit, core.now_us)
    zones[zone.name] = zone
    for limit in (each for each in _all(core) if each.terms.zone == zone.name):
        limit.until_us = limits.period_at(core, limit.terms, core.now_us)[1]
    return Accepted()


def set_limit(core: Core, event: SetLimit) -> Outcome:
    """Set it or take it away; jobs that waited for the one before may go on."""
    if refusal := _may_not(core, event) or (None if event.remove else _unfit(core, event.terms)):
        return refusal
    whose = limits.named(core, event.whose, event.name or event.account_id, event.account_id)
    before = core.state.limits.get(whose, [])
    same = next((each for each in before if _kind(each.terms) == _kind(event.terms)), None)
    if event.remove and same is None:
        return refusals.not_found("limit", f"{whose} {limit_texts.kind_of(event.terms)}")
    if same is not None and same.by_operator and not event.by_operator:
        return refusals.forbidden("the operator has set that limit: ask the operator for another", code="operator_only")
    if same is None and len(before) >= EACH_MAX:
        return refusals.invalid(
            f"{whose} has {EACH_MAX} limits, which is all: remove one first", code="too_many_limits"
        )
    if event.whose is Whose.KEY and not event.remove and event.terms.hard and (refusal := _narrow(core, event.name)):
        return refusal
    kept = [each for each in before if each is not same]
    if not event.remove:
        kept.append(_made(core, event.terms, same, by_operator=event.by_operator))
    if kept:
        core.state.limits[whose] = kept
    else:
        del core.state.limits[whose]
    for wallet in organisations.of(core, event.account_id).wallets:
        core.freed[wallet] = None
    return Accepted()


def made(core: Core, key_id: KeyId, terms: Iterable[LimitTerms]) -> None:
    """A new key has these."""
    if found := [_made(core, each, None, by_operator=False) for each in terms]:
        core.state.limits[f"{Whose.KEY.value}/{key_id}"] = found


def unfit(core: Core, event: CreateKey) -> Refusal | None:
    """What is wrong with the limits of a new key; None if nothing is."""
    given = event.limits
    if given and event.operator:
        return _of_operators()
    if len(given) > EACH_MAX or len({_kind(each) for each in given}) < len(given):
        return refusals.invalid(
            f"a key has up to {EACH_MAX} limits, one of each period, unit and kind", code="too_many_limits"
        )
    return next((refusal for terms in given if (refusal := _unfit(core, terms))), None)


def _all(core: Core) -> Iterator[Limit]:
    return (limit for limits in core.state.limits.values() for limit in limits)


def _made(core: Core, terms: LimitTerms, before: Limit | None, *, by_operator: bool) -> Limit:
    """A limit from now on; one that takes the place of another goes on with its counts if its periods begin when that one's do."""
    from_us, until_us = limits.period_at(core, terms, core.now_us)
    limit = Limit(terms=terms, set_at_us=core.now_us, by_operator=by_operator, from_us=from_us, until_us=until_us)
    if before is not None:
        limits.roll(core, before, core.now_us)
        limit.used_ever = before.used_ever
        if before.until_us == until_us:
            limit.used, limit.rest, limit.used_before = before.used, before.rest, before.used_before
    return limit


def _kind(terms: LimitTerms) -> tuple[str, str, bool]:
    return terms.period, terms.unit, terms.hard


def _may_not(core: Core, event: SetLimit) -> Refusal | None:
    if event.account_id not in core.state.accounts:
        return refusals.not_found("account", event.account_id)
    if refusal := organisations.may_not(core, event.made_with, event.account_id, frozenset()):
        return refusal
    return _none_such(core, event)


def _none_such(core: Core, event: SetLimit) -> Refusal | None:
    organisation, key = organisations.of(core, event.account_id), core.state.keys.get(KeyId(event.name))
    match event.whose:
        case Whose.ACCOUNT:
            there = event.name in ("", event.account_id)
        case Whose.PROJECT:
            there = event.name in organisation.projects
        case Whose.MEMBER:
            there = event.name in organisation.members
        case Whose.KEY:
            there = key is not None and keys.is_of(core, key, event.account_id)
    if not there:
        return refusals.not_found(event.whose.value, event.name)
    return _of_operators() if event.whose is Whose.KEY and key is not None and key.operator else None


def _of_operators() -> Refusal:
    return refusals.invalid("an operator's key spends nothing of its own: limit the account", code="invalid_limit")


def _unfit(core: Core, terms: LimitTerms) -> Refusal | None:
    most = AMOUNTS_MAX[terms.unit]
    if not 0 < terms.amount <= most:
        return refusals.invalid(
            f"a limit is of more than 0 and at most {limit_texts.amount(most, terms.unit)}, not of"
            f" {limit_texts.amount(min(terms.amount, INT64_MAX), terms.unit)}",
            code="invalid_amount",
        )
    if not 1 <= terms.starts_on <= STARTS_MAX[terms.period]:
        return refusals.invalid(
            f"a {terms.period} starts on day 1 to {STARTS_MAX[terms.period]} of it, not on {terms.starts_on}",
            code="invalid_start",
        )
    if terms.zone != UTC and terms.zone not in core.state.zones:
        return refusals.invalid(
            f"there is no time zone {terms.zone[:80]!r}: use a name such as Asia/Shanghai or UTC", code="unknown_zone"
        )
    return None


def _narrow(core: Core, key_id: str) -> Refusal | None:
    """A key with a limit can't hold for others or make keys: what it could beside that it goes on to have."""
    key = core.state.keys[KeyId(key_id)]
    scopes = keys.given_to(key)
    if not scopes & BEYOND_A_LIMIT:
        return None
    left = tuple(scope for scope in KeyScope if scope in scopes - BEYOND_A_LIMIT)
    if not left:
        return refusals.invalid(
            f"key {key_id!r} is for holds and keys alone, which would not count against a limit: make another one",
            code="invalid_scope",
        )
    key.scopes = left
    return None
