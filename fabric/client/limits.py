"""Limits that reset, as people name them: amounts in their unit, and periods in words."""

from typing import Final

from fabric.errors import InvalidAmount, InvalidRequest
from fabric.units import parse_cny, parse_ct
from fabric.wire import fabric_pb2 as pb

PERIODS: Final = ("day", "week", "month", "life")
UNITS: Final = ("ct", "cny", "llm")
_LLM_DIGITS_MAX: Final = 15


def terms_of(
    amount: str | int, *, per: str, unit: str = "ct", zone: str = "", starts_on: int = 0, warning: bool = False
) -> pb.LimitTerms:
    """A limit as the door takes it.

    Args:
        amount: in the unit: compute tokens, yuan, or LLM tokens; an integer or a decimal string.
        per: day, week, month or life.
        unit: ct, cny or llm.
        zone: by whose calendar it resets, an IANA name; "" = UTC.
        starts_on: of a week the weekday (1 = Monday), of a month the day; 0 = the first.
        warning: only tell of it.

    Raises:
        InvalidRequest: another period or unit.
        InvalidAmount: no plain positive number.
    """
    if per not in PERIODS or unit not in UNITS:
        raise InvalidRequest(
            f"a limit is per {', '.join(PERIODS)} and in {', '.join(UNITS)}, not per {per!r} in {unit!r}",
            code="invalid_limit",
        )
    return pb.LimitTerms(
        period=per, unit=unit, amount=_parsed(amount, unit), warning=warning, zone=zone, starts_on=starts_on
    )


def _parsed(amount: str | int, unit: str) -> int:
    if unit == "ct":
        return parse_ct(amount)
    plain = str(amount).strip()
    if unit == "cny":
        return parse_cny(plain)
    if not (plain.isascii() and plain.isdigit() and 0 < len(plain) <= _LLM_DIGITS_MAX and int(plain)):
        raise InvalidAmount(given=plain, why=f"write LLM tokens as a whole number of at most {_LLM_DIGITS_MAX} digits")
    return int(plain)
