"""When periods begin, against the clocks of Python's own time zones: each date once, whatever its clocks leave out or repeat."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.api.zones import zone_of
from fabric.errors import InvalidRequest
from fabric.gate.limit_texts import moment
from fabric.gate.periods import CHANGES_MAX, IN_UTC, Period, Zone, around

NAMES = (
    "UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Kiritimati", "Pacific/Apia",
    "America/Havana", "Africa/Cairo", "Asia/Beirut", "Asia/Gaza", "Africa/Casablanca", "America/Santiago", "America/Nuuk",
)  # fmt: skip
"""Some with clocks that are changed at midnight, by half an hour, for a month, or never."""
QUARTER_US = 900 * 1_000_000
FROM = int(datetime(2022, 1, 1, tzinfo=UTC).timestamp() * 1_000_000)
UNTIL = int(datetime(2032, 1, 1, tzinfo=UTC).timestamp() * 1_000_000)
moments = st.integers(FROM, UNTIL)
periods = st.sampled_from([Period.DAY, Period.WEEK, Period.MONTH])


def date_at(name, at_us):
    return datetime.fromtimestamp(at_us // 1_000_000, ZoneInfo(name)).date()


def first_moment(name, day):
    """Looked for a quarter of an hour at a time: the first moment that is in this day or a later one."""
    at_us = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1_000_000) - 40 * 4 * QUARTER_US
    while date_at(name, at_us) < day:
        at_us += QUARTER_US
    return at_us


def starts(day, period, starts_on):
    """The date on which the period began that a date is in, and on which the next one does."""
    if period is Period.DAY:
        return day, day + timedelta(days=1)
    if period is Period.WEEK:
        began = day - timedelta(days=(day.isoweekday() - starts_on) % 7)
        return began, began + timedelta(days=7)
    first = day.replace(day=1)
    months = [(first - timedelta(days=1)).replace(day=1), first, (first + timedelta(days=31)).replace(day=1)]
    months.append((months[-1] + timedelta(days=31)).replace(day=1))
    begins = []
    for month in months:
        last = ((month + timedelta(days=31)).replace(day=1) - timedelta(days=1)).day
        begins.append(month.replace(day=min(starts_on, last)))
    return max(each for each in begins if each <= day), min(each for each in begins if each > day)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(NAMES), at_us=moments, period=periods, day=st.integers(1, 31))
def test_a_period_begins_with_the_first_moment_of_its_first_day(name, at_us, period, day):
    starts_on = {Period.DAY: 1, Period.WEEK: (day - 1) % 7 + 1, Period.MONTH: day}[period]
    from_us, until_us = around(at_us, period, zone=zone_of(name), starts_on=starts_on)
    assert from_us <= at_us < until_us
    began, ends = starts(date_at(name, from_us), period, starts_on)
    assert (from_us, until_us) == (first_moment(name, began), first_moment(name, ends))
    assert around(from_us, period, zone=zone_of(name), starts_on=starts_on) == (from_us, until_us)
    assert around(until_us - 1, period, zone=zone_of(name), starts_on=starts_on) == (from_us, until_us)
    assert around(until_us, period, zone=zone_of(name), starts_on=starts_on)[0] == until_us


@pytest.mark.parametrize("name", NAMES)
def test_every_date_of_ten_years_has_one_reset_and_none_has_two(name):
    zone, at_us, found = zone_of(name), FROM, []
    while at_us < UNTIL:
        at_us = around(at_us, Period.DAY, zone=zone)[1]
        found.append(date_at(name, at_us))
    assert {(later - before).days for before, later in pairwise(found)} == {1}


def test_a_month_that_starts_on_the_31st_starts_on_the_last_of_shorter_ones():
    at_us, found = FROM, []
    for _ in range(14):
        at_us = around(at_us, Period.MONTH, zone=IN_UTC, starts_on=31)[1]
        found.append(date_at("UTC", at_us).isoformat()[5:])
    assert found[:5] == ["01-31", "02-28", "03-31", "04-30", "05-31"]
    leap = around(
        int(datetime(2024, 2, 10, tzinfo=UTC).timestamp()) * 1_000_000, Period.MONTH, zone=IN_UTC, starts_on=30
    )
    assert date_at("UTC", leap[1]) == date(2024, 2, 29)


def test_a_life_never_ends():
    assert around(FROM, Period.LIFE, zone=IN_UTC) == (0, None)


def test_what_is_recorded_of_a_zone_is_what_its_clocks_show():
    for name in NAMES:
        zone = zone_of(name)
        assert zone.flaw == ""
        assert len(zone.changes_us) < CHANGES_MAX // 2
        for at_us in range(FROM, UNTIL, 977 * 3_600_000_000):
            shown = datetime.fromtimestamp(at_us // 1_000_000, ZoneInfo(name)).replace(tzinfo=UTC)
            assert zone.local_us(at_us) == int(shown.timestamp()) * 1_000_000
    assert moment(FROM, zone_of("Asia/Shanghai")) == "2022-01-01 08:00 Asia/Shanghai"


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../../etc/passwd", "/etc/passwd", "Asia", "a" * 65, "Asia/\0"])
def test_there_is_no_zone_of_another_name(name):
    with pytest.raises(InvalidRequest) as refusal:
        zone_of(name)
    assert refusal.value.code == "unknown_zone"


@pytest.mark.parametrize(
    "zone",
    [
        Zone(name="x", offsets_s=(0, 0)),
        Zone(name="x", offsets_s=(0, 1, 2), changes_us=(5, 5)),
        Zone(name="x", offsets_s=(10**6,)),
    ],
)
def test_a_zone_that_cannot_be_is_seen_to_be_none(zone):
    assert zone.flaw
