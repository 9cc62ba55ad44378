"""Moments in price files: from when on prices hold, and when an offer ends."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import PlainValidator
from pydantic_core import PydanticCustomError

from fabric.charging.catalogue import Ends
from fabric.config.sections import Name, Section

STOP: Final = "stop"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_ALLOWED: Final = (
    'a moment with its time zone in quotes, such as "2027-01-01T00:00+08:00" or "2027-01-01 00:00 Asia/Shanghai", which its'
    " clocks show once"
)


def moment_us(given: Any) -> int | None:
    """µs since 1970, UTC, of what a file says; None for anything that isn't one moment.

    Args:
        given: text as ISO 8601 with an offset from UTC, or without one and then a time zone's name; or the date and time with
            an offset that YAML makes of such text without quotes.
    """
    found = _read(given) if isinstance(given, str) else given
    if not isinstance(found, datetime) or found.utcoffset() is None or found < _EPOCH:
        return None
    return (found - _EPOCH) // _MICROSECOND


def _read(text: str) -> datetime | None:
    words = text.split(" ")
    if words[-1][:1].isalpha() and len(words) > 1:
        return _in_zone(" ".join(words[:-1]), words[-1])
    try:
        return datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith("Z") else text)
    except ValueError:
        return None


def _in_zone(text: str, name: str) -> datetime | None:
    """What the clocks of a zone show; None where they show it twice, or never."""
    try:
        zone, local = ZoneInfo(name), datetime.fromisoformat(text)
    except (
        ValueError,
        OSError,
        KeyError,
    ):  # no moment; no such file, a folder, a path that leads elsewhere, or no data at all
        return None
    if local.tzinfo is not None:
        return None
    either = [local.replace(tzinfo=zone, fold=fold) for fold in (0, 1)]
    return either[0] if either[0].utcoffset() == either[1].utcoffset() else None


def _moment(given: Any) -> int:
    found = moment_us(given)
    if found is None:
        raise PydanticCustomError("moment", _ALLOWED)
    return found


Moment = Annotated[int, PlainValidator(_moment)]


class EndsSection(Section):
    """When a subscription ends, and what becomes of those who have it."""

    at: Moment
    then: Name = STOP
    """The subscription that they go on with, or `stop`."""
    rollover: Literal["keep", "expire"] = "expire"
    """What becomes of what would be carried over into the next cycle."""

    def built(self) -> Ends:
        then = "" if self.then == STOP else self.then
        return Ends(at_us=self.at, then=then, keeps_rollover=self.rollover == "keep")
