"""Spot nodes that come and go: a step function of how many are offered, read from a table `t_s,nodes`."""

import csv
import gzip
from pathlib import Path

from fabric.errors import InvalidRequest
from fabric.units import MICROS_PER_S

Offers = tuple[tuple[int, int], ...]
"""(µs since the first arrival, nodes from then on), in order."""


def read_offers(path: Path) -> Offers:
    """The steps.

    Raises:
        InvalidRequest: it has no such columns, a line can't be read, or times go backwards.
    """
    data = path.read_bytes()
    try:
        rows = csv.DictReader((gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode().splitlines())
        steps = [(round(float(row["t_s"]) * MICROS_PER_S), int(row["nodes"])) for row in rows]
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise InvalidRequest(
            f"{path} is no table of t_s,nodes: {type(error).__name__} {error}", code="trace_unreadable"
        ) from None
    if not steps or steps != sorted(steps, key=lambda step: step[0]) or min(min(step) for step in steps) < 0:
        raise InvalidRequest(f"{path} has no steps, or times that go backwards", code="trace_unreadable")
    first_us = steps[0][0]
    return tuple((at_us - first_us, nodes) for at_us, nodes in steps)
