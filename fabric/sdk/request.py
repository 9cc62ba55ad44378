"""From what a person writes to a job's spec: accelerators, amounts, durations. Says no before anything is sent."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final, Literal, NamedTuple

from fabric.errors import InvalidRequest
from fabric.units import Fraction, parse_ct, parse_fraction
from fabric.wire import fabric_pb2 as pb

Accelerators = str | Sequence[str]
Tokens = int | str | Decimal
Seconds = int | float

ANY: Final = "any"
STOP_SIGNALS: Final = ("TERM", "INT", "HUP", "USR1", "USR2")
STOP_SIGNAL_VARIABLE: Final = "FABRIC_STOP_SIGNAL"
_ACCELERATOR: Final = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})(?::(?:(-?\d{1,9})(?:-(\d{1,9}))?|(\d{1,9}[/.]\d{1,9})))?", re.ASCII
)
_SECONDS_MAX: Final = 10 * 366 * 86_400


class Wanted(NamedTuple):
    """Types in order of preference (none = any), and how many of one of them."""

    types: tuple[str, ...]
    devices: int
    devices_least: int | None = None
    """Of a range: its lower end. None = exactly `devices`."""
    fraction: Fraction | None = None
    """Of its one device it wants such a part; None = whole devices."""


def parse_accelerators(given: Accelerators) -> Wanted:
    """What a person writes: "H100:2", "any", ["H100:2", "A100:2"]; a range for an elastic job, "H100:2-4" or "any:1-8"; a part
    of one device, "H100:1/4".

    Raises:
        InvalidRequest: not of that form, a count below 1, a range that ends before it begins, or different counts for
            different types.
    """
    choices = [given] if isinstance(given, str) else list(given)
    if not choices:
        raise InvalidRequest(f'name an accelerator such as "H100:2", or "{ANY}"', code="invalid_accelerators")
    types: list[str] = []
    counts: set[tuple[int, int | None, Fraction | None]] = set()
    for choice in choices:
        match = _ACCELERATOR.fullmatch(choice.strip()) if isinstance(choice, str) else None
        if match is None:
            raise InvalidRequest(
                f'{choice!r} is not an accelerator: write a type and a count such as "H100:2", "H100:2-4" or "H100:1/4", or'
                f' "{ANY}"',
                code="invalid_accelerators",
                given=str(choice),
            )
        types.append(match[1])
        if match[4]:
            counts.add((1, None, parse_fraction(match[4])))
            continue
        count, most = int(match[2] or 1), int(match[3]) if match[3] else None
        if most is not None and most < count:
            raise InvalidRequest(
                f'{choice!r} ends before it begins: write the smaller count first, such as "H100:2-4"',
                code="invalid_accelerators",
                given=choice,
            )
        if count < 1:
            raise InvalidRequest(
                f"{choice!r} asks for {count} devices: ask for at least 1", code="invalid_accelerators", given=choice
            )
        counts.add((count, None, None) if most in (None, count) else (most, count, None))
    if len(counts) > 1:
        raise InvalidRequest(
            f"{', '.join(choices)}: a job runs on one type, with one count whichever it is: write the same count for all",
            code="one_count",
        )
    named = () if ANY in types else tuple(dict.fromkeys(types))
    return Wanted(named, *counts.pop())


def duration_us(name: str, seconds: Seconds) -> int:
    """Seconds as µs, if they are a sensible duration."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= _SECONDS_MAX:
        raise InvalidRequest(
            f"{name}={seconds!r}: give seconds, more than 0 and at most {_SECONDS_MAX}",
            code="invalid_duration",
            given=str(seconds),
        )
    return round(seconds * 1_000_000)


def stop_signal_of(given: str) -> str:
    """The signal by which a job's program is told to save: "USR1" or "SIGUSR1"."""
    short = given.upper().removeprefix("SIG") if isinstance(given, str) else ""
    if short not in STOP_SIGNALS:
        raise InvalidRequest(
            f"stop_signal={given!r}: choose one of {', '.join(STOP_SIGNALS)}",
            code="invalid_stop_signal",
            given=str(given),
        )
    return short


def count(name: str, given: int | None, *, at_least: int) -> int | None:
    """A whole number that isn't too small."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not at_least <= given < 2**31:
        raise InvalidRequest(
            f"{name}={given!r}: give a whole number of at least {at_least}", code="invalid_count", given=str(given)
        )
    return given


def tags_of(given: Sequence[str]) -> list[str]:
    """Words to find jobs by; what each may be is the fabric's to say."""
    if isinstance(given, str) or not all(isinstance(tag, str) for tag in given):
        raise InvalidRequest('tags are a list of words, such as ["exp7", "owner=li"]', code="invalid_tags")
    return list(given)


def build_spec(
    *,
    name: str,
    kind: str,
    tokens: Tokens,
    accelerators: Accelerators,
    service: str = "training",
    hold: Literal["full", "rolling"] = "full",
    preemptible: bool = True,
    max_retries: int = 0,
    time_limit: Seconds | None = None,
    grace: Seconds | None = None,
    devices_per_node: int | None = None,
    mix: str = "never",
    prefer: str = "",
    auto_park: Seconds | None = None,
    data: Mapping[str, int] | None = None,
    estimate: Seconds | None = None,
    tags: Sequence[str] = (),
) -> pb.JobSpec:
    """The spec of a job, checked."""
    wanted = parse_accelerators(accelerators)
    if hold not in {"full", "rolling"}:
        raise InvalidRequest(f'hold={hold!r}: choose "full" or "rolling"', code="invalid_hold", given=str(hold))
    return pb.JobSpec(
        name=name,
        kind=kind,
        service=service,
        accelerators=wanted.types,
        devices=wanted.devices,
        devices_least=wanted.devices_least,
        fraction=wanted.fraction,
        devices_per_node=count("devices_per_node", devices_per_node, at_least=1),
        limit_uhs=parse_ct(tokens),
        hold=hold,
        preemptible=preemptible,
        grace_us=None if grace is None else duration_us("grace", grace),
        time_limit_us=None if time_limit is None else duration_us("time_limit", time_limit),
        max_retries=count("max_retries", max_retries, at_least=0) or 0,
        tags=tags_of(tags),
        mix=mix,
        prefer=prefer,
        data=[pb.Dataset(prefix=prefix, bytes=size) for prefix, size in (data or {}).items()],
        estimate_us=None if estimate is None else duration_us("estimate", estimate),
        auto_park_us=None if auto_park is None else duration_us("auto_park", auto_park),
    )
