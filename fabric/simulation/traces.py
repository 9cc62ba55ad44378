"""Readers of traces: whose they are is found in their first line. All times become µs since the first arrival.

Known are those of Microsoft ITP, Philly (as flattened for Sia), Chronus, Shockwave and openb, the lend-and-reclaim workloads of
this project, and a table of one's own (those of Pollux need what is published of them: `pollux`):

    id,submit_s,duration_s,devices,user,tier,service,per_node,types

of which `submit_s`, `duration_s` and `devices` must be there, in any order. `tier` is enterprise, professional or starter,
`service` inference, training or batch, `types` accelerators separated by `|`.
"""

import csv
import gzip
import io
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fabric.errors import InvalidRequest
from fabric.simulation.shockwave import is_shockwave, read_shockwave
from fabric.simulation.workload import TIERS, Work
from fabric.units import MICROS_PER_S

Row = Mapping[str, str]


def read(path: Path) -> list[Work]:
    """The jobs of a trace, the first to arrive first.

    Raises:
        InvalidRequest: it is none that is known, or a line of it can't be read; the message says which, and why.
    """
    text = io.StringIO(_text(path))
    first = text.readline()
    if is_shockwave(first):
        return sorted(read_shockwave(path), key=lambda work: work.submit_us)
    text.seek(0)
    reader = next((one for needs, one in _READERS if needs <= set(first.strip().split(","))), None)
    if reader is None:
        raise InvalidRequest(
            f"{path}: its first line is {first.strip()[:80]!r}, of no trace that is known here: a table of your own has at"
            " least the columns submit_s,duration_s,devices",
            code="trace_unknown",
        )
    works: list[Work] = []
    for line, row in enumerate(csv.DictReader(text), start=2):
        try:
            work = reader(row, line)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(f"{path}, line {line}: {error}", code="trace_unreadable") from None
        if work is not None and work.devices > 0:
            works.append(work)
    if not works:
        raise InvalidRequest(f"{path} has no job that needs a device", code="trace_empty")
    works.sort(key=lambda work: work.submit_us)
    return works


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"{path} is no table, nor one packed with gzip: {error}", code="trace_unreadable"
        ) from None


def _us(seconds: str) -> int:
    value = round(float(seconds) * MICROS_PER_S)
    if value < 0:
        message = f"{seconds} seconds is before the beginning"
        raise ValueError(message)
    return value


def _itp(row: Row, line: int) -> Work:
    return Work(
        work_id=f"{row['job_id']}-{line}",
        submit_us=_us(row["submission_time"]),
        duration_us=_us(row["duration"]),
        devices=int(row["num_gpu"]),
    )


def _philly(row: Row, line: int) -> Work:
    at = datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC)
    return Work(
        work_id=f"philly-{line}",
        submit_us=round(at.timestamp()) * MICROS_PER_S,
        duration_us=_us(row["duration"]),
        devices=int(row["num_gpus"]),
        user=row["cluster"],
    )


def _chronus(row: Row, line: int) -> Work:
    return Work(
        work_id=f"{row['job_id']}-{line}",
        submit_us=_us(row["submit_time"]),
        duration_us=_us(row["duration"]),
        devices=int(row["num_gpu"]),
        user=row["user"],
    )


def _lend_reclaim(row: Row, line: int) -> Work:
    reserved = row["class"] == "reserved"
    return Work(
        work_id=f"{row['class']}-{line}",
        submit_us=_us(row["submit_s"]),
        duration_us=_us(row["duration_s"]),
        devices=int(row["devices"]),
        user=row["class"],
        tier=0 if reserved else 2,
        service="inference" if reserved else "training",
    )


def _openb(row: Row, line: int) -> Work | None:
    if int(row["num_gpu"]) == 0 or not row["deletion_time"]:
        return None
    submit_us = _us(row["creation_time"])
    return Work(
        work_id=f"{row['name']}-{line}",
        submit_us=submit_us,
        duration_us=max(_us(row["deletion_time"]) - submit_us, 1),
        devices=int(row["num_gpu"]),
        service="inference" if row["qos"] == "LS" else "training",
        types=tuple(row["gpu_spec"].split("|")) if row["gpu_spec"] else (),
    )


def _own(row: Row, line: int) -> Work:
    tier = row.get("tier") or TIERS[-1]
    if tier not in TIERS:
        message = f"tier {tier!r}: choose of {', '.join(TIERS)}"
        raise ValueError(message)
    service = row.get("service") or "training"
    if service not in ("inference", "training", "batch"):
        message = f"service {service!r}: choose of inference, training, batch"
        raise ValueError(message)
    per_node = row.get("per_node")
    return Work(
        work_id=row.get("id") or f"job-{line}",
        submit_us=_us(row["submit_s"]),
        duration_us=_us(row["duration_s"]),
        devices=int(row["devices"]),
        user=row.get("user") or "",
        tier=TIERS.index(tier),
        service=service,
        per_node=int(per_node) if per_node else None,
        types=tuple((row.get("types") or "").split("|")) if row.get("types") else (),
    )


_READERS: Final[tuple[tuple[frozenset[str], Callable[[Row, int], Work | None]], ...]] = (
    (frozenset({"job_id", "submission_time", "duration", "num_gpu"}), _itp),
    (frozenset({"timestamp", "duration", "num_gpus", "cluster"}), _philly),
    (frozenset({"job_id", "user", "num_gpu", "submit_time", "job_type"}), _chronus),
    (frozenset({"class", "submit_s", "duration_s", "devices"}), _lend_reclaim),
    (frozenset({"name", "num_gpu", "gpu_spec", "qos", "creation_time"}), _openb),
    (frozenset({"submit_s", "duration_s", "devices"}), _own),
)


def lines(works: list[Work]) -> Iterator[str]:
    """The jobs as a table of one's own."""
    yield "id,submit_s,duration_s,devices,user,tier,service,per_node,types"
    for work in works:
        submit_s, duration_s = work.submit_us / MICROS_PER_S, work.duration_us / MICROS_PER_S
        yield (
            f"{work.work_id},{submit_s:g},{duration_s:g},{work.devices},{work.user},{TIERS[work.tier]},{work.service},"
            f"{work.per_node or ''},{'|'.join(work.types)}"
        )
