"""The accelerator nodes Ray has, by their labels. Only a node with all of ours is sold."""

import asyncio
from collections.abc import Container, Mapping, Sequence
from functools import cache
from typing import Any, Final

import msgspec
import ray
import structlog

from fabric.accelerators import DEVICE_RESOURCES, TYPE_LABEL, canonical_accelerator
from fabric.gate.events import NodeDown, NodeUp, Pool
from fabric.parts import HOW, PARTS_LABEL, WHOLE, Parts, parts_of
from fabric.units import AccountId, Fraction, NodeId

NODE_LABEL: Final = "fabric.io/node"
POOL_LABEL: Final = "fabric.io/pool"
DEDICATED_LABEL: Final = "fabric.io/dedicated-to"
NOTICE_LABEL: Final = "fabric.io/notice-s"
"""Seconds between the notice that the node goes and its going, where that is less than any job could need."""
METER_LABEL: Final = "fabric.io/meter"
"""`cpu`: the devices are simulated, or have no counter: the processors' time is taken for theirs."""
BY_CPU: Final = "cpu"
_NOTICE_DIGITS_MAX: Final = 9
_RAYS: Final = 10_000
_log = structlog.get_logger(__name__)


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
    parts: Parts = WHOLE
    """How its devices are divided."""

    def bundle(self, devices: int, *, cpus: float, fraction: Fraction | None = None) -> dict[str, float]:
        """The resources of a lease's share here."""
        return {"CPU": cpus, **self.held(devices, fraction)}

    def held(self, devices: int, fraction: Fraction | None = None) -> dict[str, float]:
        """What a process that uses that many devices here, or such a part of one, holds. Ray counts in ten-thousandths: of what
        is between two of them the lesser, so that all parts of a device fit on it.
        """
        amount = float(devices)
        if fraction is not None and self.parts.fraction is None:
            amount = fraction[0] * _RAYS // fraction[1] / _RAYS
        held = {self.resource: amount}
        return {**held, self.accelerator: amount} if self.has_type_resource else held

    def is_shared(self, fraction: Fraction | None) -> bool:
        """Whether others are on the device that a lease with such a part has, too."""
        return fraction is not None and self.parts.fraction is None


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
                    units=node.parts.units,
                    fraction=node.parts.fraction,
                    division=node.parts.division,
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
    parts = _parts_of(labels[NODE_LABEL], labels.get(PARTS_LABEL))
    if parts is None:
        return None
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
        parts=parts,
    )


@cache
def _parts_of(node_id: str, word: str | None) -> Parts | None:
    """What the node's label says; None if nobody knows what it means, and so what its devices are worth."""
    parts = WHOLE if word is None else parts_of(word)
    if parts is None:
        _log.warning("node_not_sold", node_id=node_id, label=f"{PARTS_LABEL}={word}"[:100], remedy=f"write {HOW}")
    return parts


def notice_us_of(labels: Mapping[str, str]) -> int | None:
    """What a node's label says of its notice; a word that is no number of seconds counts as none at all."""
    said = labels.get(NOTICE_LABEL)
    if said is None:
        return None
    return int(said) * 1_000_000 if said.isascii() and said.isdigit() and len(said) <= _NOTICE_DIGITS_MAX else 0
