"""The workload of Shockwave, with what its authors divide by to say how fair a scheduler is.

A job adapts its batch size, so it takes less than its trace says: at most the least of the completion times that are published
of it. `published_results.json.gz` beside the trace has these, and what each job would take with its part of the cluster
(a completion time by its ρ).
"""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any, Final

from fabric.errors import InvalidRequest
from fabric.simulation.workload import Work
from fabric.units import MICROS_PER_S

PUBLISHED: Final = "published_results.json.gz"
COLUMNS: Final = 12
"""Of each line, separated by tabs: the kind of job first; seventh its devices; last its duration and its arrival."""


def is_shockwave(line: str) -> bool:
    """Whether a line is one of the workload."""
    parts = line.rstrip("\n").split("\t")
    return len(parts) == COLUMNS and parts[6].isdigit()


def read_shockwave(path: Path) -> list[Work]:
    """The jobs.

    Raises:
        InvalidRequest: a line can't be read.
    """
    runs = _published(path.with_name(PUBLISHED))
    works = []
    for at, row in enumerate(csv.reader(io.StringIO(path.read_text(encoding="utf-8")), delimiter="\t")):
        try:
            duration_s, arrival_s, devices = float(row[-2]), float(row[-1]), int(row[6])
        except (ValueError, IndexError) as error:
            raise InvalidRequest(f"{path}, line {at + 1}: {error}", code="trace_unreadable") from None
        least_s = min((run["jct_list"][at] for run in runs), default=duration_s)
        alone_s = runs[0]["jct_list"][at] / runs[0]["ftf_list"][at] if runs else None
        works.append(
            Work(
                work_id=f"job-{at}",
                submit_us=round(arrival_s * MICROS_PER_S),
                duration_us=round(min(duration_s, least_s) * MICROS_PER_S),
                devices=devices,
                user=f"user-{at}",
                alone_us=None if alone_s is None else round(alone_s * MICROS_PER_S),
            )
        )
    return works


def _published(path: Path) -> list[dict[str, Any]]:
    """What is published of the simulations; nothing where the file isn't beside the trace."""
    if not path.exists():
        return []
    runs = json.loads(gzip.decompress(path.read_bytes()))
    return [run for run in runs if run["kind"] == "simulation"]
