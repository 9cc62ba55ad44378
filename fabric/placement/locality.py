"""Where a job's data lie, and what it costs to bring them elsewhere: seconds that its devices would wait, and egress.

A dataset is a prefix with a size; a node holds so many bytes of it, reads the rest at a measured rate, and lies in a
region. What is fetched while the job trains on what is there already is not waited for: only what exceeds it is *exposed*.
Whole numbers: bytes, µs, and bytes a second. Knows neither queues nor tokens. (Delay scheduling is Zaharia's, EuroSys 2010.)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from fabric.units import MICROS_PER_S, NodeId

RATE_BYTES_PER_S: Final = 100_000_000
"""Assumed of a node that has measured none."""
OVERLAP_US: Final = 10_000_000
"""So much fetching goes on while the gang warms up, or behind the first steps."""
EGRESS_US_PER_GB: Final = 20_000_000
"""What a gigabyte over a region's border counts as, in device-µs: 0.09 USD against 16 USD an H100-hour."""
PATIENCE_PART: Final = 10
"""At most one part in this many of what the job will take is waited for a warmer node."""
PATIENCE_US_MAX: Final = 60_000_000


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """What a job reads."""

    prefix: str
    bytes: int
    region: str = ""
    """"" = it makes no difference."""


class Holdings(msgspec.Struct, frozen=True, kw_only=True):
    """What one node has of datasets, by prefix, and how it gets the rest."""

    bytes_by_prefix: dict[str, int] = {}
    rate_bytes_per_s: int = 0
    """0 = not measured."""
    region: str = ""


def cost_us(data: Iterable[Dataset], node: Holdings | None, *, devices: int) -> int:
    """What running there costs, in device-µs: all devices wait for what is exposed, and egress is paid."""
    at = node or Holdings()
    missing = {each.prefix: max(each.bytes - at.bytes_by_prefix.get(each.prefix, 0), 0) for each in data}
    fetch_us = sum(missing.values()) * MICROS_PER_S // (at.rate_bytes_per_s or RATE_BYTES_PER_S)
    abroad = sum(missing[each.prefix] for each in data if each.region and at.region and each.region != at.region)
    return devices * max(fetch_us - OVERLAP_US, 0) + abroad * EGRESS_US_PER_GB // 10**9


def warmest(
    data: Sequence[Dataset], nodes: Mapping[NodeId, Holdings], *, devices: int
) -> tuple[tuple[NodeId, ...], int]:
    """Nodes that are better than one that holds nothing, the best first, and what the best one saves in µs of the gang."""
    if not data:
        return (), 0
    cold_us = cost_us(data, None, devices=devices)
    costs = {node_id: cost_us(data, held, devices=devices) for node_id, held in nodes.items()}
    better = sorted((cost, node_id) for node_id, cost in costs.items() if cost < cold_us)
    saves_us = (cold_us - better[0][0]) // max(devices, 1) if better else 0
    return tuple(node_id for _, node_id in better), saves_us


def patience_us(*, estimate_us: int | None, saves_us: int) -> int:
    """How long to wait for a warmer node: never longer than it saves, a tenth of the job, or a minute."""
    if estimate_us is None:
        return 0
    return min(estimate_us // PATIENCE_PART, PATIENCE_US_MAX, saves_us)
