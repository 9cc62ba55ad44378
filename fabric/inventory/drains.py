"""Notices that Ray gives of nodes that will go: a spot reclaim, an autoscaler, KubeRay or `ray drain-node` drains a node, with
a deadline at which its machine is gone. To the gate that is an operator's drain (see `offering`): what runs there saves and
leaves in time.

Asked where Ray Train asks too; Ray has no public way to it. Pure but for `noticed`.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

import ray
import structlog
from ray._private.state import state

LEAVE_US: Final = 1_000_000
"""For the processes to be ended and the devices to be read before the machine goes, where the notice leaves time for it."""
NO_BOUND_US: Final = 2**53
"""A drain without a deadline: every job has its own grace."""
_log = structlog.get_logger(__name__)


class Notices(NamedTuple):
    """What Ray says of the nodes that it drains."""

    gone_at_us: Mapping[str, int]
    """By its id of the node: when it will be gone, µs since 1970; 0 = it doesn't say."""
    now_us: int
    """By the same clock, when it said so."""


async def noticed() -> Notices | None:
    """Ask Ray; None if it doesn't answer, which says nothing of any node."""
    try:
        found: Mapping[str, int] = await asyncio.to_thread(state.get_draining_nodes)
    except (ray.exceptions.RayError, AttributeError, RuntimeError) as error:
        _log.warning("drains_unknown", why=str(error)[:200])
        return None
    gone_at_us = {ray_id: 1_000 * deadline_ms for ray_id, deadline_ms in found.items()}
    return Notices(gone_at_us, time.time_ns() // 1_000)


def grace_us_of(gone_at_us: int, *, now_us: int) -> int:
    """How long jobs may take to leave."""
    left_us = gone_at_us - now_us
    return max(left_us - min(LEAVE_US, left_us // 4), 0) if gone_at_us else NO_BOUND_US
