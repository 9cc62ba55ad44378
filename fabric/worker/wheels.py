"""Packages that are installed before a job's devices burn: wheels alone, whose installation runs nobody's code.

A node agent does it, for a while, and only for names that an index has (`is_plain`); everything else, and what takes
longer, is done by the lease itself, at its cost (`installation`). What no index has is found out here, so that such a job
ends with the reason and burns nothing.
"""

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from fabric.system.inheritance import passed_on
from fabric.worker.environments import Environment, build_command

PREPARE_S: Final = 120.0
"""How long a job may wait for its wheels, on devices that it doesn't pay for yet."""
AT_ONCE: Final = 2
"""So many are installed at once on a machine."""
_FLAGS: Final = frozenset(
    ("--pre", "--no-deps", "--upgrade", "-U", "--prefer-binary", "--no-index", "--no-cache-dir", "--no-cache")
)
_ADDRESSES: Final = frozenset(("--index-url", "-i", "--extra-index-url"))
_ADDRESS: Final = re.compile(r"https?://[^\s]+")
_CONFIGURE: Final = ("PIP_", "UV_")
_TOLD_CHARS: Final = 1_500
_VERSIONS: Final = re.compile(r"^Available versions: (.*)$", re.MULTILINE)


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """How it went."""

    done: bool = False
    missing: str = ""
    """What no index has, and what the installer said; "" = it may still be installed by the lease."""


def is_plain(wanted: Environment, variables: Mapping[str, str]) -> bool:
    """Whether nothing of it could make the installer run or read what isn't an index's.

    Args:
        wanted: what is to be installed.
        variables: the job's own, which configure an installer too.
    """
    if any(name.upper().startswith(_CONFIGURE) for name in variables):
        return False
    options = list(wanted.options)
    while options:
        name, equals, value = options.pop(0).partition("=")
        if name in _FLAGS and not equals:
            continue
        if name not in _ADDRESSES:
            return False
        if not equals:
            value = options.pop(0) if options else ""
        if not _ADDRESS.fullmatch(value):
            return False
    return all(_requirement(word) is not None for word in wanted.packages)


async def prepare(folder: Path, wanted: Environment, *, within_s: float) -> Prepared:
    """Install it into a folder, if that can be done with wheels in time."""
    with tempfile.TemporaryDirectory(prefix="fabric-wheels-") as home:
        environment = {**passed_on(os.environ), "HOME": home, "TMPDIR": home}
        try:
            async with asyncio.timeout(within_s):
                code, said = await _run(
                    [*build_command(folder), "--wheels"], home, environment, given=msgspec.json.encode(wanted)
                )
                if code == 0:
                    return Prepared(done=True)
                return Prepared(missing=await _missing(wanted, said, home, environment))
        except TimeoutError:
            return Prepared()


async def _missing(wanted: Environment, said: str, home: str, environment: Mapping[str, str]) -> str:
    """Which package can't be had in any form, with what the installer said; "" if there is none such."""
    options = [
        word for word in wanted.options if word not in ("--no-deps", "--upgrade", "-U", "--prefer-binary", "--no-cache")
    ]
    for word in wanted.packages:
        requirement = _requirement(word)
        if requirement is None or (requirement.marker is not None and not requirement.marker.evaluate()):
            continue
        asked = [
            sys.executable,
            "-m",
            "pip",
            "index",
            "versions",
            "--disable-pip-version-check",
            *options,
            requirement.name,
        ]
        code, answer = await _run(asked, home, environment)
        if code != 0 or not _is_met(requirement, answer):
            return f"{word[:200]} can't be had from the package index: {said[-_TOLD_CHARS:].strip()}"
    return ""


def _is_met(requirement: Requirement, answer: str) -> bool:
    found = _VERSIONS.search(answer)
    if found is None:
        return True
    for word in found[1].split(","):
        with suppress(InvalidVersion):
            if requirement.specifier.contains(Version(word.strip()), prereleases=True):
                return True
    return False


async def _run(command: list[str], home: str, environment: Mapping[str, str], *, given: bytes = b"") -> tuple[int, str]:
    """A command's exit code, and what it said; ended with all that it started if it is not waited for."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=home,
        env=dict(environment),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said, _ = await process.communicate(given)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    return process.returncode or 0, said.decode(errors="replace")


def _requirement(word: str) -> Requirement | None:
    """A package by its name, and maybe its versions; None for anything else."""
    try:
        found = Requirement(word)
    except InvalidRequirement:
        return None
    return found if found.url is None and not word.startswith("-") else None
