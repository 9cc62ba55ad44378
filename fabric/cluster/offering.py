"""Which nodes the gate is told of, with how many devices, and that they will go: what can't be metered isn't sold.

A node is offered with the devices that its agent can read. When one can't be read any more, nothing new is put on the
node; what runs there stays, and is charged as estimated. The node is offered again with what can be read as soon as
nothing runs on it: to tell the gate another number before would end what runs. So it is with devices that Ray holds for
nobody (`fabric.enforcement.leaks`). Simulated nodes, and those that are
declared to have no counter, are offered as they are. A node of which Ray says that it will go is drained, and neither offered
nor opened again until Ray takes that back. Pure: it is told what is seen, and says what happened.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec
import structlog

from fabric.gate.events import NodeDown, NodeDrain, NodeUp
from fabric.inventory.drains import Notices, grace_us_of
from fabric.inventory.nodes import Node, changes_between
from fabric.node.agent import Sight
from fabric.parts import is_instance
from fabric.units import NodeId

Change = NodeUp | NodeDown | NodeDrain
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Offering:
    """What the gate knows of the nodes, as far as this process has told it."""

    offered: dict[NodeId, Node] = field(default_factory=dict)
    cordoned: set[NodeId] = field(default_factory=set)
    """Takes nothing new."""
    withheld: set[NodeId] = field(default_factory=set)
    """Is there, and the gate knows that it isn't to be had."""
    drained: dict[NodeId, tuple[str, int]] = field(default_factory=dict)
    """Will go, by Ray's word: (Ray's id of the node, when)."""

    def changes(
        self,
        there: Mapping[NodeId, Node],
        sights: Mapping[str, Sight | None],
        *,
        busy: Container[NodeId],
        notices: Notices | None = None,
        stuck: Mapping[str, int] = MappingProxyType({}),
    ) -> list[Change]:
        """What to tell the gate now.

        Args:
            there: the nodes that are there.
            sights: what the agents say they can read, by machine; None or missing = it doesn't say.
            busy: nodes on which something runs.
            notices: what Ray says of nodes that will go; None = it doesn't say, so that what it said last holds.
            stuck: by node, how many of its devices Ray holds for nobody.
        """
        told: list[Change] = [*self.gone(there)]
        for node_id, node in there.items():
            before = self.offered.get(node_id)
            count = readable(node, sights.get(node.address))
            if count is not None:
                count = max(0, count - stuck.get(node_id, 0))
            if notices is not None:
                told += self._noticed(node, notices, count=count)
            if count is not None and node_id not in self.drained:
                told += self._change(node, before, count, is_busy=node_id in busy)
        for known in (self.cordoned, self.withheld):
            known.intersection_update(there)
        for gone in self.drained.keys() - there.keys():
            del self.drained[gone]
        return told

    def gone(self, there: Mapping[NodeId, Node]) -> list[NodeDown]:
        """What to tell the gate at once: nodes that aren't there any more, or are others of their names. Nobody is asked for
        that, and whatever is tried on them until it is told fails.
        """
        return [
            self._withdraw(node_id)
            for node_id, node in list(self.offered.items())
            if node_id not in there or there[node_id].ray_id != node.ray_id
        ]

    def _noticed(self, node: Node, notices: Notices, *, count: int | None) -> Iterator[Change]:
        """What Ray has said of the node since."""
        node_id, known = node.node_id, self.drained.get(node.node_id)
        gone_at_us = notices.gone_at_us.get(node.ray_id)
        if gone_at_us is None:
            if known is None:
                return
            del self.drained[node_id]
            if known[0] != node.ray_id or (before := self.offered.get(node_id)) is None:
                return  # it is offered as one that has come anew
            if count is not None and count < before.devices:
                self.cordoned.add(node_id)  # closed it stays: for its counters
            elif node_id not in self.cordoned:
                yield NodeDrain(node_id=node_id, grace_us=0, undo=True)
        elif known != (node.ray_id, gone_at_us):
            self.drained[node_id] = node.ray_id, gone_at_us
            grace_us = grace_us_of(gone_at_us, now_us=notices.now_us)
            _log.warning("node_drained_by_ray", node_id=node_id, grace_s=grace_us / 1_000_000 if gone_at_us else None)
            yield NodeDrain(node_id=node_id, grace_us=grace_us)

    def _change(self, node: Node, before: Node | None, count: int, *, is_busy: bool) -> list[Change]:
        node_id = node.node_id
        if before is not None and before.devices == count:
            if node_id not in self.cordoned:
                return []
            self.cordoned.discard(node_id)
            return [NodeDrain(node_id=node_id, grace_us=0, undo=True)]
        if (
            count < (node.devices if before is None else before.devices)
            and node_id not in self.cordoned | self.withheld
        ):
            # Of a node that is new here the gate may know from before a restart, with leases on it.
            return [self._cordon(node_id)]
        if is_busy and (before is not None or count < node.devices):
            return []
        if count:
            return self._offer(msgspec.structs.replace(node, devices=count))
        return [] if node_id in self.withheld else [self._withdraw(node_id)]

    def _offer(self, node: Node) -> list[Change]:
        self.offered[node.node_id] = node
        self.cordoned.discard(node.node_id)
        self.withheld.discard(node.node_id)
        return [*changes_between({}, {node.node_id: node})]

    def _withdraw(self, node_id: NodeId) -> NodeDown:
        self.offered.pop(node_id, None)
        self.cordoned.discard(node_id)
        self.withheld.add(node_id)
        return NodeDown(node_id=node_id)

    def _cordon(self, node_id: NodeId) -> Change:
        self.cordoned.add(node_id)
        return NodeDrain(node_id=node_id, grace_us=0, cordon=True)


def readable(node: Node, sight: Sight | None) -> int | None:
    """How many of a node's devices can be metered; None if nobody says."""
    if node.by_cpu:
        return node.devices
    if sight is None:
        return None
    if sight.declared:
        return node.devices
    names = sight.readable
    if node.parts.fraction is None or node.parts.kind == "mig":
        # An instance is never sold as a device, nor a device as an instance: their prices are not the same.
        names = tuple(name for name in names if is_instance(name) == (node.parts.fraction is not None))
    return min(len(names), node.devices)
