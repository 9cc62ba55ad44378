"""The machine: its clock, memory, disks, ports, devices and key files. Leaves everything as it was."""

import datetime as dt
import os
import shutil
import socket
import stat
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fabric.config.sections import TlsFiles
from fabric.doctor.findings import Finding, fail, ok, warn
from fabric.node.meters import VENDORS, LateGauge

_MIB: Final = 2**20
_SHM_MIN: Final = 512 * _MIB
_DISK_MIN: Final = 100 * _MIB
_DISK_GOOD: Final = 2048 * _MIB
_MEMORY_PER_NODE: Final = 400 * _MIB
_FSYNC_SLOW_US: Final = 20_000
_FSYNCS: Final = 5
_TOOL_TIMEOUT_S: Final = 10
_NOT_BEFORE: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_NOT_AFTER: Final = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)
_RENEW: Final = dt.timedelta(days=30)
_MODEL_FILES: Final = ("config.json", "*.safetensors", "tokenizer*")
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_READINGS: Final = 2


class Counters(NamedTuple):
    """Which devices' use can be read, by the names the vendor's counters have for them."""

    readable: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    why: str = ""
    """Why none could be looked at."""


def check_clock(now: dt.datetime, *, last_written: dt.datetime | None = None) -> Finding:
    """Against what can't be: a year before this was written, or a time before the journal's last."""
    found = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    remedy = "set the clock and keep it set: timedatectl set-ntp true"
    if not _NOT_BEFORE <= now < _NOT_AFTER:
        return fail("clock", found, remedy=remedy)
    if last_written is not None and now < last_written - dt.timedelta(seconds=60):
        return warn(
            "clock", f"{found}, before the journal's last write at {last_written:%Y-%m-%d %H:%M:%S}", remedy=remedy
        )
    return ok("clock", found)


def check_shared_memory(free: int | None) -> Finding:
    """`free` bytes of /dev/shm, where Ray keeps its objects; None where there is none."""
    if free is None:
        return warn(
            "shared memory", "no /dev/shm", remedy="Ray falls back to files, which is slow: mount a tmpfs there"
        )
    if free < _SHM_MIN:
        remedy = "give it 2 GiB or more: mount -o remount,size=2G /dev/shm, or docker run --shm-size=2g"
        return warn("shared memory", f"{free // _MIB} MiB free in /dev/shm", remedy=remedy)
    return ok("shared memory", f"{free // _MIB} MiB free in /dev/shm")


def check_memory(free: int, *, nodes: int) -> Finding:
    """Whether so many simulated nodes fit."""
    needed = nodes * _MEMORY_PER_NODE
    found = f"{free // _MIB} MiB free, {nodes} simulated nodes take about {needed // _MIB}"
    return (
        ok("memory", found) if free >= needed else warn("memory", found, remedy="list fewer nodes in the cluster file")
    )


def check_port(host: str, port: int, *, name: str) -> Finding:
    """Whether it can be listened to. 0 = any, which always can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            remedy = (
                f"end what listens there (`fabric down`, if it is a fabric), set another port for {name}, or have"
                " `fabric up --any-port` choose"
            )
            return fail(name, f"{host}:{port}: {error.strerror}", remedy=remedy)
    return ok(name, f"{host}:{port} is free")


def check_disk(path: Path, *, name: str) -> Finding:
    """The nearest directory that exists: writable, with room, and how long an fsync takes there."""
    folder = next(parent for parent in (path, *path.parents) if parent.is_dir())
    try:
        free = shutil.disk_usage(folder).free
        fsync_us = _time_fsync(folder)
    except OSError as error:
        return fail(
            name, f"{folder}: {error.strerror}", remedy=f"make {folder} writable, or name another path for {name}"
        )
    found = f"{folder}: {free // _MIB} MiB free, fsync {fsync_us / 1000:.1f} ms"
    if free < _DISK_MIN:
        return fail(name, found, remedy="free some space: a full disk stops the gate at its next commit")
    if free < _DISK_GOOD:
        return warn(name, found, remedy="free some space: 2 GiB or more")
    if fsync_us > _FSYNC_SLOW_US:
        return warn(name, found, remedy="every batch of decisions waits for one fsync: use a local SSD")
    return ok(name, found)


def check_signing_key(path: Path) -> Finding:
    """There or to be made, and nobody else's to read."""
    if not path.exists():
        return ok("signing key", f"{path} will be made")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS:
        return fail("signing key", f"{path} can be read by others (mode {mode:o})", remedy=f"chmod 600 {path}")
    if not os.access(path, os.R_OK):
        return fail("signing key", f"{path} can't be read", remedy=f"chown it to the user who runs the gate: {path}")
    return ok("signing key", f"{path}, mode {mode:o}")


