"""Devices that a node's raylet keeps for nobody: their placement group is gone, and they did not come back.

Ray's control store forgets a placement group as soon as it is removed. It asks raylets a few times to give the bundles back,
and for bundles that were only being prepared not always; nobody looks at it again, and the devices are lost until the node
is. So it is looked at here. Where more devices are held than placement groups and workers hold, for longer than Ray needs to
say so, the raylet is asked again, for every group that is gone: that changes nothing for those that it has given back. What
stays then is stuck: it is not sold, and told of. Where the fabric started the node itself, it takes nothing new, and is
started anew when nothing is left on it.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from fabric.inventory.nodes import Node
from fabric.inventory.ray_tables import GoneGroup, GroupRow, Tables

RETURN_S: Final = 5.0
"""For so long devices must have been held for nobody, before their raylet is asked for them; and again after each time."""
STUCK_S: Final = 90.0
"""After so long they are stuck. For a process that it has started Ray keeps devices for 60 s, also where that is long dead."""
RESTART_S: Final = 120.0
"""After so long a node of the fabric's own that has nothing else on it is started anew: the gate has heard by then that it
takes nothing new."""
_EPSILON: Final = 1e-6
_FORMATTED: Final = re.compile(r"(.+)_group_(\d+)_([0-9a-f]+)")
_BUNDLE: Final = "bundle"
_log = structlog.get_logger(__name__)


def excess(
    nodes: Iterable[Node], groups: Iterable[GroupRow], free: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """How many devices more are held on nodes than placement groups hold there, by Ray's ids of the nodes."""
    in_groups: dict[tuple[str, str], float] = {}
    for row in groups:
        for node_id, bundle in row.bundles:
            for name, amount in bundle.items():
                in_groups[node_id, name] = in_groups.get((node_id, name), 0.0) + amount
    found = {}
    for node in nodes:
        left = free.get(node.ray_id, {})
        more = max(
            node.devices - left.get(name, 0.0) - in_groups.get((node.ray_id, name), 0.0)
            for name in node.held(node.devices)
        )
        if more > _EPSILON:
            found[node.ray_id] = more
    return found


@dataclass(slots=True)
class _Leak:
    since: float
    devices: float
    asked_at: float


class Leaks:
    """Remembers between looks which nodes hold devices for nobody."""

    def __init__(self, *, restarts: bool) -> None:
        """None is known.

        Args:
            restarts: whether a node that is ended is started anew by the fabric.
        """
        self._restarts = restarts
        self._leaks: dict[str, _Leak] = {}
        self.stuck: dict[str, int] = {}
        """By name of the node: so many of its devices are not to be had. Replaced, never changed: any thread may read it."""

    def see(self, held: Mapping[str, float], *, unknown: Container[str], at: float) -> None:
        """Note what a look has found.

        Args:
            held: devices that no placement group holds, by Ray's ids of the nodes.
            unknown: nodes, by Ray's ids, where somebody was found to hold some, or whose raylet did not say who does.
            at: when, in seconds, steadily.
        """
        held = {ray_id: devices for ray_id, devices in held.items() if ray_id not in unknown}
        self._leaks = {ray_id: leak for ray_id, leak in self._leaks.items() if ray_id in held}
        for ray_id, devices in held.items():
            leak = self._leaks.setdefault(ray_id, _Leak(since=at, devices=devices, asked_at=at))
            leak.devices = devices

    def mend(self, tables: Tables, nodes: Sequence[Node], *, at: float) -> None:
        """Ask raylets for what they hold for nobody. Blocks.

        Args:
            tables: Ray's.
            nodes: those that are sold.
            at: as in `see`.
        """
        by_id = {node.ray_id: node for node in nodes}
        leaks = {ray_id: leak for ray_id, leak in self._leaks.items() if ray_id in by_id}
        stuck = {
            str(by_id[ray_id].node_id): by_id[ray_id].devices if self._restarts else max(1, round(leak.devices))
            for ray_id, leak in leaks.items()
            if at - leak.since >= STUCK_S
        }
        if stuck != self.stuck and stuck:
            _log.warning("devices_stuck", devices=stuck, remedy="drain these nodes, and start Ray on them anew")
        self.stuck = stuck
        for ray_id, leak in leaks.items():
            if at - leak.asked_at >= RETURN_S:
                leak.asked_at = at
                self._ask(tables, by_id[ray_id], leak, at=at)

    def _ask(self, tables: Tables, node: Node, leak: _Leak, *, at: float) -> None:
        whole = tables.whole().get(node.ray_id, {})
        rows = tables.groups()  # asked after the node was: a group that is only being made is among them
        free = tables.free().get(node.ray_id, {})
        gone = list(_gone_at(node, whole, tables.gone_groups(), living={row.id for row in rows}))
        for group in gone:
            if _is_entered(group.id, whole, free):
                _log.warning("group_is_gone_and_held", node_id=str(node.node_id), group=group.id)
            else:
                tables.return_bundles(node.address, node.port, group)
        is_empty = not any(node_id == node.ray_id for row in rows for node_id, _ in row.bundles)
        if self._restarts and is_empty and at - leak.since >= RESTART_S:
            _log.warning("node_started_anew", node_id=str(node.node_id), devices=leak.devices)
            tables.shut_down(node.address, node.port)
        else:
            _log.warning("devices_asked_for", node_id=str(node.node_id), devices=leak.devices, groups=len(gone))


def _gone_at(
    node: Node, whole: Mapping[str, float], removed: Iterable[GoneGroup], *, living: Container[str]
) -> Iterator[GoneGroup]:
    """The groups that are gone and of which a node may hold something still."""
    known = set()
    for group in removed:
        here = tuple(bundle for bundle in group.bundles if bundle[1] in ("", node.ray_id))
        if here and group.id not in living:
            known.add(group.id)
            yield GoneGroup(group.id, here)
    bundles: dict[str, dict[int, dict[str, float]]] = {}
    for name, amount in whole.items():
        if (match := _FORMATTED.fullmatch(name)) is not None and match[1] != _BUNDLE:
            bundles.setdefault(match[3], {}).setdefault(int(match[2]), {})[match[1]] = amount
    for group_id, found in bundles.items():  # of what Ray doesn't remember
        if group_id not in known and group_id not in living:
            yield GoneGroup(group_id, tuple((index, node.ray_id, held) for index, held in found.items()))


def _is_entered(group_id: str, whole: Mapping[str, float], free: Mapping[str, float]) -> bool:
    """Whether somebody holds some of a group's resources: the raylet would die of giving them back."""
    return any(
        free.get(name, 0.0) < amount - _EPSILON
        for name, amount in whole.items()
        if "_group_" in name and name.endswith(group_id)
    )
