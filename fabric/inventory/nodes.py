"""The accelerator nodes Ray has, by their labels. Only a node with all of ours is sold."""

import asyncio
from collections.abc import Container, Mapping, Sequence
from typing import Any, Final

import msgspec
import ray

from fabric.accelerators import DEVICE_RESOURCES, TYPE_LABEL, canonical_accelerator
from fabric.gate.events import NodeDown, NodeUp, Pool
from fabric.units import AccountId, NodeId

NODE_LABEL: Final = "fabric.io/node"
POOL_LABEL: Final = "fabric.io/pool"
DEDICATED_LABEL: Final = "fabric.io/dedicated-to"
NOTICE_LABEL: Final = "fabric.io/notice-s"
"""Seconds between the notice that the node goes and its going, where that is less than any job could need."""
METER_LABEL: Final = "fabric.io/meter"
"""`cpu`: the devices are simulated, or have no counter: the processors' time is taken for theirs."""
BY_CPU: Final = "cpu"
_NOTICE_DIGITS_MAX: Final = 9


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One node that is sold."""

    node_id: NodeId
    ray_id: str
    address: str
    port: int
    """Where its raylet listens."""
    accelerator: str
    resource: str
    """What Ray calls its devices: GPU or NPU."""
    devices: int
    pool: Pool
    dedicated_to: AccountId | None
    has_type_resource: bool
    """Whether the node also offers a resource named for its type."""
    notice_us: int | None = None
    by_cpu: bool = False
    """Whether it is declared to have no counters."""

    def bundle(self, devices: int, *, cpus: float) -> dict[str, float]:
        """The resources of a lease's share here."""
        return {"CPU": cpus, **self.held(devices)}

    def held(self, devices: int) -> dict[str, float]:
        """What a process that uses that many devices here holds."""
        held = {self.resource: float(devices)}
        return {**held, self.accelerator: float(devices)} if self.has_type_resource else held


def nodes_of(table: Sequence[Mapping[str, Any]], *, gone: Container[str]) -> dict[NodeId, Node]:
    """The living nodes of `ray.nodes()` that are sold, without those whose Ray id is known to be gone."""
    found = (_node_of(entry) for entry in table if entry["Alive"] and entry["NodeID"] not in gone)
    return {node.node_id: node for node in found if node is not None}


def changes_between(before: Mapping[NodeId, Node], now: Mapping[NodeId, Node]) -> list[NodeUp | NodeDown]:
    """What happened to the nodes: one that came back as another Ray node was down in between."""
    changed: list[NodeUp | NodeDown] = [
        NodeDown(node_id=node_id)
        for node_id, node in before.items()
        if node_id not in now or now[node_id].ray_id != node.ray_id
    ]
    for node_id, node in now.items():
        if node_id not in before or before[node_id].ray_id != node.ray_id:
            changed.append(
                NodeUp(
                    node_id=node_id,
                    accelerator=node.accelerator,
                    devices=node.devices,
                    pool=node.pool,
                    dedicated_to=node.dedicated_to,
                    notice_us=node.notice_us,
                )
            )
    return changed


async def answers(node: Node, *, within_s: float = 2.0) -> bool:
    """Whether the node's raylet still listens. Ray itself may need 15 s to notice that one is gone."""
    try:
        async with asyncio.timeout(within_s):
            _, writer = await asyncio.open_connection(node.address, node.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def lives(node: Node) -> bool:
    """Whether the node is there by all that the platform can see of it: its raylet listens, and Ray hasn't given it up."""
    if not await answers(node):
        return False
    try:
        table = await asyncio.to_thread(ray.nodes)
    except Exception:  # noqa: BLE001  # whatever is the matter with Ray's head, it says nothing of the node
        return True
    return next((entry["Alive"] for entry in table if entry["NodeID"] == node.ray_id), True)


def _node_of(entry: Mapping[str, Any]) -> Node | None:
    labels, resources = entry["Labels"], entry["Resources"]
    resource = next((name for name in DEVICE_RESOURCES if resources.get(name, 0) >= 1), None)
    if resource is None or NODE_LABEL not in labels or TYPE_LABEL not in labels:
        return None
    if labels.get(POOL_LABEL) not in set(Pool):
        return None
    accelerator = canonical_accelerator(labels[TYPE_LABEL])
    return Node(
        node_id=NodeId(labels[NODE_LABEL]),
        ray_id=entry["NodeID"],
        address=entry["NodeManagerAddress"],
        port=entry["NodeManagerPort"],
        accelerator=accelerator,
        resource=resource,
        devices=int(resources[resource]),
        pool=Pool(labels[POOL_LABEL]),
        dedicated_to=AccountId(labels[DEDICATED_LABEL]) if DEDICATED_LABEL in labels else None,
        has_type_resource=resources.get(accelerator, 0) >= 1,
        notice_us=notice_us_of(labels),
        by_cpu=labels.get(METER_LABEL) == BY_CPU,
    )


def notice_us_of(labels: Mapping[str, str]) -> int | None:
    """What a node's label says of its notice; a word that is no number of seconds counts as none at all."""
    said = labels.get(NOTICE_LABEL)
    if said is None:
        return None
    return int(said) * 1_000_000 if said.isascii() and said.isdigit() and len(said) <= _NOTICE_DIGITS_MAX else 0