def check_tls(files: TlsFiles, *, now: dt.datetime) -> Finding:
    """Readable, a pair, and in their time."""
    try:
        certificate = x509.load_pem_x509_certificate(files.cert.read_bytes())
        key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    except OSError as error:
        return fail(
            "tls", f"{error.filename}: {error.strerror}", remedy="let rpc.tls name readable PEM files, or write auto"
        )
    except (ValueError, TypeError) as error:
        return fail(
            "tls", f"not PEM, or locked by a password: {error}", remedy="give rpc.tls a PEM pair without password"
        )
    if certificate.public_key() != key.public_key():
        return fail("tls", "the key is not the certificate's", remedy="let rpc.tls name a cert and its own key")
    until = certificate.not_valid_after_utc
    found = f"{files.cert}, good until {until:%Y-%m-%d}"
    if not certificate.not_valid_before_utc <= now < until:
        return fail("tls", found, remedy="renew the certificate, or check the clock")
    return warn("tls", found, remedy="renew the certificate") if until - now < _RENEW else ok("tls", found)


def check_model(name: str, folder: Path) -> Finding:
    """Whether a model's folder holds one in Hugging Face's form. It may lie on the nodes alone, and not here."""
    subject = f"model {name}"
    if not folder.is_dir():
        remedy = "it must lie there on every node that may serve it; or use archive:KEY or job:ID"
        return warn(subject, f"{folder} is no folder on this machine", remedy=remedy)
    lacks = [what for what in _MODEL_FILES if not any(folder.glob(what))]
    if lacks:
        return fail(subject, f"{folder} has no {', no '.join(lacks)}", remedy="name a folder in Hugging Face's form")
    return ok(subject, str(folder))


def check_accelerators(tools: dict[str, str | None]) -> list[Finding]:
    """What the vendors' tools say, as `ask_tools` heard it: None where there is no such tool."""
    findings = []
    for vendor in VENDORS:
        tool, kind = vendor.tool, f"{vendor.title} devices"
        said = tools.get(tool)
        if said is None:
            findings.append(ok(kind, f"none: no {tool}"))
        elif said:
            findings.append(ok(kind, said))
        else:
            remedy = f"run {tool} and mend the driver it complains about"
            findings.append(fail(kind, f"{tool} is there and lists no device", remedy=remedy))
    return findings


def check_meters(tools: dict[str, str | None], seen: dict[str, Counters]) -> list[Finding]:
    """Whether what is charged for can be read, of what the vendors' tools list; `seen` as `ask_counters` found it."""
    findings = []
    for vendor in VENDORS:
        kind = f"{vendor.title} counters"
        if tools.get(vendor.tool) is None:
            continue
        found = seen[vendor.tool]
        if found.unreadable or not found.readable:
            names = ", ".join(found.unreadable) or "none of its devices"
            remedy = (
                "they are not sold until they can be read, and what runs on them is charged as estimated: install"
                " nvidia-ml-py where the node agent runs, let its user ask the driver, and restart the driver"
            )
            findings.append(fail(kind, f"can't be read: {names}{found.why and f' ({found.why})'}", remedy=remedy))
        else:
            findings.append(ok(kind, f"{len(found.readable)} devices can be read"))
    return findings


def ask_counters() -> dict[str, Counters]:
    """Reads every device twice: some counters tell only what happened between two readings."""
    found = {}
    for vendor in VENDORS:
        gauge = LateGauge([vendor.gauge])
        percents = [gauge() for _ in range(_READINGS)][-1] if shutil.which(vendor.tool) else {}
        unreadable = tuple(name for name in gauge.names if name not in percents)
        found[vendor.tool] = Counters(readable=tuple(percents), unreadable=unreadable, why="; ".join(gauge.why))
    return found


def ask_tools() -> dict[str, str | None]:
    """The devices each vendor's tool lists; "" where it fails, None where it isn't there."""
    return {vendor.tool: _ask(vendor.tool, vendor.lists) for vendor in VENDORS}


def free_shared_memory() -> int | None:
    shm = Path("/dev/shm")  # noqa: S108 (it is looked at, not written to)
    return shutil.disk_usage(shm).free if shm.is_dir() else None


def free_memory() -> int:
    return int(psutil.virtual_memory().available)


def _ask(tool: str, arguments: Sequence[str]) -> str | None:
    path = shutil.which(tool)
    if path is None:
        return None
    try:
        said = subprocess.run(  # noqa: S603 (a vendor's tool, without a shell)
            [path, *arguments], capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return ", ".join(line.strip() for line in said.stdout.splitlines() if line.strip())


def _time_fsync(folder: Path) -> int:
    """The median of some, in µs."""
    took = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(_FSYNCS):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter_ns()
            os.fsync(file.fileno())
            took.append((time.perf_counter_ns() - began) // 1000)
    return int(statistics.median(took))
