"""The workloads of Pollux, and how long their jobs run: what a run of Tiresias published of each kind of job, with nothing in its way.

The workloads say what a job trains and on how many devices, not for how long. Of each kind (application, devices, batch
size) hundreds of completion times are published, and the least of them that several others share is what the job takes
alone.
"""

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fabric.errors import InvalidRequest
from fabric.simulation.workload import Work
from fabric.units import MICROS_PER_S

LOADS: Final = ("0.5", "1.0", "1.5", "2.0")
COUNT: Final = 8
"""Workloads of each load."""
_ALIKE: Final = 1.01
_SHARED_BY: Final = 3
Kind = tuple[str, int, int]
Rows = list[dict[str, str]]


def read_pollux(folder: Path) -> dict[str, list[tuple[list[Work], float]]]:
    """By load, each of its workloads with the mean completion time in hours that Tiresias is published to have.

    Raises:
        InvalidRequest: the folder hasn't them all.
    """
    try:
        rows = {(load, at): _rows(folder, load, at) for load in LOADS for at in range(1, COUNT + 1)}
        published = {load: _summary(folder / f"tiresias-{load}") for load in LOADS}
    except OSError as error:
        raise InvalidRequest(
            f"{folder} is not the folder of the Pollux workloads: {error}", code="trace_unreadable"
        ) from None
    times: dict[Kind, list[float]] = {}
    for (load, at), found in rows.items():
        for row in found:
            times.setdefault(_kind(row), []).append(published[load][f"workload-{at}"][row["name"]])
    alone = {kind: _alone(each) for kind, each in times.items()}
    return {
        load: [
            (list(_works(rows[load, at], alone)), _mean_h(published[load][f"workload-{at}"]))
            for at in range(1, COUNT + 1)
        ]
        for load in LOADS
    }


def _alone(times: list[float]) -> float:
    """The least time that some others are as good as; where none of the best tenth is such, the least."""
    ordered = sorted(times)
    for at, time in enumerate(ordered[: len(ordered) // 10]):
        if ordered[at + _SHARED_BY] <= time * _ALIKE:
            return time
    return ordered[0]


def _works(rows: Rows, alone: dict[Kind, float]) -> Iterator[Work]:
    for row in rows:
        kind = _kind(row)
        yield Work(
            work_id=row["name"],
            submit_us=round(float(row["time"]) * MICROS_PER_S),
            duration_us=round(alone[kind] * MICROS_PER_S),
            devices=kind[1],
        )


def _kind(row: dict[str, str]) -> Kind:
    return row["application"], int(row["num_replicas"]), int(row["batch_size"])


def _mean_h(times: dict[str, float]) -> float:
    return sum(times.values()) / len(times) / 3_600


def _rows(folder: Path, load: str, at: int) -> Rows:
    name = "workloads" if load == "1.0" else f"workloads-{load}"
    with (folder / name / f"workload-{at}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _summary(folder: Path) -> dict[str, dict[str, float]]:
    plain = folder / "summary.json"
    data = plain.read_bytes() if plain.exists() else gzip.decompress((folder / "summary.json.gz").read_bytes())
    found: dict[str, dict[str, float]] = json.loads(data)["jcts"]
    return found
