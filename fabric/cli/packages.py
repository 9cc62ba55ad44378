"""The packages that a job needs, as people name them on the command line."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fabric.errors import InvalidRequest

_OPTIONS: Final = ("-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--pre", "--no-binary", "--only-binary",
                   "--prefer-binary", "--trusted-host", "--no-index")  # fmt: skip
"""Of a file of requirements: they hold for all of it, and are handed on."""


def runtime_env_of(given: str, *, requirements: Path | None, pip: Sequence[str]) -> dict[str, Any] | None:
    """The runtime_env of a job; None if nothing is named.

    Args:
        given: JSON, or the name of a file of it.
        requirements: a file of packages.
        pip: packages.

    Raises:
        InvalidRequest: `invalid_runtime_env`, `invalid_requirements`.
    """
    found = _read(given) if given else {}
    packages, options = _listed(requirements) if requirements is not None else ([], [])
    packages += pip
    if packages or options:
        tool = "uv" if "uv" in found else "pip"
        before = found.get(tool, [])
        fields = dict(before) if isinstance(before, dict) else {"packages": before}
        name = "uv_pip_install_options" if tool == "uv" else "pip_install_options"
        fields["packages"] = [*fields.get("packages", []), *packages]
        if options:
            fields[name] = [*fields.get(name, []), *options]
        found[tool] = fields
    return found or None


def _read(given: str) -> dict[str, Any]:
    text, where = given, "--runtime-env"
    if not given.lstrip().startswith("{"):
        where = given
        if not os.path.isfile(given):  # noqa: PTH113  # Path.is_file raises for what can't be a name
            raise InvalidRequest(
                f'--runtime-env {given[:100]!r} is neither JSON nor a file: write {{"pip": ["numpy"]}}, or name a file of it',
                code="invalid_runtime_env",
            )
        text = Path(given).read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{where} is not JSON: {error}", code="invalid_runtime_env") from None
    if not isinstance(found, dict):
        raise InvalidRequest(
            f'{where}: a runtime_env is an object, such as {{"pip": ["numpy"]}}', code="invalid_runtime_env"
        )
    return found


def _listed(file: Path) -> tuple[list[str], list[str]]:
    """The packages that a file names, and the options that hold for all of them."""
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    packages: list[str] = []
    options: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition(" #")[0].strip()
        if not words or words.startswith("#"):
            continue
        if not words.startswith("-"):
            if "--hash" in words:
                raise _refused(file, number, words, "hashes can't be checked there: leave them out")
            packages.append(words)
            continue
        option, _, value = words.replace("=", " ", 1).partition(" ")
        if option not in _OPTIONS:
            raise _refused(
                file, number, words, "write its packages into this file, or send the files with --working-dir"
                f' and say --runtime-env \'{{"pip": ["-r", "{file.name}"]}}\''
            )  # fmt: skip
        options += [option, *filter(None, [value.strip()])]
    return packages, options


def _refused(file: Path, number: int, line: str, remedy: str) -> InvalidRequest:
    return InvalidRequest(f"{file}, line {number}, {line[:100]!r}: {remedy}", code="invalid_requirements", line=number)
