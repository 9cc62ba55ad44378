"""Periods of a calendar in a time zone: when the one began that a moment lies in, and when the next one begins.

Pure: what a zone's clocks do is part of what is asked, recorded with the journal, and never looked up where it is decided.
So a replay with other time zone data decides the same. A day begins with the first moment at which a clock of the zone
shows midnight or later: an hour that is left out or comes twice begins no day twice, and none not at all.
"""

from bisect import bisect_right
from datetime import date
from enum import StrEnum
from typing import Final

import msgspec

UTC: Final = "UTC"
_EPOCH: Final = date(1970, 1, 1).toordinal()
_S: Final = 1_000_000
_DAY_US: Final = 86_400 * _S
_DAYS_A_WEEK: Final = 7
_MONTHS_A_YEAR: Final = 12
OFFSET_MAX_S: Final = 26 * 3_600
CHANGES_MAX: Final = 512


class Period(StrEnum):
    """How long it is until a count begins anew."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    LIFE = "life"
    """It never does."""


STARTS_MAX: Final = {Period.DAY: 1, Period.WEEK: _DAYS_A_WEEK, Period.MONTH: 31, Period.LIFE: 1}
"""The last day of it that one may start on: a weekday (1 = Monday), or a day of the month, in shorter months the last."""


class Zone(msgspec.Struct, frozen=True, kw_only=True):
    """What the clocks of a time zone show: so many seconds more than UTC, and from which moments on other ones."""

    name: str
    offsets_s: tuple[int, ...] = (0,)
    """The first until the first change, each other from one change on."""
    changes_us: tuple[int, ...] = ()

    @property
    def flaw(self) -> str:
        """What can't be meant; "" if all can."""
        if len(self.offsets_s) != len(self.changes_us) + 1 or len(self.changes_us) > CHANGES_MAX:
            return f"a zone has 0 to {CHANGES_MAX} changes, and one offset more than changes"
        if any(not -OFFSET_MAX_S <= each <= OFFSET_MAX_S for each in self.offsets_s):
            return f"a zone's clocks are at most {OFFSET_MAX_S} s from UTC"
        if any(later <= before for before, later in zip(self.changes_us, self.changes_us[1:], strict=False)):
            return "a zone's changes follow each other"
        return ""

    def local_us(self, at_us: int) -> int:
        """What its clocks show, as if they were UTC's."""
        return at_us + self.offsets_s[bisect_right(self.changes_us, at_us)] * _S

    def begins_us(self, day: int) -> int:
        """The first moment at which its clocks show midnight of that day (days since 1970), or later."""
        midnight_us = day * _DAY_US
        at = bisect_right(self.changes_us, midnight_us - 2 * _DAY_US)
        while True:
            since_us = self.changes_us[at - 1] if at else None
            first_us = midnight_us - self.offsets_s[at] * _S
            if since_us is not None:
                first_us = max(first_us, since_us)
            if at == len(self.changes_us) or first_us < self.changes_us[at]:
                return first_us
            at += 1


IN_UTC: Final = Zone(name=UTC)


def around(at_us: int, period: Period, *, zone: Zone, starts_on: int = 1) -> tuple[int, int | None]:
    """When the period began that the moment lies in, and when the next one begins; None = never.

    Args:
        at_us: the moment.
        period: of which length.
        zone: whose calendar counts.
        starts_on: on which day of the week (1 = Monday), or of the month (in shorter ones on their last), it begins.
    """
    if period is Period.LIFE:
        return 0, None
    number = _number(zone.local_us(at_us) // _DAY_US, period, starts_on)
    while zone.begins_us(_first_day(number, period, starts_on)) > at_us:
        number -= 1
    while (until_us := zone.begins_us(_first_day(number + 1, period, starts_on))) <= at_us:
        number += 1
    return zone.begins_us(_first_day(number, period, starts_on)), until_us


def written(day: int) -> str:
    """A day since 1970 as 2026-12-01."""
    return date.fromordinal(day + _EPOCH).isoformat()


def _number(day: int, period: Period, starts_on: int) -> int:
    """Which period the day is in: they are counted through."""
    if period is Period.DAY:
        return day
    if period is Period.WEEK:
        return (day + _EPOCH - starts_on) // _DAYS_A_WEEK
    found = date.fromordinal(day + _EPOCH)
    return found.year * _MONTHS_A_YEAR + found.month - 1


def _first_day(number: int, period: Period, starts_on: int) -> int:
    """In days since 1970."""
    if period is Period.DAY:
        return number
    if period is Period.WEEK:
        return number * _DAYS_A_WEEK + starts_on - _EPOCH
    year, month = divmod(number, _MONTHS_A_YEAR)
    first = date(year, month + 1, 1).toordinal()
    next_year, next_month = divmod(number + 1, _MONTHS_A_YEAR)
    days = date(next_year, next_month + 1, 1).toordinal() - first
    return first + min(starts_on, days) - 1 - _EPOCH
