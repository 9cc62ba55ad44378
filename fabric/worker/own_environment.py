"""The environment of a process in which one job after the other runs: looked at, and put back, without a look at each variable.

Python keeps it as bytes and decodes each variable whenever it is read, which for a process of Ray's, with a hundred of them,
takes longer than all else that is put back after a function.
"""

import os
from collections.abc import Container
from typing import Final, TypeAlias

from fabric.system.inheritance import withheld

Environment: TypeAlias = dict[bytes, bytes]

_own: Final = os.environ
"""A job may put another mapping in its place, which is none of the process's."""
_own_bytes: Final = os.environb
_withheld: tuple[Environment, tuple[str, ...]] = {}, ()
"""What was found last, and of which environment."""


def environment_now() -> Environment:
    """A copy of it."""
    return dict(_kept())


def put_back(before: Environment) -> None:
    """Make it what it was. Only what differs is set: that costs as much as reading ten."""
    os.environ, os.environb = _own, _own_bytes
    now = environment_now()
    if now == before:
        return
    for name in now.keys() - before.keys():
        del _own_bytes[name]
    for name, value in before.items():
        if now.get(name) != value:
            _own_bytes[name] = value


def withhold(given: Container[str]) -> None:
    """Take away what a job's code in this process must not find, but for what its owner has given it by that name."""
    global _withheld  # noqa: PLW0603
    now = environment_now()
    if now != _withheld[0]:
        _withheld = now, tuple(withheld(_own, apart=False))
    for name in _withheld[1]:
        if name not in given:
            del _own[name]


def _kept() -> Environment:
    kept: Environment = _own._data  # type: ignore[attr-defined]  # noqa: SLF001  # without decoding any of it
    return kept
