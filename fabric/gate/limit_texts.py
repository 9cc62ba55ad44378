"""What is said of limits that reset: the number, the limit, when it begins anew, and what to do."""

from typing import Final

from fabric.gate.instructions import Refusal
from fabric.gate.limit_events import LimitTerms, Unit
from fabric.gate.limit_state import Limit
from fabric.gate.periods import Period, Zone, written
from fabric.units import format_cny, format_ct

REACHED: Final = "spending_limit_reached"
_A: Final = {Period.DAY: "a day", Period.WEEK: "a week", Period.MONTH: "a month", Period.LIFE: "in all"}
_DAY_US: Final = 86_400_000_000
_MIN_US: Final = 60_000_000


def amount(number: int, unit: Unit, *, round_up: bool = False) -> str:
    """With its unit, as in "12.5 CT"."""
    if unit is Unit.CT:
        return f"{format_ct(number, round_up=round_up)} CT"
    return f"{format_cny(number)} CNY" if unit is Unit.CNY else f"{number} LLM tokens"


def kind_of(terms: LimitTerms) -> str:
    return f"{terms.period.value} {terms.unit.value} {'hard' if terms.hard else 'warning'}"


def reached(
    terms: LimitTerms, *, whose: str, needed_uhs: int, left_uhs: int, used: int, until_us: int | None, zone: Zone
) -> Refusal:
    """A hard limit doesn't cover a hold."""
    anew = f", and begins anew at {moment(until_us, zone)}" if until_us is not None else ""
    wait = "wait until then, " if until_us is not None else ""
    return Refusal(
        code=REACHED,
        http_status=402,
        message=(
            f"needs {format_ct(needed_uhs, round_up=True)} CT, but the limit of {_said(whose)} leaves"
            f" {format_ct(left_uhs)}: it is {amount(terms.amount, terms.unit)} {_A[terms.period]},"
            f" {amount(used, terms.unit)} are used and what runs holds the rest{anew}. Ask for less, {wait}or have"
            " the limit raised (`fabric keys limit`)"
        ),
        facts={
            "needed_uhs": needed_uhs,
            "left_uhs": left_uhs,
            "limit": terms.amount,
            "used": used,
            "unit": terms.unit.value,
            "period": terms.period.value,
            "whose": whose,
            "resets_at_us": until_us,
        },
    )


def _said(whose: str) -> str:
    """As in "project dev"."""
    return f"{whose.partition('/')[0]} {whose.rpartition('/')[2]}"


def crossed(limit: Limit, *, whose: str, zone: Zone) -> str:
    """What the owner is told of a limit that only warns."""
    terms = limit.terms
    anew = "" if limit.until_us is None else f"; it is counted anew from {moment(limit.until_us, zone)} on"
    return (
        f"{_said(whose)} has used {amount(limit.used, terms.unit)}, and is to be told at"
        f" {amount(terms.amount, terms.unit)} {_A[terms.period]}: nothing is refused{anew}"
    )


def moment(at_us: int | None, zone: Zone) -> str:
    """As the clocks of the zone show it: "2026-12-01 00:00 Asia/Shanghai"."""
    if at_us is None:
        return "never"
    days, rest_us = divmod(zone.local_us(at_us), _DAY_US)
    return f"{written(days)} {rest_us // (60 * _MIN_US):02d}:{rest_us // _MIN_US % 60:02d} {zone.name}"
