"""One thing that was looked at."""

from enum import StrEnum

import msgspec


class Health(StrEnum):
    OK = "ok"
    WARN = "warn"
    """It works, but not as well as it could, or not all of it."""
    FAIL = "fail"
    """`fabric up` will not work like this."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    health: Health
    found: str
    remedy: str = ""
    """What to do about it; empty only when there is nothing to do."""


def ok(name: str, found: str) -> Finding:
    return Finding(name=name, health=Health.OK, found=found)


def warn(name: str, found: str, *, remedy: str) -> Finding:
    return Finding(name=name, health=Health.WARN, found=found, remedy=remedy)


def fail(name: str, found: str, *, remedy: str) -> Finding:
    return Finding(name=name, health=Health.FAIL, found=found, remedy=remedy)
