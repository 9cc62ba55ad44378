"""Nodes as they are shown: a view built from the state, which it never changes."""

from fabric.gate.core import Core
from fabric.gate.views import NodeView


def nodes(core: Core) -> list[NodeView]:
    """Every node, and the leases on it."""
    on_node: dict[str, list[str]] = {}
    for record in core.state.leases.values():
        for share in record.lease.shares:
            on_node.setdefault(share.node_id, []).append(record.lease.lease_id)
    return [
        NodeView(
            node_id=node.node_id,
            accelerator=node.accelerator,
            pool=node.pool,
            devices=node.devices,
            free=node.free,
            state=node.status,
            dedicated_to=node.dedicated_to,
            leases=tuple(on_node.get(node.node_id, ())),
            units=node.units,
            fraction=node.fraction,
            free_units=node.free_units,
            division=node.division,
        )
        for node in core.planner.nodes()
    ]
