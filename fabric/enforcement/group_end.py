"""How a placement group ends without its node.

Ray ends what it was told to be in a group, and gives the group's devices back. What got in by the names alone that the
group's resources have, as Serve's replicas do, it doesn't know of: they keep their share, and the node's raylet, which
can't give the devices back, dies of that, and with it all that runs on the node. So who is in by name is ended first, and it
is waited until what they had is given back: also of those that are dead to Ray's control store, whose process was only
being started, or ended by itself on the way, and that their raylet still has on its books.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import structlog

from fabric.errors import Unavailable
from fabric.inventory.nodes import Node
from fabric.inventory.ray_tables import ActorRow, RayTables, Tables

_WITHIN_S: Final = 15.0
_LOOK_S: Final = 0.2
_QUIET_LOOKS: Final = 6
"""So many looks in a row must show that all is given back: what Ray says of its resources is up to a second old."""
_QUIET_S: Final = 2.0
_BY_NAME: Final = "_group_"
_BUNDLE: Final = "bundle"
_BUNDLE_SHARES: Final = 1_000.0
_EPSILON: Final = 1e-6
_log = structlog.get_logger(__name__)


class Entered:
    """Who is in placement groups by name, of which nobody waits for the end: remembered between looks."""

    def __init__(self) -> None:
        self._seen_at: dict[str, float] = {}

    def by(self, group_id: str, actors: Iterable[ActorRow], *, at: float) -> list[ActorRow]:
        """The actors that are in a group by name now, at that time in seconds."""
        found = [row for row in actors if _is_by_name(row, group_id)]
        if found:
            self._seen_at[group_id] = at
        return found

    def is_over(
        self, tables: Tables, group_id: str, nodes: Iterable[Node], actors: Sequence[ActorRow], *, at: float
    ) -> bool:
        """Whether nobody has been in it for a while, and nothing is held any more for who was: it may be removed."""
        if at - self._seen_at.get(group_id, -_QUIET_S) < _QUIET_S:
            return False
        if not any(_is_by_name(row, group_id) for row in tables.dead_actors()):
            return True
        return not _is_held(tables, group_id, {node.ray_id: node for node in nodes}, actors)


def end_group(
    group_id: str,
    nodes: Callable[[], Iterable[Node]],
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
        nodes: those that there are, each time it is looked: one that has come back is another one, and Ray puts what a group has
            lost with a node on it at once.
        remove: has Ray remove it.
        kill: ends a process of a machine, soon.
        tables: opens Ray's.
        sleep: waits so many seconds.
        within_s: for how long it is tried.

    Raises:
        Unavailable: somebody holds it still: it is to be tried again.
    """
    asked = tables()
    quiet, ended = 0, {row.id for row in asked.dead_actors() if _is_by_name(row, group_id)}
    for _ in range(max(1, round(within_s / _LOOK_S))):
        by_id, actors = {node.ray_id: node for node in nodes()}, asked.actors()
        there = [row for row in actors if _is_by_name(row, group_id)]
        for row in there:
            if row.id not in ended:
                _log.info("ended_in_group", group=group_id, actor=row.id, name=row.name)
                asked.kill_actor(row.id)
                if row.node_id in by_id and row.pid:
                    kill(by_id[row.node_id].address, row.pid)
            ended.add(row.id)
        if not ended:
            break
        is_back = not there and not _is_held(asked, group_id, by_id, actors)
        quiet = quiet + 1 if is_back else 0
        if quiet >= _QUIET_LOOKS:
            break
        sleep(_LOOK_S)
    else:
        raise Unavailable(
            f"placement group {group_id} is held by some of {len(ended)} actors that do not end within {within_s:g} s: it"
            " stays until they have",
            code="group_held",
        )
    remove()


def _is_by_name(row: ActorRow, group_id: str) -> bool:
    """Whether an actor got into the group by the names of its resources alone."""
    return row.group_id != group_id and any(_BY_NAME in name and name.endswith(group_id) for name in row.required)


def _is_held(tables: Tables, group_id: str, nodes: Mapping[str, Node], actors: Iterable[ActorRow]) -> bool:
    """Whether somebody has some of the group's resources who is not in it by Ray's own word. On a node that is new, and not among
    the `nodes` yet, whoever runs tasks counts as one.
    """
    free, known = tables.free(), dict[tuple[str, str], float]()
    for row in actors:
        for name, amount in row.required.items() if row.group_id == group_id else ():
            known[row.node_id, name] = known.get((row.node_id, name), 0.0) + amount
    there = nodes.keys() | free.keys()
    whole = {of: amount for of, amount in _whole(tables, group_id).items() if of[0] in there}
    for node_id in {node_id for node_id, _ in whole} & nodes.keys():
        node = nodes[node_id]
        for worker in tables.workers(node.address, node.port):
            for name, amount in worker.held.items() if group_id in worker.group_ids and not worker.actor_id else ():
                for of in whole:
                    if of[0] == node_id and _is_of(of[1], name, group_id):
                        known[of] = known.get(of, 0.0) + amount
    return any(
        free.get(node_id, {}).get(name, 0.0) + known.get((node_id, name), 0.0) < amount - _EPSILON
        for (node_id, name), amount in whole.items()
    )


def _is_of(formatted: str, name: str, group_id: str) -> bool:
    """Whether a group's resource is its part of the resource of this name."""
    return formatted.startswith(f"{name}{_BY_NAME}") and formatted.endswith(group_id)


def _whole(tables: Tables, group_id: str) -> dict[tuple[str, str], float]:
    """What there is of a group's resources on each node, by the names that they have there."""
    found: dict[tuple[str, str], float] = {}
    bundles = next((row.bundles for row in tables.groups() if row.id == group_id), ())
    for at, (node_id, resources) in enumerate(bundles):
        for name, amount in {**resources, _BUNDLE: _BUNDLE_SHARES}.items():
            for known in (f"{name}{_BY_NAME}{at}_{group_id}", f"{name}{_BY_NAME}{group_id}"):
                found[node_id, known] = found.get((node_id, known), 0.0) + amount
    return found


def is_vacant(group_id: str) -> bool:
    """Whether a placement group is there, and no actor left in it. Blocks. Any process of the cluster may have removed it."""
    try:
        tables = RayTables.here()
        is_left = any(row.id == group_id and row.is_placed for row in tables.groups())
        return is_left and all(actor.group_id != group_id for actor in tables.actors())
    except Exception:  # noqa: BLE001 - Ray's tables are away: then nobody knows
        _log.exception("group_not_looked_at", group=group_id)
        return False
