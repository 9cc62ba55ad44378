"""Moments as people name them on a command line: a date, a date and time, or how long ago."""

import datetime as dt
import re
from typing import Annotated, Final

import typer

from fabric.errors import InvalidRequest

_AGO: Final = re.compile(r"(\d{1,6})\s*(min|h|d|w)", re.ASCII)
_UNITS: Final = {"min": "minutes", "h": "hours", "d": "days", "w": "weeks"}

Since = Annotated[
    str, typer.Option(help="From then on: a date, a time such as 2026-11-25T14:30, or 90min, 24h, 7d, 2w ago.")
]
Until = Annotated[str, typer.Option(help="Before then; written like --since.")]


def parse_moment(text: str, *, now: dt.datetime | None = None) -> int | None:
    """µs since the epoch; None for "". What names no time zone is this machine's; a date is its first moment.

    Raises:
        InvalidRequest: it is none of these.
    """
    plain = text.strip()
    if not plain:
        return None
    if found := _AGO.fullmatch(plain):
        ago = dt.timedelta(**{_UNITS[found[2]]: int(found[1])})
        return _us((now or dt.datetime.now().astimezone()) - ago)
    try:
        return _us(dt.datetime.fromisoformat(plain).astimezone())
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{text!r} is no moment: write 2026-11-25, 2026-11-25T14:30, or 90min, 24h, 7d, 2w for so long ago",
            code="invalid_time",
        ) from None


def _us(moment: dt.datetime) -> int:
    return max(0, round(moment.timestamp() * 1_000_000))
