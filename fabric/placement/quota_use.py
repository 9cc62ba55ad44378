"""What a job uses of what there are quotas of."""

from collections.abc import Container
from typing import Final

from fabric.placement.quota_terms import Part
from fabric.placement.state import PlacementState
from fabric.units import JobId

POOL: Final = "spot"
"""The pool that quotas are of."""


def parts_of(state: PlacementState, job_id: JobId, types: Container[str]) -> dict[str, Part]:
    """By type, for those that there are quotas of; nothing of parts of devices, and of cells of the account's own."""
    claim, running = state.claims.get(job_id), state.running.get(job_id)
    if running is not None and running.is_divided:
        return {}
    if running is not None:
        request, shares = running.request, running.shares
        order = (request.is_movable(running.preemptible), running.rank, running.seq)
    elif claim is not None:
        queued = state.queue[job_id]
        request, shares = queued.request, claim.shares
        order = (request.is_movable(queued.preemptible), queued.rank, queued.seq)
    else:
        return {}
    parts: dict[str, Part] = {}
    for node_id, devices in shares:
        node = state.nodes[node_id].node
        if node.accelerator in types and node.dedicated_to != request.account_id and node.fraction is None:
            before = parts.get(node.accelerator, Part(request.account_id, 0, 0, order))
            shared = before.shared + devices * (node.pool == POOL)
            parts[node.accelerator] = before._replace(devices=before.devices + devices, shared=shared)
    return parts
