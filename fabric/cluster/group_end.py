"""How a placement group ends without its node.

Ray ends what it was told to be in a group, and gives the group's devices back. What got in by the names alone that the
group's resources have, as Serve's replicas do, it doesn't know of: they keep their share, and the node's raylet, which
can't give the devices back, dies of that, and with it all that runs on the node. So who is in by name is ended first.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

import structlog

from fabric.errors import Unavailable
from fabric.inventory.nodes import Node
from fabric.inventory.ray_tables import ActorRow, GroupRow, RayTables

_WITHIN_S: Final = 15.0
_LOOK_S: Final = 0.2
_QUIET_LOOKS: Final = 6
"""So many looks in a row must show that all is given back: what Ray says of its resources is up to a second old."""
_BY_NAME: Final = "_group_"
_BUNDLE: Final = "bundle"
_BUNDLE_SHARES: Final = 1_000.0
_EPSILON: Final = 1e-6
_log = structlog.get_logger(__name__)


class Tables(Protocol):
    """What is asked of Ray: see `RayTables`."""

    def groups(self) -> list[GroupRow]: ...
    def actors(self) -> list[ActorRow]: ...
    def free(self) -> dict[str, Mapping[str, float]]: ...
    def kill_actor(self, actor_id: str) -> None: ...


def end_group(
    group_id: str,
    nodes: Iterable[Node],
    *,
    remove: Callable[[], None],
    kill: Callable[[str, int], None],
    tables: Callable[[], Tables] = RayTables.here,
    sleep: Callable[[float], None] = time.sleep,
    within_s: float = _WITHIN_S,
) -> None:
    """Remove a placement group, once nobody holds any of it by name. Blocks.

    Args:
        group_id: Ray's, in hexadecimal digits.
        nodes: those that there are.
        remove: has Ray remove it.
        kill: ends a process of a machine, soon.
        tables: opens Ray's.
        sleep: waits so many seconds.
        within_s: for how long it is tried.

    Raises:
        Unavailable: somebody holds it still: it is to be tried again.
    """
    asked, by_id = tables(), {node.ray_id: node for node in nodes}
    before, quiet = asked.free(), 0
    ended: dict[str, ActorRow] = {}
    for _ in range(max(1, round(within_s / _LOOK_S))):
        there = [row for row in asked.actors() if row.group_id != group_id and _named(row, group_id)]
        for row in there:
            if row.id not in ended:
                _log.info("ended_in_group", group=group_id, actor=row.id, name=row.name)
                asked.kill_actor(row.id)
                if row.node_id in by_id and row.pid:
                    kill(by_id[row.node_id].address, row.pid)
            ended[row.id] = row
        if not ended:
            break
        is_back = not there and _is_back(
            asked, group_id, [row for row in ended.values() if row.node_id in by_id], before
        )
        quiet = quiet + 1 if is_back else 0
        if quiet >= _QUIET_LOOKS:
            break
        sleep(_LOOK_S)
    else:
        raise Unavailable(
            f"placement group {group_id} is held by {len(ended)} actors that do not end within {within_s:g} s: it stays"
            " until they have",
            code="group_held",
        )
    remove()


def _named(row: ActorRow, group_id: str) -> list[str]:
    """The names of the group's resources that an actor asks for."""
    return [name for name in row.required if _BY_NAME in name and name.endswith(group_id)]


def _is_back(
    tables: Tables, group_id: str, ended: Iterable[ActorRow], before: Mapping[str, Mapping[str, float]]
) -> bool:
    """Whether the nodes have what these actors held: all that there is of it, or so much more than before."""
    held: dict[tuple[str, str], float] = {}
    for row in ended:
        for name in _named(row, group_id):
            held[row.node_id, name] = held.get((row.node_id, name), 0.0) + row.required[name]
    free, whole = tables.free(), _whole(tables, group_id)
    for (node_id, name), amount in held.items():
        most = whole.get((node_id, name), 0.0)
        wanted = min(most, before.get(node_id, {}).get(name, 0.0) + amount)
        if free.get(node_id, {}).get(name, 0.0) < wanted - _EPSILON:
            return False
    return True


def _whole(tables: Tables, group_id: str) -> dict[tuple[str, str], float]:
    """What there is of a group's resources on each node, by the names that they have there."""
    found: dict[tuple[str, str], float] = {}
    bundles = next((row.bundles for row in tables.groups() if row.id == group_id), ())
    for at, (node_id, resources) in enumerate(bundles):
        for name, amount in {**resources, _BUNDLE: _BUNDLE_SHARES}.items():
            for known in (f"{name}{_BY_NAME}{at}_{group_id}", f"{name}{_BY_NAME}{group_id}"):
                found[node_id, known] = found.get((node_id, known), 0.0) + amount
    return found
