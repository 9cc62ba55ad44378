"""What clocks of time zones show, as this machine's time zone data have it: the gate is told of it, and reads none itself."""

from bisect import bisect_left
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from typing import Final
from zoneinfo import ZoneInfo

from fabric.api.gate_port import GatePort
from fabric.errors import InvalidRequest
from fabric.gate.limit_events import LearnZone
from fabric.gate.periods import UTC as UTC_NAME
from fabric.gate.periods import Zone
from fabric.gate.questions import ZonesOf

FROM_S: Final = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp())
UNTIL_S: Final = int(datetime(2061, 1, 1, tzinfo=UTC).timestamp())
"""Between these a zone's changes are told. What clocks show after the last one is taken to stay."""
_WEEK_S: Final = 7 * 86_400
_NAME_MAX: Final = 64


@cache
def zone_of(name: str) -> Zone:
    """A zone by its name in the IANA database, such as Asia/Shanghai.

    Raises:
        InvalidRequest: there is none of that name here.
    """
    try:
        clock = ZoneInfo(name if len(name) <= _NAME_MAX else "")
    except (ValueError, OSError, KeyError):  # no such file, a folder, a path that leads elsewhere, or no data at all
        raise InvalidRequest(
            f"there is no time zone {name[:_NAME_MAX]!r} on the fabric's machine: use a name such as Asia/Shanghai or UTC",
            code="unknown_zone",
        ) from None
    offsets, changes = [_offset_s(clock, FROM_S)], []
    for since_s in range(FROM_S, UNTIL_S, _WEEK_S):
        if _offset_s(clock, since_s + _WEEK_S) != offsets[-1]:
            seconds = range(since_s, since_s + _WEEK_S + 1)
            at = bisect_left(seconds, True, key=lambda at_s: _offset_s(clock, at_s) != offsets[-1])  # noqa: FBT003
            changes.append(seconds[at] * 1_000_000)
            offsets.append(_offset_s(clock, seconds[at]))
    return Zone(name=name, offsets_s=tuple(offsets), changes_us=tuple(changes))


def _offset_s(clock: ZoneInfo, at_s: int) -> int:
    offset = datetime.fromtimestamp(at_s, clock).utcoffset()
    return 0 if offset is None else int(offset.total_seconds())


async def make_known(port: GatePort, name: str) -> None:
    """Tell the gate of a zone that it doesn't know, or knows otherwise.

    Raises:
        InvalidRequest: there is none of that name here.
    """
    if name == UTC_NAME:
        return
    zone = zone_of(name)
    known = await port.ask(ZonesOf())
    if zone not in (known if isinstance(known, list) else []):
        await port.decide([LearnZone(zone=zone)])


def newer(known: Iterable[Zone]) -> list[LearnZone]:
    """What to tell the gate of zones that it knows otherwise than this machine: their clocks go otherwise from now on."""
    return [LearnZone(zone=here) for zone in known if (here := _here(zone)) != zone]


def _here(zone: Zone) -> Zone:
    """As this machine knows it; one that it doesn't know stays as it was recorded."""
    try:
        return zone_of(zone.name)
    except InvalidRequest:
        return zone
