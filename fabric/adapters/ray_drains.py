"""Notices that Ray gives of nodes that will go: a spot reclaim, an autoscaler, KubeRay or `ray drain-node` drains a node, with
a deadline at which its machine is gone. To the gate that is an operator's drain: what runs there saves and leaves in time.

Asked where Ray Train asks too; Ray has no public way to it. Pure but for `draining` and `look`.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Final

import ray
import structlog
from ray._private.state import state

from fabric.adapters.nodes import Node
from fabric.gate.events import NodeDrain
from fabric.units import NodeId

LEAVE_US: Final = 1_000_000
"""For the processes to be ended and the devices to be read before the machine goes, where the notice leaves time for it."""
NO_BOUND_US: Final = 2**53
"""A drain without a deadline: every job has its own grace."""
_log = structlog.get_logger(__name__)


async def draining() -> dict[str, int]:
    """The nodes that Ray drains, by its id, and when they will be gone: µs since 1970, 0 = it doesn't say."""
    try:
        found: Mapping[str, int] = await asyncio.to_thread(state.get_draining_nodes)
    except (ray.exceptions.RayError, AttributeError) as error:
        _log.warning("drains_unknown", why=str(error)[:200])
        return {}
    return {ray_id: 1_000 * deadline_ms for ray_id, deadline_ms in found.items()}


class Drains:
    """What the gate was told of them, as far as this process has told it."""

    def __init__(self) -> None:
        self._told: dict[NodeId, tuple[str, int]] = {}
        """(Ray's id of the node, when it will be gone)."""

    async def look(self, there: Mapping[NodeId, Node]) -> list[NodeDrain]:
        """Ask Ray, and say what to tell the gate now."""
        return list(self.changes(there, await draining(), now_us=time.time_ns() // 1_000))

    def changes(
        self, there: Mapping[NodeId, Node], deadlines: Mapping[str, int], *, now_us: int
    ) -> Iterator[NodeDrain]:
        """What to tell the gate now.

        Args:
            there: the nodes that are there.
            deadlines: as `draining` has them.
            now_us: by the clock that Ray's deadlines are of.
        """
        for node_id, node in there.items():
            told, deadline_us = self._told.get(node_id), deadlines.get(node.ray_id)
            if deadline_us is not None and told != (node.ray_id, deadline_us):
                self._told[node_id] = node.ray_id, deadline_us
                left_us = deadline_us - now_us
                grace_us = max(left_us - min(LEAVE_US, left_us // 4), 0) if deadline_us else NO_BOUND_US
                _log.warning(
                    "node_drained_by_ray", node_id=node_id, grace_s=grace_us / 1_000_000 if deadline_us else None
                )
                yield NodeDrain(node_id=node_id, grace_us=grace_us)
            elif deadline_us is None and told is not None:
                del self._told[node_id]
                if told[0] == node.ray_id:  # it was taken back; one that has come anew is told of as such
                    yield NodeDrain(node_id=node_id, grace_us=0, undo=True)
        for gone in self._told.keys() - there.keys():
            del self._told[gone]
